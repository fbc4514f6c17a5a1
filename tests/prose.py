"""Faults of language in the source, the documentation and the names, for test_language.py and by hand.

python -m tests.prose [ROOM ...]    lists them

The terms are those of docs/glossary.md.
"""

import ast
from collections.abc import Iterator
import functools
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
    r"|judge[sd]?|whatever|(?<!sentence )pieces?|none such|it were|on the average",
    re.IGNORECASE,
)
_WORD = re.compile(rf"(?<![A-Za-z-])(?:{BANNED.pattern})(?![A-Za-z])", re.IGNORECASE)
_OPENING = re.compile(r"(?:^|[.!?]\s+)(Of|With what|Whether|Who|What|Whatever)\b")
_NO_PHRASE = re.compile(r"(Of|With|What|Whatever|Whether|Who|How|Where|When|From|In|By)\b")  # opens a class's docstring
# "what is left" in place of a noun. "People who" is plain English.
_CLAUSE = re.compile(
    r"(?<![\w`'\"])(?<!\bthose )(?<!\bpeople )(?<!\busers )(?<!\banyone )(what|who|whom|whoever)\b(?!\?)"
)
_MARKS = re.compile(r"[:;](?=\s)")
_FRAGMENT = re.compile(r"(?:^|[;:]) (of|likewise)\b")  # "seed: of the weights", "; of a file, its size"
_SOUND = re.compile(r"(?:^|_)sounds?(?:_|$)|Sound(?![a-z]|File)")  # SoundFile is a class of the package soundfile
LEAST_ANNOTATED = 0.9  # share of arguments and results
OWN = ("prose.py", "test_language.py")  # they hold the words as data
_FLAGS = re.compile(r"--[\w-]+|\b(?:piece_seconds|figure_piece)\b")  # the names of flags do not change
_VAGUE = {"found", "made", "one", "there", "given", "how"}  # a local name says what it holds
_NO_VERB = {"Its", "This", "Thus", "Whether", "As", "Is", "Always", "Perhaps", "Classes", "Hertz", "Plus", "Less"}
# From Python 3.12 on, the text of an f-string is a token of its own.
_READ = {tokenize.NAME, tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
_PROPERTY = {"property", "cached_property", "abstractproperty"}


def faults(path: pathlib.Path) -> Iterator[str]:
    """Yields one line for each fault of a file, `path:line: what it is`."""
    shown = path.relative_to(ROOT)
    text = path.read_text()
    if path.suffix != ".py":
        prose = re.sub(r"```.*?```|`[^`\n]*`", lambda code: "\n" * code[0].count("\n"), text, flags=re.DOTALL)
        for number, line in enumerate((prose if path.suffix == ".md" else text).split("\n"), 1):
            for word in _WORD.findall(line):
                yield f"{shown}:{number}: {word!r}"
        for paragraph in _paragraphs(text) if path.suffix == ".md" else _comments(text):
            for word in _OPENING.findall(paragraph):
                yield f"{shown}: sentence opens with {word!r}: {paragraph[:60]}"
            for fault in _sentences(paragraph):
                yield f"{shown}: {fault}"
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in _READ:
            for word in _banned(token.string, token.type == tokenize.NAME):
                yield f"{shown}:{token.start[0]}: {word!r}"
        if token.type == tokenize.NAME and _SOUND.search(token.string):
            yield f"{shown}:{token.start[0]}: {token.string!r}, where the data is called audio"
        if token.type == tokenize.COMMENT:
            for word in _OPENING.findall(token.string.lstrip("# ")):
                yield f"{shown}:{token.start[0]}: comment opens with {word!r}"
            for word in _CLAUSE.findall(token.string):
                yield f"{shown}:{token.start[0]}: {word!r} in place of a noun: {token.string[:60]}"
    tree = ast.parse(text)
    for node in ast.walk(tree):
        name = node.arg if isinstance(node, ast.arg) else getattr(node, "id", "")
        if name in _VAGUE and isinstance(getattr(node, "ctx", ast.Store()), ast.Store):
            yield f"{shown}:{node.lineno}: {name!r} does not say what it holds"
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)) and (docstring := ast.get_docstring(node)):
            number = 1 if isinstance(node, ast.Module) else node.lineno
            for word in _OPENING.findall(docstring):
                yield f"{shown}:{number}: sentence of a docstring opens with {word!r}"
            for fault in (fault for block in _entries(docstring) for fault in _sentences(block)):
                yield f"{shown}:{number}: {fault}"
            if (fault := _first_word(node, docstring)) and path.parts[-2] != "tests":
                yield f"{shown}:{number}: {fault}"


