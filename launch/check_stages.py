"""Checks that the trainings of `local.sh` fit together, before the first of them.

  python -m bandtok_jax.launch.check_stages STAGE NAME:VARIANT [--config.KEY=VALUE ...] [-- STAGE NAME:VARIANT ...]

STAGE is the prefix of the stage's flags in `local.sh`, such as language-model. Each configuration is checked as by
`bandtok config`, and the vocoder and the language model are compared with the tokenizer.
"""

import argparse
from collections.abc import Iterator, Sequence
import contextlib
import itertools
import os
import sys

from ml_collections import ConfigDict

from bandtok_jax import tasks
from bandtok_jax.cli.parser import config_overrides
from bandtok_jax.codecs.component import Component
from bandtok_jax.codecs.registry import assemble
from bandtok_jax.config.load import load_config
from bandtok_jax.tasks.language_model import LanguageModelTask

TOKENIZER, VOCODER, LANGUAGE_MODEL = "tokenizer", "vocoder", "language-model"


def check(stages: dict[str, ConfigDict]) -> None:
    """Checks the configurations of the stages, by their names; a tokenizer, a vocoder and a language model at least.

    Raises:
      ValueError: a configuration cannot be trained, or two do not fit together; the message begins with the stage.
    """
    for name, config in stages.items():
        with _flags_of(name):
            tasks.check(config)
    components = {name: Component(stages[name], {}) for name in (TOKENIZER, VOCODER)}
    with _flags_of(VOCODER):
        codec = assemble(components)
    config = stages[LANGUAGE_MODEL].copy_and_resolve_references()
    if config.model.row_vocabulary is None:  # the tokens decide it, which are not there yet
        with config.unlocked(), config.model.ignore_type():
            config.model.row_vocabulary = codec.row_kind == "residual"
    grid = {"rows": codec.rows, "codebook_size": codec.codebook_size, "row_kind": codec.row_kind}
    with _flags_of(LANGUAGE_MODEL):
        LanguageModelTask(config).check_grid(grid, "the tokens of this tokenizer")


@contextlib.contextmanager
def _flags_of(stage: str) -> Iterator[None]:
    """Names the stage in errors, and its flags of `local.sh` in their cures."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{stage}: {error}".replace("--config.", f"--{stage}.")) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks the stages; returns 0, or 1 after an error of one line."""
    parser = argparse.ArgumentParser(
        prog="python -m bandtok_jax.launch.check_stages", description=(__doc__ or "").split("\n")[0]
    )
    words = list(sys.argv[1:] if arguments is None else arguments)
    os.environ["JAX_PLATFORMS"] = "cpu"  # networks are described, and nothing is run
    try:
        stages = {}
        for is_separator, group in itertools.groupby(words, lambda word: word == "--"):
            if not is_separator:
                name, config, *flags = group
                with _flags_of(name):
                    stages[name] = load_config(config, config_overrides(flags, parser))
        check(stages)
    except ValueError as error:
        print(f"check_stages: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
