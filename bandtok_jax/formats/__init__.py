"""File formats: .bt, safetensors, PyTorch checkpoints without PyTorch."""
