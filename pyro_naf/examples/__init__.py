"""Models with reference draws, to try the package on."""
