"""The language of the project: the field's terms, plain sentences, annotated functions."""

import pytest

from tests import prose


@pytest.mark.parametrize("name", prose.places())
def test_language(name):
    faults = [fault for path in prose.places()[name] for fault in prose.faults(path)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("name", [name for name in prose.places() if name not in ("tests", "benchmarks")])
def test_functions_are_annotated(name):
    annotated, total = prose.annotated(prose.places()[name])
    assert annotated >= prose.LEAST_ANNOTATED * total, (
        f"{annotated} of {total} arguments and results of {name} are annotated"
    )


def test_faults_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    source = tmp_path / "module.py"
    source.write_text(
        '"""A module."""\n# Whether it holds.\nshow = 0\n\n\ndef of(critic):\n    """Of all pieces."""\n\n\n'
        'class One:\n    """What it is. Who knows."""\n\n    found = 1  # what was read\n'
        '    sound_file = ""\n\n\ndef of_two(a):\n    """Returns what it holds; a file; a name.\n\n'
        '    Args:\n      a: of the file.\n    """\n'
    )
    lines = "\n".join(prose.faults(source))
    for expected in ("2: comment", "6: 'critic'", "'pieces'", "docstring of of", "opens with 'Who'"):
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
