"""Every notebook runs from its first cell to its last, and shows its figures and its audio."""

import json
import pathlib

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "docs" / "notebooks"
SETTINGS = {"STEPS": "4", "SECONDS_OF_MUSIC": "3"}  # read by the notebooks
RESULTS = {  # types of results that are shown, with their number
    "encode": {"image/png": 1, "text/html": 2},
    "train": {"image/png": 1, "text/html": 2},
    "generate": {"image/png": 1, "text/html": 2},
}


def test_every_notebook_is_tested_and_stored_without_results():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(RESULTS)
    for path in FOLDER.glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells), path


@pytest.mark.slow
@pytest.mark.parametrize("name", RESULTS)
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    for variable, value in SETTINGS.items():
        monkeypatch.setenv(variable, value)
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    failed = [output["text"] for output in outputs if "bandtok: error" in output.get("text", "")]
    assert not failed
    shown = [kind for output in outputs for kind in output.get("data", ())]
    assert {kind: shown.count(kind) for kind in RESULTS[name]} == RESULTS[name]
