"""Any two runs of a sweep join, whatever their sizes: what one of them has not is missing there."""

import itertools
import json
import shutil
import warnings

import numpy as np
import pytest
import xarray as xr
import yaml
import zarr
from zarr.codecs import Crc32cCodec

import gating
from gating import rejudge, store
from gating.errors import GatingError
from gating.judging import kinds
from gating.pipeline import execute, study
from gating.store.joins import flatten
from tests import eager_join, synthetic
from tests.conftest import compose

SMALL = ("data.n=2", "directions.questions=2", "directions.n=4", "controls.random=1", "max_new_tokens=2",
         "backend.batch_rows=16", "directions.extra=[]")  # fmt: skip
SWEPT = {
    "plain": (),
    "model": ("model=tiny-qwen",),
    "n": ("data.n=3",),
    "seed": ("seed=1",),
    "steer": ("steer=persona", "steer.direction=evil"),
    "layers": ("steer.layers=[1,2]",),
    "coef": ("steer.coef=[1,2]",),
    "controls": ("controls.random=2",),
    "tokens": ("max_new_tokens=3",),
    "readouts": ("readouts.tokens=true", "directions.extra=[refusal]"),
    "none": ("steer=none",),
}
PAIRS = [*itertools.combinations(SWEPT, 2)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run for each of these settings, and what was given on its command line; one of them has a judge."""
    root, out = tmp_path_factory.mktemp("sweep"), {}
    for name, more in SWEPT.items():
        given = dict(o.split("=", 1) for o in ("model=tiny-llama", *SMALL, *more))
        planned = study.prepare(*compose(*(f"{k}={v}" for k, v in given.items()), f"runs_dir={root}"))
        execute.execute(planned)
        out[name] = planned.folder
    rejudge.rejudge(out["n"], kinds.load("rule-now"))
    return out


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_two_runs_of_a_sweep_join_and_each_place_holds_its_own_runs_values(runs, a, b):
    joined = gating.open_runs([runs[a], runs[b]])
    for folder in (runs[a], runs[b]):
        run = store.open_run(folder)
        place = _place(joined, folder)
        for group in ("outcomes", "conditions", "prompts"):
            for name, own in run[group].to_dataset().load().items():
                there = joined[group][name]
                at = {d: v for d, v in place.items() if d in there.dims}
                at |= {d: run[group][d].values if d in run[group].coords else np.arange(own.sizes[d]) for d in own.dims}
                np.testing.assert_array_equal(there.sel(at).transpose(*own.dims).values, own.values, str(name))
        assert int(joined["outcomes"]["done"].sel(place).sum()) == int(run["outcomes"]["done"].sum())
    assert gating.refusal_rate(joined, harmful=True)["n"].max() >= 2


def _place(joined, folder):
    attrs = store.open_run(folder).attrs
    settings = {**flatten(yaml.safe_load(attrs["config"])), **json.loads(attrs["choices"])}
    out = {}
    for axis in joined.attrs["axes"]:
        values = joined["outcomes"][axis].values
        value = settings[axis.removeprefix("run.")]
        out[axis] = value if values.dtype.kind in "if" else str(value)
    return out


def test_several_join_at_once_and_a_judges_labels_only_where_it_judged(runs):
    several = [runs[name] for name in ("plain", "model", "n", "seed")]
    joined = gating.open_runs(several)
    own = [int(store.open_run(folder)["outcomes"]["done"].sum()) for folder in several]
    assert int(joined["outcomes"]["done"].sum()) == sum(own)
    judged = joined["judgements/rule-now"]
    assert int(judged["done"].sum()) == int(judged["done"].sel({"data.n": 3}).sum()) > 0


def test_a_join_holds_what_joining_every_value_at_once_gives_and_reads_it_in_any_order(runs):
    folders = [runs[name] for name in ("n", "model", "steer", "tokens", "readouts", "none")]
    joined = gating.open_runs(folders)
    axes, rng = joined.attrs["axes"], np.random.default_rng(0)
    opened = [store.open_run(folder) for folder in folders]
    settings = [{**flatten(yaml.safe_load(run.attrs["config"])), **json.loads(run.attrs["choices"])} for run in opened]
    for group in ("conditions", "outcomes", "directions", "readouts", "judgements/rule-now"):
        has = [
            (r[group].to_dataset().load(), s) for r, s in zip(opened, settings, strict=True) if f"/{group}" in r.groups
        ]
        whole, lazy = eager_join.join(has, axes), joined[group].to_dataset()
        own = lazy.copy(deep=True)
        some = {d: rng.integers(0, n, 4) for d, n in whole.sizes.items()} | {axes[0]: 0, axes[1]: slice(None, None, -1)}
        assert lazy.isel(some).load().identical(whole.isel(some))
        assert all(lazy[name].dtype == v.dtype for name, v in whole.variables.items())
        assert lazy.load().identical(whole) and own.load().identical(whole)
    assert {"steer", "model", "max_new_tokens"} <= set(axes) and joined["prompts"]["text"].dims == ("prompt",)


def test_a_join_names_a_file_that_was_changed_when_it_is_read_and_one_that_is_missing_at_once(runs, tmp_path):
    folders = [tmp_path / "one", tmp_path / "other"]
    for name, folder in zip(("plain", "seed"), folders, strict=True):
        shutil.copytree(runs[name], folder)
    changed = folders[1] / store.STORE / "outcomes/nll/c/0/0"
    changed.write_bytes(b"x")
    joined = gating.open_runs(folders)
    assert gating.refusal_rate(joined, harmful=True)["n"].max() >= 2
    with pytest.raises(GatingError, match=f"{changed} is not as it was written"):
        joined["outcomes"]["nll"].load()
    changed.unlink()
    with pytest.raises(GatingError, match=f"{changed} is missing"):
        gating.open_runs(folders)


def test_a_prompt_that_one_run_calls_harmful_and_another_harmless_is_refused(tmp_path):
    paths = []
    for coef, flags in ((1, [True, True]), (2, [True, False])):
        made = synthetic.tree({"baseline": [0, 1]}, harmful=flags)
        attrs = {"config": yaml.safe_dump({"steer": {"coef": coef}}), "choices": "{}", "overrides": '["steer.coef"]'}
        paths.append(tmp_path / str(coef) / store.STORE)
        paths[-1].parent.mkdir()
        store.create(paths[-1], made["prompts"].to_dataset(), made["conditions"].to_dataset(), 2, 1, attrs)
    with pytest.raises(GatingError, match="prompt p1 is harmful in one"):
        gating.open_runs(paths)


def test_a_store_opened_by_xarray_alone_is_drawn_along_its_own_coordinates(runs):
    import matplotlib

    matplotlib.use("agg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        raw = xr.open_datatree(runs["readouts"] / store.STORE, engine="zarr")
    raw["outcomes"]["refusal_score"].isel(prompt=0).plot.line("o", x="condition")
    raw["outcomes"]["nll"].plot.pcolormesh()
    raw["directions"]["cosine"].isel(layer=0).plot.pcolormesh()
    matplotlib.pyplot.close("all")


def test_every_array_of_a_store_has_a_checksum_in_its_codec(runs):
    members = zarr.open_group(runs["n"] / store.STORE, mode="r").members(max_depth=None)
    arrays = {name: a for name, a in members if isinstance(a, zarr.Array)}
    assert len(arrays) > 40 and {"outcomes/label", "directions/vector", "judgements/rule-now/label"} <= set(arrays)
    assert not [name for name, a in arrays.items() if not isinstance(a.compressors[-1], Crc32cCodec)]
