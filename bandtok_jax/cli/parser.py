"""The parser of the command line: verbs with their flags, and errors that name the near miss."""

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import dataclasses
import difflib
import os
import re
from typing import Any, NoReturn

from bandtok_jax.runtime import extras
from bandtok_jax.version import VERSION

Handler = Callable[[argparse.Namespace], int | None]


@dataclasses.dataclass(frozen=True)
class Flag:
    """The arguments of one call of `ArgumentParser.add_argument`."""

    names: tuple[str, ...]
    options: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Verb:
    """A verb of the command line; see `verb`."""

    name: str
    summary: str
    example: str
    flags: tuple[Flag, ...]
    run: Handler
    takes_config: bool = False
    usage: str | None = None
    extra: str = ""


def flag(*names: str, **options: Any) -> Flag:
    """Returns a flag or positional argument of a verb; arguments as for `ArgumentParser.add_argument`."""
    return Flag(names, options)


def verb(
    name: str,
    summary: str,
    example: str,
    *flags: Flag,
    takes_config: bool = False,
    usage: str | None = None,
    extra: str = "",
) -> Callable[[Handler], Verb]:
    """Returns a decorator that makes a verb of the function that runs it.

    Args:
      name: the word after `bandtok`.
      summary: one line for the list of verbs, without a capital and a full stop.
      example: a command line.
      flags: in the order of the help text.
      takes_config: accepts `--config.KEY=VALUE`, which `flags.rest` holds; see `config_overrides`.
      usage: replaces the usage line of argparse, which knows no `--config.KEY`.
      extra: the extra of the package that brings the modules of the verb, see `runtime.extras`.
    """
    return lambda run: Verb(name, summary, example, flags, run, takes_config, usage, extra)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors name the verb or the flag that was probably meant."""

    _arguments: Sequence[str] = ()

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        # Takes `-1:2` for a value, as argparse takes -1, and not for a flag.
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parses as argparse does, and keeps the arguments for the error message."""
        self._arguments = tuple(args or ())
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Exits with 2 after a line that names the error and the near misses."""
        super().error(message + "".join(f"; {word}: did you mean {name}?" for word, name in self._near_misses()))

    def _near_misses(self) -> Iterator[tuple[str, str]]:
        """Yields each unknown verb or flag with the nearest name that exists."""
        words = [argument.partition("=")[0] for argument in self._arguments]
        if self._subparsers:
            names = [name for action in self._subparsers._group_actions for name in action.choices or ()]
            unknown = [word for word in words[:1] if not word.startswith("-") and word not in names]
        else:
            names = [name for name in self._option_string_actions if name.startswith("--")]
            unknown = [word for word in words if word.startswith("--") and word not in names]
        for word in unknown:
            yield from ((word, name) for name in difflib.get_close_matches(word, names, n=1))


def create_parser(verbs: Iterable[Verb]) -> Parser:
    """Returns the parser of the command line; its flags also hold `verb`, `parser` and `takes_config`."""
    parser = Parser(
        prog="bandtok",
        description="Train music tokenizers and language models on top of them, and use them.",
        epilog="`bandtok VERB --help` shows an example of each verb.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"bandtok-jax {VERSION}")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in verbs:
        needs = f"\n\nneeds:\n  {extras.command(verb.extra)}" if verb.extra else ""
        added = subparsers.add_parser(
            verb.name,
            help=verb.summary,
            description=f"{verb.summary[0].upper()}{verb.summary[1:]}.",
            epilog=f"example:\n  {verb.example}{needs}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            usage=verb.usage,
        )
        added.set_defaults(parser=added, takes_config=verb.takes_config)
        for flag in verb.flags:
            added.add_argument(*flag.names, **flag.options)
    return parser


def expand_home(flags: argparse.Namespace) -> None:
    """Replaces `~` by the home folder where a shell does not, as in --output=~/x and in NAME=~/x."""

    def expand(text: str) -> str:
        return re.sub(r"^([\w.-]+=)?(~[^/]*)", lambda match: (match[1] or "") + os.path.expanduser(match[2]), text)

    for name, value in vars(flags).items():
        if name == "prompt":
            continue
        if isinstance(value, str):
            setattr(flags, name, expand(value))
        elif isinstance(value, list):
            setattr(flags, name, [expand(item) if isinstance(item, str) else item for item in value])


def config_overrides(rest: list[str], parser: argparse.ArgumentParser) -> dict[str, str]:
    """Returns the keys that are set: `["--config.a.b=1", "--config.c", "2"]` -> `{"a.b": "1", "c": "2"}`."""
    overrides, remaining = {}, list(rest)
    while remaining:
        argument = remaining.pop(0)
        key, separator, value = argument.partition("=")
        if not key.startswith("--config.") or not separator and not remaining:
            parser.error(f"unknown argument {argument}; keys of the config are set by --config.KEY=VALUE")
        overrides[key.removeprefix("--config.")] = value if separator else remaining.pop(0)
    return overrides


def integers(text: str) -> tuple[int, ...]:
    """Parses `1,3,9`."""
    with _example(text, "1,3,9"):
        return tuple(map(int, text.split(",")))


def steps(text: str) -> range:
    """Parses `100:105`."""
    with _example(text, "100:105"):
        first, last = map(int, text.split(":"))
        if not 0 < first < last:
            raise ValueError
        return range(first, last)


def interval(text: str) -> tuple[float | None, float | None]:
    """Parses `4:8`, `4:`, `:8` and `:`."""
    with _example(text, "4:8, 4: or :8"):
        first, last = (float(part) if part else None for part in text.split(":"))
        return first, last


@contextlib.contextmanager
def _example(text: str, example: str) -> Iterator[None]:
    """Turns a ValueError into the usage error of a value, with an example."""
    try:
        yield
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be read: write it as {example}") from None
