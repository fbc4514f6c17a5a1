"""The program `bandtok`: parses the command line, runs one verb, and turns its errors into one line.

A verb is a function in one of the files beside this one, and a line in `VERBS`. Modules that are slow to import are
imported inside the function that needs them, so that `bandtok --help` answers at once.
"""

import argparse
from collections.abc import Sequence
import contextlib
import gc
import os
import shutil
import signal
import sys
import threading
import warnings

from bandtok_jax.cli import audio, coding, data, demo, evaluate, messages, models, training
from bandtok_jax.cli.parser import Parser, Verb, create_parser, expand_home
from bandtok_jax.runtime import compile_cache, extras, foreign_errors, notes

# In the order of `bandtok --help`.
VERBS: dict[str, Verb] = {
    verb.name: verb
    for verb in (
        data.prepare,
        training.train,
        training.config,
        data.tokenize,
        coding.encode,
        coding.decode,
        coding.reconstruct,
        audio.generate,
        audio.edit,
        demo.demo,
        models.export,
        data.doctor,
        training.plan,
        models.import_weights,
        evaluate.evaluate,
    )
}


def parser() -> Parser:
    """Returns the parser of all verbs."""
    return create_parser(VERBS.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; returns 0, or 1 after an error of one line. Usage errors exit with 2."""
    flags, rest = parser().parse_known_args(sys.argv[1:] if arguments is None else arguments)
    if rest and not flags.takes_config:
        flags.parser.error(f"unknown arguments: {' '.join(rest)}")
    flags.rest = rest
    expand_home(flags)
    code = _run(flags, is_program=arguments is None)
    if arguments is None:
        gc.freeze()  # else Python searches all modules for garbage before it exits, which takes a third of a second
        if any(thread.name == compile_cache.COMPILING for thread in threading.enumerate()):
            _exit_at_once(code)
    return code


def _run(flags: argparse.Namespace, is_program: bool) -> int:
    missing = _first_missing(getattr(flags, "workdir", None) or getattr(flags, "output", None))
    warnings.formatwarning = messages.note
    warnings.simplefilter("default", notes.Note)  # python -W error is about the warnings of others
    compile_cache.enable()
    try:
        code = VERBS[flags.verb].run(flags) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # such as that of  bandtok config ... | head
        sys.stdout = open(os.devnull, "w")  # else the interpreter fails again at its end
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt as interruption:
        if is_program:  # its end may take a moment, and a second Ctrl-C ends it at once
            signal.signal(signal.SIGINT, lambda *_: os._exit(130))
        messages.show("; ".join(["bandtok: interrupted", *interruption.args]), file=sys.stderr)
        return 130
    except (ValueError, FloatingPointError, OSError, ImportError) as error:
        if os.environ.get("BANDTOK_DEBUG"):
            raise
        error = extras.explain(error, f"bandtok {flags.verb}", VERBS[flags.verb].extra)
        messages.show(f"bandtok: error: {messages.one_line(error)}", file=sys.stderr)
        return 1
    except Exception as error:
        line = foreign_errors.explain(error, flags.verb)
        if line is None or os.environ.get("BANDTOK_DEBUG"):
            raise
        messages.show(f"bandtok: error: {line}", file=sys.stderr)
        return 1
    finally:
        _remove_if_empty(missing)


def _exit_at_once(code: int) -> None:
    """Ends the process while threads compile programs that nobody will run: Python would wait minutes for them."""
    from bandtok_jax.training import distributed

    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    distributed.exit_immediately(code)


def _first_missing(path: str | None) -> str | None:
    """Returns the topmost folder of a local path that does not exist yet."""
    if not path or "://" in path or os.path.exists(path):
        return None
    parent = os.path.dirname(os.path.abspath(path))
    return path if os.path.exists(parent) else _first_missing(parent)


def _remove_if_empty(folder: str | None) -> None:
    """Removes a new folder without files: a verb that is refused leaves none behind."""
    if folder and os.path.isdir(folder) and not any(files for _, _, files in os.walk(folder)):
        shutil.rmtree(folder, ignore_errors=True)