@functools.cache  # most names come again and again
def _banned(text: str, is_name: bool) -> list[str]:
    """Returns the banned words of a token."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", re.sub(_FLAGS, "", text))
    return _WORD.findall(spaced.replace("_", " ") if is_name else spaced)


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


def _sentences(paragraph: str) -> Iterator[str]:
    """Yields the faults of the sentences of a paragraph; code in it does not count."""
    for sentence in re.split(r"(?<=[.!?]) ", re.sub(r"`[^`]*`|\([^()]*\)|\[[^\[\]]*\]", "()", paragraph)):
        for word in _CLAUSE.findall(sentence):
            yield f"{word!r} in place of a noun: {sentence[:80]}"
        for words in re.findall(r"\b(?:is|are) none\b(?! of)", sentence):
            yield f"{words!r}: {sentence[:80]}"
        for word in _FRAGMENT.findall(sentence):
            yield f"fragment that opens with {word!r}: {sentence[:80]}"
        if len(_MARKS.findall(sentence)) > 1 + bool(re.match(r"[\w, ()*]{1,40}: ", sentence)):
            yield f"more than one colon or semicolon: {sentence[:80]}"


def _entries(docstring: str) -> list[str]:
    """Returns the paragraphs of a docstring, and each entry such as `name: meaning`, without blocks of code."""
    docstring = re.sub(r"(?<=\n\n)(?: {4}.*(?:\n|\Z))+", "", docstring)
    blocks, start = [], re.compile(r"\s*(?:[-*] |[\w, `*\[\]]{1,60}: |\{)")
    for line in docstring.split("\n"):
        stripped = line.strip()
        if not stripped or not blocks or (start.match(line) and line.startswith(" ")) or stripped.endswith("s:"):
            blocks.append(stripped)
        else:
            blocks[-1] += " " + stripped
    return blocks


def _comments(text: str) -> list[str]:
    """Returns the blocks of comment lines of a script."""
    blocks = re.findall(r"(?:^ *# [^\n]*\n)+", text, flags=re.MULTILINE)
    return [" ".join(line.strip("# ") for line in block.split("\n")) for block in blocks]


def _paragraphs(text: str) -> list[str]:
    """Returns the paragraphs and list items of a page, without code blocks, tables, headings and directives."""
    text = re.sub(r"```.*?```|^[|#][^\n]*$|^:::[^\n]*(?:\n {4}[^\n]*)*", "\n\n", text, flags=re.DOTALL | re.MULTILINE)
    return [" ".join(block.split()) for block in re.split(r"\n\s*\n|\n(?=[-*] )", text) if block.strip()]


@functools.cache
def places() -> dict[str, list[pathlib.Path]]:
    """Returns the files that are read, by room; the rest by their folder."""
    result: dict[str, list[pathlib.Path]] = {}
    for module, path in files().items():
        result.setdefault(room(module) or "root", []).append(path)
    for folder in ("tests", "benchmarks"):
        result[folder] = [path for path in sorted((ROOT / folder).rglob("*.py")) if path.name not in OWN]
    result["documentation"] = [
        path for path in [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))] if path.name != "glossary.md"
    ]
    scripts = sorted((ROOT / "launch").rglob("*"))
    result["scripts"] = [path for path in scripts if path.suffix in (".sh", ".yaml", ".sbatch")]
    return result


def annotated(paths: list[pathlib.Path]) -> tuple[int, int]:
    """Returns the number of annotated arguments and results of all functions, and the number of all."""
    count = total = 0
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())) if path.suffix == ".py" else ():
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                arguments = [argument for argument in arguments if argument.arg not in ("self", "cls")]
                count += sum(argument.annotation is not None for argument in arguments) + (node.returns is not None)
                total += len(arguments) + 1
    return count, total


if __name__ == "__main__":
    for name, paths in places().items():
        if not sys.argv[1:] or name in sys.argv[1:]:
            for path in paths:
                for fault in faults(path):
                    print(fault)
