"""CONTRIBUTING.md says where each thing is added; here one of each is added, by its entry alone."""

import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from gating import store
from gating.figures import gallery
from gating.figures.base import Picture
from gating.judging import kinds
from gating.models import sources
from gating.steering import edits, ops
from gating.steering.direction_methods import METHODS, Method

ROOT = Path(__file__).parent.parent
ROWS = re.findall(r"^\| (an? [^|]+?) \| ([^|]+?) \| ([^|]+?) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)


def test_the_guide_has_a_row_for_each_thing_that_is_added():
    wanted = {"an operation on activations", "a label", "a judge", "a direction method", "a readout", "a model"}
    assert wanted | {"a picture", "an experiment"} <= {what for what, _, _ in ROWS}


@pytest.mark.parametrize(("what", "entry", "place"), ROWS)
def test_the_place_that_the_guide_names_is_there(what, entry, place):
    path = ROOT / place
    if entry == "a file":
        assert path.is_dir() and list(path.glob("*.yaml"))
    else:
        assert path.is_file() and hasattr(import_module(place.removesuffix(".py").replace("/", ".")), entry.strip("`"))


def test_an_operation_a_method_and_a_readout_work_by_their_entries_alone(command, monkeypatch):
    def shifted(h, c, w, p, t):
        return (c * w).expand(-1, h.shape[1], -1) / 2

    def read_largest(site):
        return site["last"].abs().amax(dim=-1).detach().cpu()

    monkeypatch.setitem(edits.OPERATIONS, "half_add", edits.operation(shifted, coef=1.0, writes="vector", signed=True))
    monkeypatch.setitem(
        ops.READOUTS, "largest", ops.readout(read_largest, ("layer",), "residual stream", "largest entry")
    )
    flipped = Method(lambda sides: sides.negative_mean - sides.positive_mean, needs_rows=False)
    monkeypatch.setitem(METHODS, "flipped", flipped)
    small = ("model=tiny-llama", "data.n=2", "directions.n=4", "directions.questions=2", "controls.random=1")
    code, lines = command(*small, "steer.op=half_add", "directions.method=flipped", "readouts.extra=[largest]")
    assert code == 0, lines
    run = store.open_run(lines[-1].removeprefix("store: "))
    assert (
        run["readouts"]["largest"].dims == ("condition", "prompt", "layer")
        and np.isfinite(run["readouts"]["largest"]).all()
    )
    assert run["readouts"]["largest"].attrs["units"] == "residual stream"
    assert set(run["directions"]["method"].values.tolist()) == {"flipped"}
    assert run["conditions"]["op"].sel(condition="compliant") == "half_add"


def test_a_picture_is_drawn_by_its_entry_alone(monkeypatch):
    from matplotlib.figure import Figure

    from tests import synthetic

    picture = Picture(
        "outcomes",
        "method.md",
        "new",
        lambda run: True,
        lambda run, h: Figure(),
        lambda run, h: "nothing",
        lambda run: "A picture.",
    )
    monkeypatch.setattr(gallery, "REGISTRY", (picture,))
    drawn = gallery.pictures(synthetic.tree({"baseline": [0, 1]}), True)
    assert list(drawn) == ["new"] and drawn["new"].caption == "A picture."


def test_a_model_source_and_a_kind_of_judge_are_known_by_their_entries_alone(monkeypatch, tmp_path):
    from gating.models import ModelConfig

    monkeypatch.setitem(sources.SOURCES, "mine", sources.SOURCES["tiny"])
    assert sources.source(ModelConfig(kind="mine", architecture="llama")).sizes()["layers"] == 5
    monkeypatch.setitem(kinds.KINDS, "mine", kinds.KINDS["rule"])
    path = tmp_path / "mine.yaml"
    path.write_text("kind: mine\nsays: the rule under another name\n")
    assert kinds.load(str(path)).kind == "mine"
