"""The notebooks: `python docs/notebooks/make.py [FILE.ipynb …]` runs them on the torch engine and keeps the outputs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
NOTEBOOKS = sorted(HERE.glob("*.ipynb"))


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run in a process of its own."""
    notebook = nbformat.read(path, as_version=4)
    environment = {
        **os.environ,
        "PYNODE_ENGINE": "torch",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(HERE.parents[1]),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    client = NotebookClient(
        notebook, timeout=600, record_timing=False, coalesce_streams=True
    )
    return client.execute(cwd=str(HERE), env=environment)


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:] or NOTEBOOKS):
        nbformat.write(executed(path), path)
