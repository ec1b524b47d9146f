"""Run the notebooks of docs/ as a reader does, in a folder that holds the demo's files.

`python -m tests.notebooks FOLDER` runs them in FOLDER and writes their outputs into docs/.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "docs").glob("*.ipynb"))


def carried_out(path: Path, folder: Path) -> Any:
    """Return a notebook with the outputs of a run in `folder`, which holds runs/demo."""
    notebook = nbformat.read(path, as_version=4)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before]))
    try:
        client = NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": folder}})
        client.execute()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
        if cell.cell_type == "code":  # what libraries warn of tells of the machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def outputs(notebook: Any) -> str:
    """Return all that the cells have said, without pictures."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            found += [output.get("text", ""), data.get("text/plain", ""), data.get("text/html", "")]
    return "\n".join(found)


def machine_paths(text: str) -> list[str]:
    """Return what looks like a path of the machine that ran a notebook."""
    return re.findall(r"/(?:home|root|tmp|work|usr|Users)/\S*", text)


if __name__ == "__main__":
    for source in NOTEBOOKS:
        nbformat.write(carried_out(source, Path(sys.argv[1])), source)
