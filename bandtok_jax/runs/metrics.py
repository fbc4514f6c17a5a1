"""metrics.jsonl of a run: one JSON object a line, with `step` and names such as `train/loss`."""

from collections.abc import Sequence
import json
import os
import pathlib

from bandtok_jax.runtime import storage

NAME = "metrics.jsonl"


def read_metrics(run: str | os.PathLike) -> list[dict]:
    """Returns the lines of a run's metrics.jsonl, without damaged ones and one that was cut off in the middle."""
    path, lines = pathlib.Path(run) / NAME, []
    for text in path.read_bytes().splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def rewrite_metrics(run: str | os.PathLike, lines: Sequence[dict]) -> None:
    """Replaces the lines of a run's metrics.jsonl, where it has one."""
    path = pathlib.Path(run) / NAME
    if path.exists():
        storage.write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
