"""New music from a language model over token grids."""

# What is drawn from, unless the user says otherwise: MusicGen's choices (arXiv 2306.05284).
SAMPLING = {"temperature": 1.0, "top_k": 250, "top_p": 1.0, "guidance": 3.0}
