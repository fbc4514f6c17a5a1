"""New music from a language model over token grids."""
