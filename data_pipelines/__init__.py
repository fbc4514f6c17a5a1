"""Data pipelines: preparation of music, records, transforms and batches. NumPy only."""
