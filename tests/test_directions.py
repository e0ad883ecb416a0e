"""Directions recover what was planted, and say how they were made."""

import numpy as np
import pytest

from gating import directions, personas, prompts
from gating.directions import Contrast
from gating.errors import GatingError


@pytest.fixture
def planted():
    rng = np.random.default_rng(0)
    truth = np.eye(16)[3] * 4
    noise = rng.standard_normal((2, 200, 2, 16)).astype("float32")
    noise[:, :, 1] *= 3
    return noise[0] + truth.astype("float32"), noise[1], truth


def test_a_mean_difference_is_computed_in_float64_even_where_float32_means_lose_it():
    big = np.full((4000, 1, 2), 1e4, dtype="float32")
    big[:, 0, 1] += np.linspace(0, 1, 4000, dtype="float32")
    out = directions.mean_difference(big + np.float32(0.0078125), big)
    assert np.allclose(out[0, 0], 0.0078125, atol=1e-9) and out.dtype == "float64"


def test_both_methods_find_the_planted_direction_and_agree_on_its_norm(planted):
    positive, negative, truth = planted
    mean, normal = directions.mean_difference(positive, negative), directions.probe(positive, negative, 0)
    for found in (mean, normal):
        assert found[0] @ truth / np.linalg.norm(found[0]) / 4 > 0.95
    assert np.allclose(np.linalg.norm(mean, axis=-1), np.linalg.norm(normal, axis=-1))


def test_the_directions_group_keeps_norms_cosines_and_counts(planted):
    positive, negative, _ = planted
    v = directions.mean_difference(positive, negative)
    contrasts = [Contrast(n, "last", ((None, "a"),) * 3, ((None, "b"),) * 2, "d") for n in ("x", "y")]
    ds = directions.assemble(contrasts, [v, -2 * v], "mean", np.array([1.0, 2.0]))
    assert np.allclose(ds["cosine"].sel(direction="x", other="y"), -1)
    assert np.allclose(ds["norm"].sel(direction="y"), 2 * ds["norm"].sel(direction="x"))
    assert ds["n_positive"].values.tolist() == [3, 3] and ds["n_negative"].values.tolist() == [2, 2]


def test_uncompliant_is_the_exact_reverse_of_compliant():
    a, b = (directions.contrast(n, "last", None, [], None) for n in ("compliant", "uncompliant"))
    assert set(a.positive) == set(b.negative) and set(a.negative) == set(b.positive)


def test_fewer_questions_keep_both_sides_paired():
    c = directions.contrast("evil", "last", None, [], 3)
    assert len(c.positive) == len(c.negative) == 3 * len(personas.load("evil").positive)
    assert [u for _, u in c.positive] == [u for _, u in c.negative]


def test_the_refusal_direction_needs_both_sides_of_the_extract_split():
    harmful = prompts.load("harmful", True, "extract")
    with pytest.raises(GatingError, match=r"directions\.harmless"):
        directions.contrast("refusal", "last", None, harmful, None)
    both = directions.contrast("refusal@-2", "last", "S", harmful + prompts.load("harmless", False, "extract"), None)
    assert both.position == "-2" and both.name == "refusal@-2" and both.positive[0][0] == "S"
