"""What several rooms need: checks of arguments, modes of torch, labels, tables of text."""
