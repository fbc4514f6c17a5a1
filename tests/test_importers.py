"""The formats of `bandtok import`: their readers, and the options and numbers of paths that are refused."""

import inspect
import pathlib

import pytest

from bandtok_jax import cli
from bandtok_jax.pretrained import importers

VOCOS = str(pathlib.Path(__file__).parent / "golden" / "vocos" / "same")


@pytest.mark.parametrize("name", importers.FORMATS)
def test_every_reader_takes_the_files_and_options_of_its_format(name):
    entry = importers.FORMATS[name]
    parameters = inspect.signature(importers.READERS.find(name, "")).parameters
    assert list(parameters)[len(entry.files) :] == list(entry.options)
    required = [parameter for parameter in parameters.values() if parameter.default is parameter.empty]
    assert len(required) == 1 and not any(parameters[option].default for option in entry.options)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([VOCOS, "--parity"], "--parity has no meaning for --from=vocos: leave it out"),
        ([VOCOS, VOCOS], "2 paths of weights, and --from=vocos reads 1: leave out the rest"),
    ],
)
def test_other_options_and_more_paths_are_refused(arguments, words, tmp_path, capsys):
    assert cli.main(["import", *arguments, "--from=vocos", "-o", str(tmp_path / "out")]) == 1
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())
