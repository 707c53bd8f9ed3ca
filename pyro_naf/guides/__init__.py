"""What guides and inference share: everything that reaches into Pyro."""
