"""The table of tracks (`--tracks=CSV`), a user's description of the files, with its checks.

A comma, a semicolon or a tab separates the cells, as spreadsheets of different languages write them. Names of columns
may have any case and spaces around them. Anything unknown is an error or a note, and never left out in silence.
"""

from collections.abc import Iterator, Sequence
import csv
from dataclasses import dataclass, field
import difflib
import io
import os
import unicodedata

from bandtok_jax.runtime import untrusted

COLUMNS = ("file", "split", "licence", "caption", "domain", "ends", "lyrics", "kind")
SPLITS = ("train", "validation", "test")
CURE = "mend that line, or save the table again as 'CSV UTF-8'"
_DELIMITERS = (",", ";", "\t", "|")
# Names that other programs use for a column. Near misses of its own name are recognised besides.
_OTHER_NAMES = {
    "filename": "file", "file_name": "file", "path": "file", "filepath": "file", "name": "file", "track": "file",
    "description": "caption", "text": "caption", "prompt": "caption", "tags": "caption",
    "subset": "split", "fold": "split", "lrc": "lyrics",
}  # fmt: skip
_NEAR = 0.75  # of difflib: "licens" is near "licence" (0.77), "seconds" is not near "ends" (0.73); our choice
_YES_OR_NO = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
_MOST_BYTES = 1 << 28
_SHOWN = 5  # lines or names of many


@dataclass
class TrackRow:
    """The values of a line of the table; "" and None for empty cells."""

    line: int
    split: str = ""
    licence: str = ""
    caption: str = ""
    domain: str = ""
    ends: bool | None = None
    lyrics: str = ""  # absolute path of an .lrc file
    labels: dict[str, str] = field(default_factory=dict)  # cells of other columns


@dataclass
class TrackTable:
    """Rows by the `name_key` of their file, and notes for the user.

    Args:
      used: {name in the table: the tracks that it stands for}.
    """

    path: str
    rows: dict[str, TrackRow] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    used: dict[str, list[str]] = field(default_factory=dict)

    def row(self, names: Sequence[str], track: str) -> TrackRow | None:
        """Returns the row of a track whose file has these names, by the first that the table has."""
        for name in map(name_key, names):
            if name in self.rows:
                self.used.setdefault(name, []).append(track)
                return self.rows[name]
        return None

    def unused(self) -> list[str]:
        """Returns the names that no track has, in the order of the table."""
        return [name for name in self.rows if name not in self.used]

    def finish(self, tracks: list[str]) -> None:
        """Adds a note with the number of described tracks and of their captions, splits and domains.

        Raises:
          ValueError: the table describes no track.
        """
        if tracks and not self.used:
            raise untrusted.refusal(
                self.path,
                f"none of its {len(self.rows)} rows names a file of the sources, the first "
                f"{_quoted(next(iter(self.rows)))}",
                f"write names such as {_quoted(tracks[0])}",
            )
        counts = {"captions": 0, "splits": 0, "domains": 0, "lyrics": 0}
        for name, described in self.used.items():
            row = self.rows[name]
            for fields, cell in zip(counts, (row.caption, row.split, row.domain, row.lyrics)):
                counts[fields] += len(described) * bool(cell)
        summary = ", ".join(f"{fields} for {count}" for fields, count in counts.items())
        total = sum(map(len, self.used.values()))
        self.notes.append(f"{os.path.basename(self.path)} has rows for {total} of {len(tracks)} tracks: {summary}")


def name_key(name: str) -> str:
    """Returns the form of a file's name that is compared, since file systems write accents in two ways."""
    return unicodedata.normalize("NFC", os.path.normpath(name).replace(os.sep, "/"))


def read_table(path: str | os.PathLike) -> TrackTable:
    """Reads a table.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a mistake in the table; with the line, the reason and the cure.
    """
    path = os.fspath(path)
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"--tracks={path}: there is no such file; leave it out to split by a hash of each track's name"
        )
    table = TrackTable(path)
    with untrusted.reading(path, CURE):
        lines = _cells(path)
        header, columns = _header(lines, table)
        nameless = [line for line, cells in lines if not _add(line, cells, header, columns, table)]
        if not table.rows:
            raise ValueError("no line below the header names a file")
    if nameless:
        table.notes.append(f"{os.path.basename(path)}: no file is named in line {_listed(nameless)}")
    return table


