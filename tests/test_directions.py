"""Directions recover what was planted, and say how they were made."""

import numpy as np
import pytest

from gating import personas, prompts
from gating.errors import GatingError
from gating.steering import direction_methods, direction_specs, directions
from gating.steering.directions import Extracted


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
    out = direction_methods.mean_difference(big + np.float32(0.0078125), big)
    assert np.allclose(out[0, 0], 0.0078125, atol=1e-9) and out.dtype == "float64"


def test_all_methods_find_the_planted_direction_and_agree_on_its_norm(planted):
    positive, negative, truth = planted
    mean, normal = direction_methods.mean_difference(positive, negative), direction_methods.probe(positive, negative, 0)
    for found in (mean, normal):
        assert found[0] @ truth / np.linalg.norm(found[0]) / 4 > 0.95
    assert np.allclose(np.linalg.norm(mean, axis=-1), np.linalg.norm(normal, axis=-1))


@pytest.mark.parametrize("paired", [True, False])
def test_the_first_principal_component_of_differences_has_the_sign_and_norm_of_their_mean(planted, paired):
    positive, negative, truth = planted
    component = direction_methods.principal_component(positive, negative, paired)
    swapped = direction_methods.principal_component(negative, positive, paired)
    assert component[0] @ truth / np.linalg.norm(component[0]) / 4 > 0.95 and np.allclose(component, -swapped)
    mean = direction_methods.mean_difference(positive, negative)
    assert np.allclose(np.linalg.norm(component, axis=-1), np.linalg.norm(mean, axis=-1))


def test_the_directions_group_keeps_norms_cosines_counts_and_the_sides_projections(planted):
    positive, negative, _ = planted
    v = direction_methods.mean_difference(positive, negative)
    sides = (positive.mean(0, dtype="float64"), negative.mean(0, dtype="float64"))
    made = [
        Extracted("x", v, "model", "last", "mean", "d", (3, 2), (3, 1), sides),
        Extracted("y", -2 * v, "derived", "last", "mean", "d"),
    ]
    ds = directions.assemble(made, np.array([1.0, 2.0]))
    assert np.allclose(ds["cosine"].sel(direction="x", other="y"), -1)
    assert np.allclose(ds["norm"].sel(direction="y"), 2 * ds["norm"].sel(direction="x"))
    assert ds["n_positive"].values.tolist() == [3, -1] and ds["n_distinct_negative"].values.tolist() == [1, -1]
    apart = ds["projection_positive"] - ds["projection_negative"]
    assert np.allclose(apart.sel(direction="x"), ds["norm"].sel(direction="x"), rtol=1e-5)
    assert np.isnan(apart.sel(direction="y")).all()


def test_a_part_along_and_the_rest_add_up_and_are_orthogonal(planted):
    a, b = planted[0][0].astype("float64"), planted[1][0].astype("float64")
    along, rest = directions.derive(a, b, "along"), directions.derive(a, b, "orthogonal_to")
    assert np.allclose(along + rest, a) and np.allclose((rest * b).sum(-1), 0, atol=1e-9)
    assert np.allclose(np.abs(np.einsum("lh,lh->l", directions.unit(along), directions.unit(b))), 1)


def test_permuted_labels_give_directions_that_forget_the_planted_one(planted):
    positive, negative, truth = planted
    real = directions.unit(direction_methods.mean_difference(positive, negative))[0] @ truth / 4
    for paired in (True, False):
        null = directions.unit(directions.permuted(positive, negative, paired, 50, 0))[:, 0] @ truth / 4
        assert real > 0.95 and np.abs(null).max() < real and abs(null.mean()) < 0.2


@pytest.mark.parametrize(
    ("name", "parts"),
    [("evil", ("evil", "model", "last")), ("evil:user@-2", ("evil", "user", "-2")), ("refusal", ("refusal", "refusal", "last")),
     ("a/b.yaml:i_thou", ("a/b.yaml", "i_thou", "last")), ("a:b/c.yaml", ("a:b/c.yaml", "model", "last"))],
)  # fmt: skip
def test_a_name_may_carry_a_role_and_a_position(name, parts):
    assert direction_specs.split_name(name, "last") == parts


@pytest.mark.parametrize("name", ["evil:thou", "refusal:user"])
def test_a_role_that_is_none_is_refused(name):
    with pytest.raises(GatingError, match="role"):
        direction_specs.split_name(name, "last")


def test_uncompliant_is_the_exact_reverse_of_compliant():
    a, b = (direction_specs.direction_spec(n, "last", None, [], None) for n in ("compliant", "uncompliant"))
    assert set(a.positive) == set(b.negative) and set(a.negative) == set(b.positive)


def test_fewer_questions_keep_both_sides_paired():
    c = direction_specs.direction_spec("evil", "last", None, [], 3)
    assert len(c.positive) == len(c.negative) == 3 * len(personas.load("evil").positive)
    assert [u for _, u in c.positive] == [u for _, u in c.negative]


def test_the_refusal_direction_needs_both_sides_of_the_extract_split():
    harmful = prompts.load("harmful", True, "extract")
    with pytest.raises(GatingError, match=r"directions\.harmless"):
        direction_specs.direction_spec("refusal", "last", None, harmful, None)
    both = direction_specs.direction_spec(
        "refusal@-2", "last", "S", harmful + prompts.load("harmless", False, "extract"), None
    )
    assert both.position == "-2" and both.name == "refusal@-2" and both.positive[0][0] == "S"
