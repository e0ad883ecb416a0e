"""Every cell of the notebooks runs, in order, as it stands but for the model, which is one whose truth is known."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "docs/notebooks").glob("*.ipynb"))


def cells(path):
    return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for source in cells(path):
        exec(compile(source.replace('model = "smollm"', 'model = "planted"'), path.name, "exec"), names)
    assert names["run"].folder.is_dir()


def test_notebooks_are_kept_without_outputs():
    kept = [json.loads(path.read_text())["cells"] for path in NOTEBOOKS]
    assert len(kept) == 2 and not [c for cells in kept for c in cells if c.get("outputs")]


def test_a_picture_is_six_lines_away():
    (quick,) = (p for p in NOTEBOOKS if p.stem == "quick-start")
    assert len([line for line in cells(quick)[0].splitlines() if line.strip()]) <= 6
