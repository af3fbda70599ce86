"""The notebooks run from the first cell to the last, offline, and are stored without outputs."""

import json
import re
from pathlib import Path

import pytest

BOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_ends_with_its_results(path, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    import nbformat

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    book = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        book, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    shown = json.dumps(outputs)
    charts = [o for o in outputs if "image/svg+xml" in o.get("data", {})]
    if path.stem == "law":
        assert len(charts) == 2
        assert "For a student of 60M at 1.6B tokens: 200M." in shown
        assert "the student lies 62.5 times beyond the runs" in shown  # so it abstains
    else:
        assert len(charts) == 1
        losses = [float(x) for x in re.findall(r"validation loss [\d.]+ to ([\d.]+)", shown)]
        teacher, student = losses[0], losses[1]
        assert max(teacher, student) < 2.0  # log of 40 words is 3.7


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
