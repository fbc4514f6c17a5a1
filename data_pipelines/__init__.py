"""From music on disk to batches; NumPy only."""
