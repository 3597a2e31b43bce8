"""The Recorder in a notebook, with a real kernel: the card, and a cell that runs again."""

from __future__ import annotations

from pathlib import Path

import pytest

from initscope.store import Runs

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")
pytestmark = pytest.mark.timeout(900)

SETUP = """
import os, torch, torch.nn.functional as F
from initscope import Recorder
x, y = torch.randn(12, 6), torch.randint(3, (12,))
def hooks():
    return sum(len(p._post_accumulate_grad_hooks or {}) for p in model.parameters())
def train(steps):
    for _ in range(steps):
        optimizer.zero_grad(); loss = F.cross_entropy(model(x), y); loss.backward(); optimizer.step(); recorder.step(loss)
"""  # noqa: E501
NEW_MODEL = """
model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)); optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
"""  # noqa: E501
OPEN = "recorder = Recorder(model, optimizer, name='again', quiet=True).__enter__(); train(3)\nrecorder"


def run_cells(tmp_path: Path, sources: list[str]) -> list:
    """Execute cells in order, the same source as the same cell, and give each execution's outputs."""
    notebook = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    )
    client = nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3")
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
    return [cell.outputs for cell in notebook.cells]


def text(outputs: list) -> str:
    return "".join(output.get("text", "") for output in outputs)


def html(outputs: list) -> str:
    return "".join(output.get("data", {}).get("text/html", "") for output in outputs)


def test_a_cell_that_runs_again_closes_what_it_left_open(tmp_path, runs):
    """The model in a cell of its own, so that the same one is recorded again; the output cache holds every
    Recorder.
    """
    outputs = run_cells(
        tmp_path,
        [
            SETUP,
            NEW_MODEL,
            OPEN,
            OPEN,
            OPEN,
            "print(hooks())",
            NEW_MODEL + OPEN,
            NEW_MODEL + OPEN,
            "print(hooks())",
        ],
    )
    assert text(outputs[5]) == text(outputs[8]) == f"{outputs[5][0]['text']}", (
        "as many hooks after three executions"
    )
    assert int(text(outputs[5])) == 4, "one a parameter"
    infos = Runs(runs.root).list()
    assert len(infos) == 5 and sorted(info.state["facts"].get("left_open", "") for info in infos)[-1]
    assert all(info.status == "stopped" and info.state["step"] == 3 for info in infos)
    shown = html(outputs[2])
    assert "Weakest gradient" in shown and "<polyline" in shown and "initscope ui --runs" in shown


def test_a_card_follows_the_training(tmp_path, runs):
    """Shown before the first step, it has the last one at the end, drawn by other cells' steps."""
    cells = [
        SETUP + NEW_MODEL,
        "recorder = Recorder(model, optimizer, quiet=True).__enter__()\nrecorder",
        "train(5)",
        "recorder.__exit__(None, None, None)",
    ]
    outputs = run_cells(tmp_path, cells)
    assert "finished after 5 steps" in html(outputs[1]), html(outputs[1])
    assert [info.status for info in Runs(runs.root).list()] == ["finished"]
