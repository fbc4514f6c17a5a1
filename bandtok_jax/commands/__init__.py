"""The verbs as functions for Python: files of codes, corpora of tokens, evaluation, configurations as text."""
