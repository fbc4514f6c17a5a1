"""The commands, links, paths and Python of the pages are valid."""

import functools
import pathlib
import re
import shlex
import subprocess

import numpy as np
import pytest

import bandtok_jax
from bandtok_jax.cli import dispatch
from bandtok_jax.commands import describe_config
from bandtok_jax.config import load, shipped
from bandtok_jax.version import VERSION
from tests import configuration_page, tiny

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

PROGRAMS = {"pip", "docker", "gcloud", "kubectl", "sky", "scancel", "squeue", "tail"}  # installed by the reader


def _blocks(language):
    return [(page, text) for page in PAGES for text in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)]


@pytest.mark.parametrize("page, text", _blocks("bash"), ids=lambda value: getattr(value, "name", "block"))
def test_every_command_is_understood(page, text):
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        words = words[next((i for i, word in enumerate(words) if not re.fullmatch(r"[A-Z_]+=\S*", word)), 0) :]
        words = words[: words.index("|")] if "|" in words else words
        if not words:
            continue
        if words[0] == "bash":
            assert (ROOT / words[1]).is_file() or words[1].startswith("launched/"), line
        elif words[0] == "python":
            assert words[1] == "-m" or (ROOT / words[1]).is_file(), line
        elif words[0] == "bandtok":
            _, rest = dispatch.parser().parse_known_args(words[1:])
            assert all(word.startswith("--config.") for word in rest), line
        else:
            assert words[0] in PROGRAMS, line


@functools.cache
def random_model():
    return tiny.drawn_codec()


@pytest.mark.parametrize("page, text", _blocks("python"), ids=lambda value: getattr(value, "name", "block"))
def test_the_python_runs(page, text, monkeypatch):
    # A page may load a model that the reader has trained: one with random weights stands in for it.
    monkeypatch.setattr(bandtok_jax, "load", lambda path="default", **_: random_model())
    names = {"audio": np.zeros(48000, np.float32)}
    exec(text, names)
    assert names["codes"].shape == (11, 16)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_every_folder_with_audio_or_weights_has_a_licence():
    patterns = [f"*.{ending}" for ending in ("ogg", "safetensors", "pt", "pth", "bin", "th")]
    run = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        pytest.skip("not a clone")
    folders = {pathlib.Path(path).parent for path in run.stdout.split("\0") if path}
    assert folders
    for folder in folders:
        # The nearest page counts, beside the files or above them, but not that of the whole repository.
        parents = [ROOT / parent for parent in (folder, *folder.parents) if parent != pathlib.Path(".")]
        pages = [parent / name for parent in parents for name in ("README.md", "LICENSE") if (parent / name).is_file()]
        assert pages and re.search("licen[cs]e", pages[0].read_text(), re.I), f"{folder} has no licence"


def test_the_citation_names_this_version():
    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md", "docs/scaling.md", "tests/README.md"])
def test_files_and_tests_that_a_page_names_exist(page):
    text = (ROOT / page).read_text()
    for path in re.findall(r"`((?:\w+/)+\w+\.(?:py|sh|yaml|json|md|svg))`", text):
        if "NAME" not in path:
            assert (ROOT / path).exists() or (ROOT / "bandtok_jax" / path).exists(), path
    for file, name in re.findall(r"`(test_\w+\.py)::(\w+)`", text):
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), name


def test_configuration_keys_of_the_pages_exist():
    keys = {key for name in shipped.list_configs() for key, _ in describe_config.flat(load.load_config(f"{name}:tiny"))}
    groups = {key.split(".")[0] for key in keys if "." in key}
    for page in PAGES:
        text = page.read_text()
        named = set(re.findall(r"--config\.((?:\w+\.)*\w+)=", text))
        named |= {key for key in re.findall(r"`(?:config\.)?((?:\w+\.)+\w+)[=`]", text) if key.split(".")[0] in groups}
        named -= {"KEY", "model.safetensors", "mel.py"}
        assert named <= keys, (page.name, named - keys)


def test_the_page_about_the_configuration_is_up_to_date():
    assert configuration_page.PATH.read_text() == configuration_page.page(), "run  python -m tests.configuration_page"
