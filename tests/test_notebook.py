"""The notebook runs from its first cell to its last, and is stored with what it printed and drew."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "demo.ipynb"
_EXECUTE = """
import sys
import nbformat
from nbclient import NotebookClient

source, folder, target = sys.argv[1:]
notebook = nbformat.read(source, as_version=4)
NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": folder}}).execute()
nbformat.write(notebook, target)
"""


def outputs(notebook: dict) -> list[dict]:
    return [output for cell in notebook["cells"] for output in cell.get("outputs", [])]


def check(notebook: dict) -> None:
    """Its cells ran in order, without a line on standard error, to two plots, and thoughts carried the answers."""
    counts = [cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    found = outputs(notebook)
    assert not any(output["output_type"] == "error" or output.get("name") == "stderr" for output in found)
    assert sum("image/png" in output.get("data", {}) for output in found) == 2
    printed = "".join(text for output in found for text in output.get("text", []))
    follows = [
        int(line.split("follows the donor ")[1].split("%")[0]) for line in printed.splitlines() if "donor" in line
    ]
    assert len(follows) == 2 and min(follows) > 50


def test_stored_outputs_are_complete():
    check(json.loads(NOTEBOOK.read_text()))


@pytest.mark.slow
def test_it_runs(tmp_path):
    pytest.importorskip("nbclient", reason="the extra `notebook` is not installed")
    pytest.importorskip("matplotlib", reason="the extra `notebook` is not installed")
    target, quiet = tmp_path / "ran.ipynb", os.environ | {"PYTHONWARNINGS": "ignore", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", _EXECUTE, NOTEBOOK, NOTEBOOK.parent, target], check=True, env=quiet)
    check(json.loads(target.read_text()))
