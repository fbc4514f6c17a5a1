"""The language of the project: the field's terms, plain sentences, annotated functions.

tests/language.json holds the number of faults that each room still has; it may only fall.
"""

import ast
import json

import pytest

from tests import prose
from tests.import_graph import ROOT

LIMITS = json.loads((ROOT / "tests" / "language.json").read_text())
LEAST_ANNOTATED = 0.9


@pytest.mark.parametrize("name", prose.places())
def test_language(name):
    faults = [fault for path in prose.places()[name] for fault in prose.faults(path)]
    allowed = LIMITS["faults"].get(name, 0)
    assert len(faults) <= allowed, "\n".join(faults)


@pytest.mark.parametrize("name", [name for name in prose.places() if name not in ("tests", "benchmarks")])
def test_functions_are_annotated(name):
    annotated = total = 0
    for path in prose.places()[name]:
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                every = [argument for argument in every if argument.arg not in ("self", "cls")]
                annotated += sum(argument.annotation is not None for argument in every) + (node.returns is not None)
                total += len(every) + 1
    share, least = annotated / max(total, 1), LIMITS["annotated"].get(name, LEAST_ANNOTATED)
    assert share >= least if total else True, f"{annotated} of {total} arguments and results of {name} are annotated"


def test_faults_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    source = tmp_path / "module.py"
    source.write_text(
        '"""A module."""\n# Whether it holds.\nshow = lambda: 0\n\n\ndef of(critic):\n    """Of all pieces."""\n\n\n'
        'class One:\n    """What it is. Who knows."""\n\n    found = 1  # what was read\n'
        '    sound_file = ""\n\n\ndef of_two(a):\n    """Returns what it holds; a file; a name.\n\n'
        '    Args:\n      a: of the file.\n    """\n'
    )
    lines = "\n".join(prose.faults(source))
    for expected in ("2: comment", "3: a lambda", "6: 'critic'", "'pieces'", "docstring of of", "opens with 'Who'"):
        assert expected in lines
    for expected in (
        "'found' does not say",
        "'what' in place",
        "'sound_file'",
        "more than one colon",
        "opens with 'of'",
    ):
        assert expected in lines
    source.write_text('"""A module."""\n\n\ndef share(codes):\n    """Returns the share of the codes in use."""\n')
    assert not list(prose.faults(source))
