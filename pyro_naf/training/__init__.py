"""What the training of guides and of densities has in common."""
