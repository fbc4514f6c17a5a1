"""The command line: `bandtok VERB ...`."""

from bandtok_jax.cli.dispatch import main

__all__ = ["main"]
