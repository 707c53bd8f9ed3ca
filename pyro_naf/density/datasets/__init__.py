"""Data sets that densities are measured on."""
