"""Model folders, model cards, and importers of other projects' weights."""
