"""Files of tensors and numbers, written whole or not at all."""