def _cells(path: str) -> Iterator[tuple[int, list[str]]]:
    """Yields (number of the line, cells) of a table, with the delimiter that makes a column `file` of the header."""
    try:
        text = untrusted.read_bytes(path, _MOST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8; save it as UTF-8 (spreadsheets call that 'CSV UTF-8')") from None
    header = next((line for line in text.splitlines() if line.strip()), "")
    choices = [choice for choice in _DELIMITERS if choice in header]
    delimiter = next((choice for choice in choices if "file" in _names(header.split(choice))), (choices + [","])[0])
    # Strict: a quote that is never closed would swallow the rest of the table.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            reasons = {"unexpected end of data": "a quote is opened there and never closed"}
            raise ValueError(f"line {line}: {reasons.get(str(error), error)}") from None
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield line, [cell.strip() for cell in cells]


def _names(cells: Sequence[str]) -> list[str]:
    return [cell.strip().strip('"').strip().casefold() for cell in cells]


def _header(lines: Iterator[tuple[int, list[str]]], table: TrackTable) -> tuple[list[str], dict[str, int]]:
    """Returns the names of all columns and {known name: its position}, and adds a note about unknown ones."""
    _, cells = next(lines, (0, []))
    names = _names(cells)
    columns = {name: names.index(name) for name in COLUMNS if name in names}
    if twice := [name for name in columns if names.count(name) > 1]:
        raise ValueError(f"two columns have the name {twice[0]}: leave one out")
    unknown = [name for name in names if name and name not in COLUMNS]
    for name in unknown:
        near = difflib.get_close_matches(name, COLUMNS, 1, _NEAR)
        column = near[0] if near else _OTHER_NAMES.get(name)
        if column and column not in columns:
            raise ValueError(
                f"it has no column {column!r} but {_quoted(name)}: name it {column}, "
                f"or x-{name[:20]} for another purpose"
            )
    if "file" not in columns:
        raise ValueError(f"it has no column 'file', but {_listed(names)}; the columns are {', '.join(COLUMNS[:-1])}")
    if unknown:
        table.notes.append(
            f"{os.path.basename(table.path)}: only `bandtok evaluate probe` reads {_listed(unknown)}; "
            f"the columns are {', '.join(COLUMNS[:-1])}"
        )
    return names, columns


def _add(line: int, cells: list[str], header: list[str], columns: dict[str, int], table: TrackTable) -> bool:
    """Adds a line to the rows of a table, and returns whether it names a file."""
    if any(cells[len(header) :]):
        raise ValueError(f"line {line} has {len(cells)} cells below {len(header)} columns: put quotes around commas")
    values = {name: cells[column] if column < len(cells) else "" for name, column in columns.items()}
    if not values["file"]:
        return False
    split, ends = values.get("split", "").casefold(), values.get("ends", "").casefold()
    if split and split not in SPLITS:
        raise ValueError(f"line {line} has the split {_quoted(split)}; write {', '.join(SPLITS)} or nothing")
    if ends and ends not in _YES_OR_NO:
        raise ValueError(f"line {line} has {_quoted(ends)} under ends; write yes, no or nothing")
    lyrics = values.get("lyrics", "")
    if lyrics and not os.path.isfile(lyrics := os.path.join(os.path.dirname(os.path.abspath(table.path)), lyrics)):
        raise ValueError(f"line {line} has the lyrics {_quoted(lyrics)}: there is no such .lrc file beside the table")
    row = TrackRow(
        line=line,
        split=split,
        licence=values.get("licence", ""),
        caption=values.get("caption") or values.get("kind", ""),
        domain=values.get("domain", ""),
        ends=_YES_OR_NO.get(ends),
        lyrics=lyrics,
        labels={name: cell for name, cell in zip(header, cells) if name not in COLUMNS and name and cell},
    )
    before = table.rows.setdefault(name_key(values["file"]), row)
    if before is not row and (row.__dict__ | {"line": 0}) != (before.__dict__ | {"line": 0}):
        raise ValueError(f"lines {before.line} and {line} differ about {_quoted(values['file'])}: keep one")
    return True


def _quoted(name: str) -> str:
    return f"'{untrusted.printable(name, 60)}'"


def _listed(values: Sequence[str | int]) -> str:
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    shown = [_quoted(value) if isinstance(value, str) else str(value) for value in values[:_SHOWN]]
    return (", ".join(shown) or "nothing") + more
