"""An installation without extras serves the use of models, and each verb names the extra that it lacks."""

import ast
import sys

import numpy as np
import pytest
import soundfile

import bandtok_jax
from bandtok_jax.pretrained import export_folder
from bandtok_jax.runtime import extras
from tests import import_graph, installed_packages, tiny

WITHOUT_MODULES = {"", "cuda12", "cuda13", "docs", "gpu", "test"}  # extras whose modules this package does not import
NARROWED = {("onnx", "jax")}  # extras that bound the version of a package which every installation has


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Returns the folder of an export with a language model."""
    folder = tmp_path_factory.mktemp("models") / "mine"
    export_folder.save_codec(tiny.with_language_model(tiny.drawn_codec()), folder)
    return folder


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    folder = tmp_path_factory.mktemp("music")
    for number in range(4):
        tone = 0.3 * np.sin(2 * np.pi * 220 * (number + 1) * np.arange(3 * 44_100) / 44_100)
        soundfile.write(folder / f"{number}.wav", tone, 44_100)
    return folder


def test_the_table_of_modules_is_that_of_setup_cfg():
    listed = installed_packages.requirements()
    assert set(extras.MODULES) == listed.keys() - WITHOUT_MODULES
    for extra, modules in extras.MODULES.items():
        own = {line.name for line in listed[extra] if line.name != installed_packages.PACKAGE}
        names = {installed_packages.MODULES.get(name, name.replace("-", "_")) for name in own}
        assert (
            names - {package for narrowing, package in NARROWED if narrowing == extra} == set(modules)
            or extra == "tpu"
            and names == {"jax"}
        )
    bounds = {}
    for extra, line in ((extra, line) for extra, lines in listed.items() for line in lines if not line.extras):
        if (extra, line.name) in NARROWED:
            continue
        assert bounds.setdefault(line.name, line.specifier) == line.specifier, line.name
    assert installed_packages.with_included({"test"}) >= {"data", "eval", "hub", "stablehlo", "train"}


def test_every_import_is_of_a_declared_package():
    declared = installed_packages.modules(set()) | {name for names in extras.MODULES.values() for name in names}
    known = declared | set(sys.stdlib_module_names) | {"bandtok_jax"}
    assert not {(file, top) for file, top in _imports() if top not in known}


def _imports():
    """Yields each module of this package with each top-level module that it imports, inside functions too."""
    for module, path in import_graph.files().items():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            yield from ((module, name.partition(".")[0]) for name in names)


def test_use_needs_no_extra_and_other_verbs_name_theirs(model, music, tmp_path):
    song, chosen = music / "0.wav", f"--model={model}"
    used = [
        ["encode", song, chosen, "-o", tmp_path / "song.bt"],
        ["decode", tmp_path / "song.bt", chosen, "-o", tmp_path / "song.wav"],
        ["reconstruct", song, chosen, "-o", tmp_path / "copy.wav"],
        ["generate", chosen, "--seconds=0.2", "-o", tmp_path / "new.wav"],
    ]
    refused = [
        ("data", ["prepare", music, "-o", tmp_path / "records"]),
        ("data", ["doctor", f"--data={tmp_path}"]),
        ("train", ["train", "--config=vocos:tiny", f"--workdir={tmp_path / 'run'}"]),
        ("train", ["tokenize", chosen, f"--data={tmp_path}", "-o", tmp_path / "tokens"]),
        ("eval", ["evaluate", f"--codec={model}", "--data", song, "-o", tmp_path / "report"]),
    ]
    results = installed_packages.run("", *used, *(command for _, command in refused))
    assert [code for code, _ in results[: len(used)]] == [0] * len(used), results
    lines = [
        f"bandtok: error: bandtok {command[0]} needs array_record: pip install 'bandtok-jax[{extra}]'"
        for extra, command in refused
    ]
    assert results[len(used) :] == [(1, line) for line in lines]


def test_python_names_the_extra_of_a_run(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "orbax", None)
    with pytest.raises(ImportError, match=r"a run needs orbax: pip install 'bandtok-jax\[train\]', or give an export"):
        bandtok_jax.load(tmp_path)


def test_other_errors_are_left_alone():
    for error in (ValueError("x"), ImportError("no jaxlib"), ModuleNotFoundError("No module named 'x'", name="x")):
        assert extras.explain(error, "bandtok train") is error
    error = ModuleNotFoundError("No module named 'grain.python'", name="grain.python")
    assert str(extras.explain(error, "bandtok plan", "eval")) == (
        "bandtok plan needs grain: pip install 'bandtok-jax[eval]'"
    )


@pytest.mark.slow
@pytest.mark.parametrize("chosen", ["data", "train", "eval"])
def test_an_extra_holds_what_its_verbs_import(chosen, model, music, tmp_path):
    records, run = tmp_path / "records", tmp_path / "run"
    prepare = [
        ["prepare", music, "-o", records, "--workers=1", "--clip-seconds=2", "--validation-share=0.5"],
        ["doctor", f"--data={records}"],
    ]
    if chosen == "eval":
        installed_packages.run("data", *prepare)
    sizes = ["--config.total_steps=2", "--config.batch_size=2", "--config.evaluate_every=1", "--config.data.workers=0"]
    commands = {
        "data": prepare,
        "train": [
            *prepare,
            ["train", "--config=bandtok:tiny", f"--workdir={run}", f"--config.data.sources={records}", *sizes],
            ["tokenize", f"--model={run}", f"--data={records}", "-o", tmp_path / "tokens"],
            ["export", run, "-o", tmp_path / "exported"],
        ],
        "eval": [
            ["evaluate", f"--codec={model}", f"--data={records}", "-o", tmp_path / "report", "--workers=1"],
            ["evaluate", "tokens", f"--codec={model}", "--data", music, "-o", tmp_path / "tokens"],
        ],
    }
    results = installed_packages.run(chosen, *commands[chosen])
    assert [code for code, _ in results] == [0] * len(results), results
