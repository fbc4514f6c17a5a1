"""External programs, called with a piece of sound."""

import math
import shlex
import subprocess


def run(command: str, values: dict[str, str], flag: str, piece: str) -> str:
    """Runs a shell command with {NAME} replaced by the quoted values; returns what it prints.

    Raises:
      ValueError: it fails, with the last line that it wrote to stderr.
    """
    for name, value in values.items():
        command = command.replace("{" + name + "}", shlex.quote(value))
    done = subprocess.run(command, shell=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1][:200]
        raise ValueError(f"{flag} failed with {done.returncode} on {piece}: {said}")
    return done.stdout


def number(command: str, values: dict[str, str], flag: str, piece: str) -> float:
    """Runs a command that prints a number, alone on its last line, and returns it.

    Raises:
      ValueError: it fails, or prints something else.
    """
    lines = run(command, values, flag, piece).split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    try:
        found = float(last)
    except ValueError:
        raise ValueError(f"{flag} prints {last[:80]!r} for {piece}: the last line must be a number") from None
    if not math.isfinite(found):
        raise ValueError(f"{flag} prints {last} for {piece}: the number must be finite")
    return found
