"""New music from a language model over token grids."""

from collections.abc import Iterable

# Defaults of sampling, which are MusicGen's (arXiv 2306.05284).
SAMPLING = {"temperature": 1.0, "top_k": 250, "top_p": 1.0, "guidance": 3.0}


def check_options(options: Iterable[str], known: Iterable[str], work: str) -> None:
    """Raises TypeError, with the known options, for one that is not among them.

    Args:
      options: names of the options of a call.
      known: names that its work has.
      work: noun for the work, such as "decoding".
    """
    known = sorted(known)
    if unknown := sorted(set(options).difference(known)):
        cure = f"use {', '.join(known)}" if known else "this model has none"
        raise TypeError(f"there is no option {unknown[0]!r} of {work}: {cure}")
