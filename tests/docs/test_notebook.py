"""The tutorial notebook runs from its first cell to its last, and was saved with outputs of such a run."""

from __future__ import annotations

import html
import os
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from evomerge.demo.pool import make_demo_pool

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def output_of(notebook: Any, part: str) -> str:
    """The text under the first cell whose code holds `part`, that of its table included."""
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code" and part in cell.source)
    text = "".join(output.get("text", output.get("data", {}).get("text/html", "")) for output in cell.outputs)
    return html.unescape(re.sub("<[^>]+>", "", text))


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / "docs" / "tiny_pool.py", tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = read()
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    gain = re.search(r"evolved +[\d.]+ +[\d.]+ +[\d.]+ +([+-][\d.]+)", output_of(notebook, "evomerge.search("))
    assert gain is not None
    assert float(gain[1]) > 0
    assert "60 candidates" in output_of(notebook, "run.evaluations")


@pytest.mark.nightly
@pytest.mark.slow
def test_a_cell_of_five_lines_is_a_whole_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that the notebook shows, on a pool of the demo's shape that has hardly been trained."""
    make_demo_pool(tmp_path / "demo_pool" / "seed0", 0, quick=True, progress=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    text = "".join(cell.source for cell in read().cells if cell.cell_type == "markdown")
    (lines,) = re.findall(r"```python\n(import evomerge\n.*?)```", text, re.DOTALL)
    assert len([line for line in lines.splitlines() if line]) <= 5
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(lines)])
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert "uniform average" in output_of(notebook, "evomerge.search")
    assert (tmp_path / "demo-model" / "model.safetensors").is_file()


def test_the_notebook_is_saved_with_its_outputs() -> None:
    notebook = read()
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    figures = [o for cell in code for o in cell.outputs if "application/vnd.plotly.v1+json" in o.get("data", {})]
    assert len(figures) == 2
    assert "evolved" in output_of(notebook, "evomerge.search(")
    assert not re.search(r"(/tmp|/home|/root|/Users|/work)\b", NOTEBOOK.read_text())
    assert "\\u001b" not in NOTEBOOK.read_text()
    assert NOTEBOOK.stat().st_size < 200_000
