"""The one training loop, its checkpoints, its shardings and its reports."""
