"""New music from a language model over token grids."""

# Defaults of sampling, which are MusicGen's (arXiv 2306.05284).
SAMPLING = {"temperature": 1.0, "top_k": 250, "top_p": 1.0, "guidance": 3.0}
