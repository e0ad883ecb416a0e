"""Directions of another run: the same answers, and what does not fit is refused."""

import numpy as np
import pytest
import torch

from gating.pipeline import reused_directions


def test_directions_of_another_run_give_the_same_answers_as_extracting_them(command, tmp_path):
    import gating

    asked = ("model=tiny-llama", "data.n=2", "controls.random=1", f"runs_dir={tmp_path}")
    own = command(*asked)[1][-1].removeprefix("store: ")
    code, lines = command(*asked, f"directions.source={own}")
    assert code == 0
    a, b = gating.open_run(own), gating.open_run(lines[-1].removeprefix("store: "))
    assert a.attrs["key"] != b.attrs["key"]
    assert (a["outcomes"]["token_ids"] == b["outcomes"]["token_ids"]).all()


@pytest.mark.parametrize(("more", "says"), [
    (["steer=evil"], "has no direction 'evil'"),
    (["directions.questions=3"], "made from other texts"),
    (["steer.direction=compliant@-2"], "has no direction"),
])  # fmt: skip
def test_directions_that_do_not_fit_are_refused_by_name(command, tmp_path, more, says):
    asked = ("model=tiny-llama", "data.n=2", "controls.random=1", f"runs_dir={tmp_path}")
    own = command(*asked)[1][-1].removeprefix("store: ")
    code, lines = command(*asked, f"directions.source={own}", *more)
    assert code == 2
    assert says in " ".join(lines)


def test_models_differ_by_their_signatures_and_not_by_their_rounding():
    import xarray as xr

    def signed(values, dtype="float32"):
        return xr.Dataset({"signature": (("layer", "hidden"), values)}, attrs={"dtype": dtype})

    v = np.random.default_rng(0).standard_normal((3, 8)).astype("float32")
    a, rounded, other = (
        signed(v),
        signed(torch.tensor(v).bfloat16().float().numpy(), "bfloat16"),
        signed(v[::-1].copy()),
    )
    assert reused_directions.distance(a, rounded) < reused_directions.tolerance(a, rounded)
    assert reused_directions.distance(a, other) > reused_directions.tolerance(a, other)
    assert reused_directions.distance(a, signed(v[:2])) is None


def test_a_store_that_was_begun_with_other_weights_under_the_same_name_is_not_gone_on_with(command, tmp_path):
    from gating import store

    asked = ("model=tiny-llama", "data.n=2", "controls.random=1", f"runs_dir={tmp_path}")
    path = store.locate(command(*asked)[1][-1].removeprefix("store: "))
    begun = store.read_group(path, "model")
    store.add_group(path, "model", begun.assign(signature=-begun["signature"]))
    store.set_attrs(path, {"status": "running"})
    code, lines = command(*asked)
    assert code == 2
    assert "was begun with other weights" in " ".join(lines)


DERIVED = "+directions.derived={rest: {of: compliant, orthogonal_to: refusal}}"


def test_derived_directions_are_made_of_the_other_runs_whether_it_has_them_or_not(command, tmp_path):
    import gating

    asked = ("model=tiny-llama", "data.n=2", "controls.random=0", "directions.extra=[refusal]", f"runs_dir={tmp_path}")
    plain = command(*asked)[1][-1].removeprefix("store: ")
    derived = command(*asked, DERIVED, "steer.direction=rest")[1][-1].removeprefix("store: ")
    answers = []
    for source in (plain, derived):
        code, lines = command(*asked, DERIVED, "steer.direction=rest", f"directions.source={source}")
        assert code == 0, lines
        answers.append(gating.open_run(lines[-1].removeprefix("store: ")))
    for run in answers:
        assert (run["outcomes"]["token_ids"] == gating.open_run(derived)["outcomes"]["token_ids"]).all()
        assert run["directions"]["direction"].values.tolist() == ["compliant", "refusal", "rest"]
        rest = run["directions"].sel(direction="rest")
        assert abs(rest["cosine"].sel(other="refusal")).max() < 1e-5
        assert rest["role"] == "derived" and np.isnan(rest["projection_positive"]).all()
        assert np.isfinite(run["directions"]["projection_positive"].sel(direction="compliant")).all()
