"""External programs, called without a shell, so that a file name is always an argument and never runs."""

import math
import os
import re
import shlex
import shutil
import subprocess

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_OPERATOR = re.compile(r"[();<>|&]+")  # of a shell; all others are words
_BESIDE_PLACEHOLDER = re.compile(r"[\w./:=,+@%^~-]*")  # excludes the text of a program, which a value could change


def parse(command: str, names: tuple[str, ...], flag: str) -> list[list[str]]:
    """Splits a command into the argument lists of its programs, which `&&` separates. Placeholders stay.

    Args:
      command: words as in a shell, with its quotes but without its other operators and expansions.
      names: names of the placeholders `{NAME}`.
      flag: that gave the command, for messages.

    Raises:
      ValueError: no program, an open quote, an operator of a shell, a placeholder in the text of a program, or a
        program that is not installed.
    """
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        words = list(lexer)
    except ValueError as error:
        raise ValueError(f"{flag}: {command!r} cannot be read ({error}): close its quotes") from error
    programs: list[list[str]] = [[]]
    for word in words:
        if word == "&&":
            programs.append([])
        elif _OPERATOR.fullmatch(word):
            raise ValueError(
                f"{flag}: {word!r} needs a shell, and programs run without one: put it into a script, or write "
                f"bash -c '... \"$1\" ...' - {{{names[0]}}}"
            )
        else:
            programs[-1].append(os.path.expanduser(word))
    for program in programs:
        if not program:
            raise ValueError(f"{flag}: {command!r} names no program; give one on both sides of each &&")
        if not shutil.which(program[0]):
            raise ValueError(f"{flag}: the program {program[0]!r} is not installed; install it, or give its path")
        for word in program:
            _refuse_program_text(word, names, flag)
    return programs


def _refuse_program_text(word: str, names: tuple[str, ...], flag: str) -> None:
    """Raises ValueError for a word such as `cp {input} /tmp` of `bash -c`, in which a file name would run."""
    beside, known = _PLACEHOLDER.sub("", word), [name for name in _PLACEHOLDER.findall(word) if name in names]
    if known and not _BESIDE_PLACEHOLDER.fullmatch(beside):
        raise ValueError(
            f"{flag}: {{{known[0]}}} is part of {word!r}, where a file name could run as a program: give it as a word "
            f"of its own, bash -c '... \"$1\" ...' - {{{known[0]}}}"
        )


def run(command: str, values: dict[str, str], flag: str, segment: str) -> str:
    """Runs a command, see `parse`, with a value for each {NAME}, and returns the output of its programs.

    A value is inserted once, inside one argument, and never becomes a flag: if it begins with `-`, a space or, for a
    file of that name, `./` precedes it.

    Raises:
      ValueError: it fails, with the last line of its stderr.
    """
    outputs = []
    for program in parse(command, tuple(values), flag):
        words = [_fill(word, values) for word in program]
        try:
            process = subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL)
        except (OSError, ValueError) as error:  # no program file, too long, or a character that no argument can hold
            raise ValueError(f"{flag} cannot run {words[0]!r} on {segment}: {error}") from error
        output, errors = (text.decode(errors="replace") for text in (process.stdout, process.stderr))
        if process.returncode:
            last_line = (errors.strip() or output.strip() or "no message").splitlines()[-1][:200]
            raise ValueError(f"{flag} failed with {process.returncode} on {segment}: {last_line}")
        outputs.append(output)
    return "".join(outputs)


def _fill(word: str, values: dict[str, str]) -> str:
    filled = _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), word)
    if filled.startswith("-") and not word.startswith("-"):
        return ("./" if os.path.lexists(filled) else " ") + filled
    return filled


def number(command: str, values: dict[str, str], flag: str, segment: str) -> float | None:
    """Runs a command and returns the number on its last line, or None where that is "nan", an undefined value.

    Raises:
      ValueError: it fails, or prints something else.
    """
    lines = run(command, values, flag, segment).split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    try:
        value = float(last)
    except ValueError:
        raise ValueError(f"{flag} prints {last[:80]!r} for {segment}: the last line must be a number") from None
    if math.isinf(value):
        raise ValueError(f"{flag} prints {last} for {segment}: the number must be finite, or nan where it is undefined")
    return None if math.isnan(value) else value
