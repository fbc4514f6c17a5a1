"""The type check: basedpyright in mode basic, with a stored number of errors of each room that may only fall.

  python -m tests.check_types             fails where a room has more errors than tests/types.json allows
  python -m tests.check_types --update    lowers the numbers in tests/types.json
  python -m tests.check_types ROOM ...    lists the errors of rooms

The number of errors depends on the annotations of jax, flax, numpy and optax. With other versions than those of
types.json the numbers are printed and nothing fails, except an import that cannot be resolved.
"""

import collections
import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys

from tests.import_graph import PACKAGE, ROOT, files, room

LIMITS = ROOT / "tests" / "types.json"
OPTIONAL = (  # packages of extras, which need not be installed
    "apache_beam", "huggingface_hub", "jax2onnx", "onnxruntime", "sentencepiece", "visqol", "visqol_python", "wandb",
)  # fmt: skip
_PACKAGES = ("flax", "jax", "numpy", "optax")


def errors() -> list[dict]:
    """Returns the errors that basedpyright finds in the package, without missing packages of extras.

    Raises:
      ValueError: it did not analyse each file once.
    """
    command = [_program(), "--pythonpath", sys.executable, "--outputjson"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    report = json.loads(run.stdout)
    num_files, num_analysed = len(files()), report["summary"]["filesAnalyzed"]
    if num_analysed != num_files:
        raise ValueError(f"{num_analysed} of {num_files} files were analysed: see `include` in pyproject.toml")
    every = [diagnostic for diagnostic in report["generalDiagnostics"] if diagnostic["severity"] == "error"]
    return [
        error
        for error in every
        if not _is_import(error) or not any(f'"{name}' in error["message"] for name in OPTIONAL)
    ]


def _is_import(error: dict) -> bool:
    return error.get("rule") in ("reportMissingImports", "reportMissingModuleSource")


def place(error: dict) -> str:
    """Returns the room of an error; "root" for the loose files."""
    path = pathlib.Path(error["file"]).resolve().relative_to(ROOT)
    parts = path.parts[1:] if path.parts[0] == PACKAGE else path.parts
    return room(".".join(parts).removesuffix(".py").removesuffix(".__init__")) or "root"


def line(error: dict) -> str:
    """Returns an error as `path:line: message`."""
    path = pathlib.Path(error["file"]).resolve().relative_to(ROOT)
    message = error["message"].split("\n")[0]
    return f"{path}:{error['range']['start']['line'] + 1}: {message} ({error.get('rule')})"


def versions() -> dict[str, str]:
    """Returns the versions on which the number of errors depends."""
    run = subprocess.run([_program(), "--version"], capture_output=True, text=True, check=True)
    return {"basedpyright": run.stdout.split()[1]} | {name: importlib.metadata.version(name) for name in _PACKAGES}


def _program() -> str:
    return shutil.which("basedpyright") or os.path.join(os.path.dirname(sys.executable), "basedpyright")


def main(arguments: list[str]) -> int:
    """Runs the check; returns 0, or 1 where an import is not resolved or a room has too many errors."""
    every, stored = errors(), json.loads(LIMITS.read_text())
    counts = collections.Counter(map(place, every))
    if arguments and arguments != ["--update"]:
        print(*sorted(line(error) for error in every if place(error) in arguments), sep="\n")
        return 0
    if arguments:
        lower = {name: min(count, stored["errors"].get(name, count)) for name, count in sorted(counts.items())}
        stored = {"total": sum(lower.values()), "versions": versions(), "errors": lower}
        LIMITS.write_text(json.dumps(stored, indent=1) + "\n")
    unresolved = list(filter(_is_import, every))
    excess = {name for name, count in counts.items() if count > stored["errors"].get(name, 0)}
    print(f"types: {len(every)} errors, {stored['total']} allowed, {len(unresolved)} unresolved imports")
    shown = [error for error in every if place(error) in excess] + unresolved
    print(*sorted(map(line, shown)), sep="\n", end="\n" * bool(shown))
    same = not excess or versions() == stored["versions"]
    if not same:
        print(f"not counted: these are other versions than those of {LIMITS.name}: {versions()}")
    return int(bool(unresolved or excess and same))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
