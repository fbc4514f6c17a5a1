"""metrics.jsonl of a run: one JSON object a line, with `step` and names such as `train/loss`."""

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


def truncate_metrics(run: str | os.PathLike, step: int) -> list[dict]:
    """Removes the lines after `step` from metrics.jsonl, all of them for step 0, and returns the remaining ones."""
    path = pathlib.Path(run) / NAME
    lines = [line for line in read_metrics(run) if line["step"] <= step] if step else []
    if path.exists():
        storage.write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
    return lines
