"""The site of the documentation: its navigation, its Python reference, and a strict build."""

import doctest
import inspect
import os
import pathlib
import pydoc
import re
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[1]


class _Loader(yaml.SafeLoader):
    """A loader for the types of MkDocs' own tags, which are of no interest here."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)


def _pages(entries) -> list[str]:
    """Returns the pages of a navigation in order."""
    if isinstance(entries, str):
        return [entries]
    inner = entries.values() if isinstance(entries, dict) else entries
    return [page for entry in inner for page in _pages(entry)]


def test_every_page_is_in_the_navigation_once():
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(), _Loader)
    navigation, excluded = _pages(settings["nav"]), set(settings["exclude_docs"].split())
    sources = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").rglob("*.ipynb")]
    pages = {str(path.relative_to(ROOT / "docs").with_suffix(".md")) for path in sources}
    assert sorted(navigation) == sorted((pages - excluded) | {"index.md", "CONTRIBUTING.md", "CHANGELOG.md"})


def test_the_python_reference_names_what_exists():
    names = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(), re.M)
    assert len(names) >= 10
    for name in names:
        assert pydoc.locate(name), name
    members = re.search(r"members: \[(encode[^\]]*)\]", (ROOT / "docs" / "api.md").read_text())[1]
    for member in re.split(r",\s*", members):
        assert pydoc.locate(f"bandtok_jax.codecs.codec.Codec.{member}"), member


def test_the_examples_of_the_python_reference_run():
    names = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(), re.M)
    results = [doctest.testmod(module) for module in {inspect.getmodule(pydoc.locate(name)) for name in names}]
    assert sum(result.failed for result in results) == 0 and sum(result.attempted for result in results) == 9


def test_the_site_builds_without_a_warning(tmp_path):
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0 and "WARNING" not in run.stderr, run.stderr[-3000:]
    start, reference = ((tmp_path / "site" / page).read_text() for page in ("index.html", "api/index.html"))
    assert 'href="data/"' in start and "three commands" in start
    assert "float32 <code>[S]</code>" in reference or "sample_rate_hz" in reference
    # A page asks no other server.
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://(?!bandtok)', start)
