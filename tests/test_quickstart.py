"""The notebook of the docs runs from top to bottom, in a kernel and a folder of its own."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

import vaezoo

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"
if not NOTEBOOK.is_file():
    pytest.skip("the docs are not part of an installed package", allow_module_level=True)


def test_it_is_kept_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    for cell in cells:
        for target in re.findall(r"\]\(([^)\s]+)\)", "".join(cell["source"])):
            assert (NOTEBOOK.parent / target).exists(), target


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbformat, which reads notebooks, is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient, which runs notebooks, is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel, which notebooks run in, is not installed")
    path = [str(Path(vaezoo.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))  # neither the reader's settings nor history
    monkeypatch.setenv("VAEZOO_DATA", str(tmp_path / "nothing"))
    monkeypatch.setenv("VAEZOO_CACHE", str(tmp_path / "nothing"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    run = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    run.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5
    printed = "".join(output.get("text", "") for output in outputs if output.get("name") == "stdout")
    assert "likelihood/elbo" in printed
    assert "Value ± standard error" in printed
    warned = "".join(output["text"] for output in outputs if output.get("name") == "stderr")
    assert "Warning" not in warned, warned
    assert (tmp_path / "runs" / "quickstart" / "report.html").is_file()
