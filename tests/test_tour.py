"""docs/tour.ipynb: what it shows is of docs/ready, and it runs."""

import json
from pathlib import Path

import pytest

from model import GPT, weights_checksum
import train

PAGE = Path(train.__file__).parent / "docs" / "tour.ipynb"


def test_its_outputs_are_stored_and_of_the_base_in_docs_ready():
    cells = json.loads(PAGE.read_text(encoding="utf-8"))["cells"]
    outputs = [cell["outputs"] for cell in cells if cell["cell_type"] == "code"]
    assert len(cells) <= 10 and all(outputs)
    assert sum("image/png" in each.get("data", {}) for some in outputs for each in some) == 2
    checksum = weights_checksum(GPT.load(PAGE.parent / "ready" / "generation-base60.pt"))
    assert f"checksum {checksum}\n" in "".join(outputs[0][0]["text"])


def run():
    """The notebook with new outputs, and nothing in it that differs from run to run."""
    nbclient, nbformat, *_ = map(pytest.importorskip, (
        "nbclient", "nbformat", "ipykernel", "matplotlib"))
    notebook = nbformat.read(PAGE, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, record_timing=False, coalesce_streams=True,
                            resources={"metadata": {"path": str(PAGE.parent)}}).execute()
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def test_it_runs():
    """``python -m tests.test_tour`` stores what it shows."""
    run()


if __name__ == "__main__":
    import nbformat
    nbformat.write(run(), PAGE)
