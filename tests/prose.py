"""Faults of language in the source, the documentation and the names, for test_language.py and by hand.

python -m tests.prose [ROOM ...]    lists them

The terms are those of docs/glossary.md.
"""

import ast
from collections.abc import Iterator
import io
import pathlib
import re
import sys
import tokenize

from tests.import_graph import ROOT, files, room

# In prose and in names. A word of another field has another meaning here, or the glossary has a term for it.
BANNED = re.compile(
    r"critics?|players?|pictures?|so[ _]many|anew|at[ _]hand|in[ _]vain|by[ _]heart|meanwhile|told|hears?|heard|astray"
    r"|goes on|going on|go on|went on|tak(?:e|en|es|ing) up again|as they are|facts?|verdicts?|slopes?|opinions?"
    r"|judge[sd]?|whatever|pieces?|none such|it were",
    re.IGNORECASE,
)
_WORD = re.compile(rf"(?<![A-Za-z])(?:{BANNED.pattern})(?![A-Za-z])", re.IGNORECASE)
_OPENING = re.compile(r"(?:^|[.!?]\s+)(Of|With what|Whether|Who|What|Whatever)\b")
_NO_PHRASE = re.compile(r"(Of|With|What|Whatever|Whether|Who|How|Where|When|From|In|By)\b")  # opens a class's docstring
_NO_VERB = {"Its", "This", "Thus", "Whether", "As", "Is", "Always", "Perhaps", "Classes", "Hertz", "Plus", "Less"}
# From Python 3.12 on, the text of an f-string is a token of its own.
_READ = {tokenize.NAME, tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
_PROPERTY = {"property", "cached_property", "abstractproperty"}


def faults(path: pathlib.Path) -> Iterator[str]:
    """Yields one line for each fault of a file, `path:line: what it is`."""
    shown = path.relative_to(ROOT)
    text = path.read_text()
    if path.suffix != ".py":
        for number, line in enumerate(text.split("\n"), 1):
            for word in _WORD.findall(line):
                yield f"{shown}:{number}: {word!r}"
        for paragraph in _paragraphs(text):
            for word in _OPENING.findall(paragraph):
                yield f"{shown}: sentence opens with {word!r}: {paragraph[:60]}"
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in _READ:
            spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", token.string)
            for word in _WORD.findall(spaced.replace("_", " ") if token.type == tokenize.NAME else spaced):
                yield f"{shown}:{token.start[0]}: {word!r}"
        if token.type == tokenize.COMMENT:
            for word in _OPENING.findall(token.string.lstrip("# ")):
                yield f"{shown}:{token.start[0]}: comment opens with {word!r}"
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
            yield f"{shown}:{node.lineno}: a lambda with a name"
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)) and (docstring := ast.get_docstring(node)):
            number = 1 if isinstance(node, ast.Module) else node.lineno
            for word in _OPENING.findall(docstring):
                yield f"{shown}:{number}: sentence of a docstring opens with {word!r}"
            if (fault := _first_word(node, docstring)) and path.parts[-2] != "tests":
                yield f"{shown}:{number}: {fault}"


def _first_word(node: ast.AST, docstring: str) -> str:
    """Returns the fault of a docstring's first word: a function's is a verb, that of others opens a noun phrase."""
    word = re.split(r"[\s,.:;]", docstring.strip(), maxsplit=1)[0]
    names = {getattr(item, "attr", getattr(item, "id", "")) for item in getattr(node, "decorator_list", ())}
    if isinstance(node, ast.FunctionDef) and not names & _PROPERTY:
        if not re.fullmatch(r"[A-Z][a-z-]+s", word) or word in _NO_VERB:
            return f"docstring of {node.name} begins with {word!r}, not with a verb such as 'Returns'"
    elif _NO_PHRASE.match(docstring):
        return f"docstring begins with {word!r}, not with a noun phrase"
    return ""


def _paragraphs(text: str) -> list[str]:
    return [" ".join(block.split()) for block in re.split(r"\n\s*\n|```.*?```", text, flags=re.DOTALL)]


def places() -> dict[str, list[pathlib.Path]]:
    """Returns the files that are read, by room; the rest by their folder."""
    found: dict[str, list[pathlib.Path]] = {}
    for module, path in files().items():
        found.setdefault(room(module) or "root", []).append(path)
    for folder in ("tests", "benchmarks"):
        found[folder] = [path for path in sorted((ROOT / folder).rglob("*.py")) if path.name not in ("prose.py",)]
    found["documentation"] = [
        path for path in [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))] if path.name != "glossary.md"
    ]
    scripts = sorted((ROOT / "launch").rglob("*"))
    found["scripts"] = [path for path in scripts if path.suffix in (".sh", ".yaml", ".sbatch")]
    return found


if __name__ == "__main__":
    for name, paths in places().items():
        if not sys.argv[1:] or name in sys.argv[1:]:
            for path in paths:
                print(*faults(path), sep="\n", end="\n" * any(True for _ in faults(path)))
