"""Cosines, their nulls, and the shared axis, on directions with a known geometry."""

import numpy as np
import pytest
import xarray as xr

from gating.analysis import geometry
from gating.errors import GatingError
from gating.steering.directions import Extracted, assemble


def run_of(vectors, roles):
    extracted = [Extracted(n, np.array([v]), roles[n], "last", "mean", "d") for n, v in vectors.items()]
    return xr.DataTree.from_dict({"/directions": assemble(extracted, np.ones(1))})


def test_the_gaussian_bound_is_what_random_vectors_keep_to():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 4000, 64))
    cosine = np.abs((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
    run = run_of({"x": a[0], "y": b[0]}, {"x": "model", "y": "model"})
    assert abs(np.mean(cosine < float(geometry.cosines(run)["gaussian"])) - 0.95) < 0.012


def test_traits_that_share_an_axis_load_on_one_component_and_refusal_is_not_part_of_it():
    rng = np.random.default_rng(1)
    axis = np.eye(32)[0] * 5
    vectors = {f"t{i}": axis + rng.standard_normal(32) * 0.3 for i in range(4)} | {"refusal": np.eye(32)[1]}
    found = geometry.shared_axis(run_of(vectors, {n: "refusal" if n == "refusal" else "model" for n in vectors}))
    assert found["explained"].values[0, 0] > 0.9
    assert (found["loading"].values[0, :4] > 0.9).all() and abs(found["loading"].values[0, 4]) < 0.3


def test_traits_that_share_nothing_spread_over_the_components():
    vectors = {f"t{i}": np.eye(8)[i] for i in range(4)}
    found = geometry.shared_axis(run_of(vectors, dict.fromkeys(vectors, "model")))
    assert np.allclose(found["explained"].values[0], 0.25)


def test_the_sign_of_the_shared_axis_follows_from_block_to_block():
    """Half the traits lie along the axis and half against it, with a share that drifts through the middle: a sign that
    each block chose for itself (by the mean) would turn over where the mean crosses zero."""
    rng = np.random.default_rng(2)
    weights = np.array([1.0, 1.0, -1.0, -1.0])
    blocks = [[w * (1 + 0.3 * np.sign(w) * drift) * np.eye(16)[0] for w in weights] for drift in np.linspace(-1, 1, 12)]
    v = np.array(blocks) + rng.standard_normal((12, 4, 16)) * 0.05  # [block, trait, hidden]
    extracted = [Extracted(f"t{i}", v[:, i], "model", "last", "mean", "d") for i in range(4)]
    found = geometry.shared_axis(xr.DataTree.from_dict({"/directions": assemble(extracted, np.ones(12))}))
    loading = found["loading"].values
    assert ((loading[1:] * loading[:-1]).sum(1) > 0).all() and loading.mean() >= 0


def test_one_trait_has_no_shared_axis():
    with pytest.raises(GatingError, match="two traits"):
        geometry.shared_axis(run_of({"t": np.ones(4)}, {"t": "model"}))
