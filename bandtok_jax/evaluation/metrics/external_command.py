"""External programs, called without a shell: a file name is an argument, whatever it holds."""

import math
import os
import re
import shlex
import shutil
import subprocess

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_OPERATOR = re.compile(r"[();<>|&]+")  # of a shell; all others are words
_BESIDE_PLACEHOLDER = re.compile(r"[\w./:=,+@%^~-]*")  # no text of a program, into which a value would be pasted


def parse(command: str, names: tuple[str, ...], flag: str) -> list[list[str]]:
    """Returns the argument lists of a command, in which `{NAME}` still stand; `&&` separates programs.

    Args:
      command: words as in a shell, with its quotes but without its other operators and expansions.
      names: of the placeholders.
      flag: that gave the command, for messages.

    Raises:
      ValueError: nothing to run, an open quote, an operator of a shell, a placeholder in the text of a program, or a
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
                f"{flag}: {word!r} is for a shell, and programs run without one: put it into a script, or write "
                f"bash -c '... \"$1\" ...' - {{{names[0]}}}"
            )
        else:
            programs[-1].append(os.path.expanduser(word))
    for program in programs:
        if not program:
            raise ValueError(f"{flag}: {command!r} names no program to run; give one, on both sides of each &&")
        if not shutil.which(program[0]):
            raise ValueError(f"{flag}: the program {program[0]!r} is not installed; install it, or give its path")
        for word in program:
            _refuse_program_text(word, names, flag)
    return programs


def _refuse_program_text(word: str, names: tuple[str, ...], flag: str) -> None:
    """Raises ValueError for a word such as `cp {input} /tmp` of `bash -c`, which would run what a file is called."""
    beside, known = _PLACEHOLDER.sub("", word), [name for name in _PLACEHOLDER.findall(word) if name in names]
    if known and not _BESIDE_PLACEHOLDER.fullmatch(beside):
        raise ValueError(
            f"{flag}: {{{known[0]}}} is part of {word!r}, where a file name could run as a program: give it as a word "
            f"of its own, bash -c '... \"$1\" ...' - {{{known[0]}}}"
        )


def run(command: str, values: dict[str, str], flag: str, piece: str) -> str:
    """Runs a command, see `parse`, with each {NAME} replaced by its value; returns what its programs print.

    A value is replaced once, inside one argument, and is never read as a flag: before a `-` at its beginning stands a
    space, or `./` where a file is called so.

    Raises:
      ValueError: it fails, with the last line that it wrote to stderr.
    """
    printed = []
    for program in parse(command, tuple(values), flag):
        words = [_fill(word, values) for word in program]
        try:
            done = subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL)
        except (OSError, ValueError) as error:  # no program file, too long, or a character that no argument can hold
            raise ValueError(f"{flag} cannot run {words[0]!r} on {piece}: {error}") from error
        output, complaint = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
        if done.returncode:
            said = (complaint.strip() or output.strip() or "it said nothing").splitlines()[-1][:200]
            raise ValueError(f"{flag} failed with {done.returncode} on {piece}: {said}")
        printed.append(output)
    return "".join(printed)


def _fill(word: str, values: dict[str, str]) -> str:
    filled = _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), word)
    if filled.startswith("-") and not word.startswith("-"):
        return ("./" if os.path.lexists(filled) else " ") + filled
    return filled


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
