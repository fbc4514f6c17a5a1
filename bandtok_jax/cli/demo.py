"""The verb that serves a page on this machine: demo."""

import argparse

from bandtok_jax.cli import models
from bandtok_jax.cli.audio import LANGUAGE_MODEL
from bandtok_jax.cli.messages import show
from bandtok_jax.cli.parser import flag, verb


@verb(
    "demo",
    "serve a page on this machine to see, listen to, edit and generate with a model",
    "bandtok demo --model=models/mine",
    models.MODEL,
    *models.DECODING,
    *LANGUAGE_MODEL,
    flag("--port", type=int, default=0, metavar="N", help="of the address (default: a free port)"),
    flag("--no-open", action="store_true", help="print the address alone, without opening a browser"),
)  # fmt: skip
def demo(flags: argparse.Namespace) -> None:
    """Runs `bandtok demo`."""
    with models.quick_start():
        from bandtok_jax.demo import server

        codec = models.load_codec(flags)
    server.serve(codec, flags.model, flags.port, open_page=not flags.no_open)
    show("ended")
