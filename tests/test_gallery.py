"""Every picture of a run that holds all there is: none is cut, none lies, each says what it leaves out."""

import itertools
import re

import numpy as np
import pytest

from gating.figures import base, gallery, kl
from tests import synthetic
from tests.synthetic import named_conditions
from tests.test_figures import NAMES, PERSONA, steered


def many():
    """Forty conditions and more with all that a run may hold: two grids of steering, long names, knock-outs with
    nulls."""
    grid = steered(layers=["1", "2-3"], coef=[float(c) for c in range(1, 9)])
    knocked = {"direction": "compliant", "op": "ablate", "layers": [3, 4], "random": 6}
    specs = {"a-knock-out-with-a-long-name-of-its-own": [{**PERSONA, "layers": [1, 2]}, knocked],
             "any": [{**PERSONA, "direction": "random", "random": 6}],
             **{f"trait_{i}": [{**PERSONA, "coef": float(i)}] for i in range(1, 5)}}  # fmt: skip
    conditions = [*grid, *named_conditions(specs, NAMES, 6, 50)]
    directions = ["compliant", "refusal", *(f"a-trait-called-{i}" for i in range(10))]
    rng = np.random.default_rng(2)
    labels = {c.name: rng.integers(0, 4, 14).tolist() for c in conditions}
    run = synthetic.tree(
        labels, [True] * 11 + [False] * 3, list("aaaaabbbbbcdde"), conditions, directions=directions, permutations=20
    )
    run["outcomes"]["refusal_score"].values[:] = rng.standard_normal(run["outcomes"]["refusal_score"].shape)
    return run


@pytest.fixture(scope="module")
def all_pictures():
    run = many()
    assert run["conditions"].sizes["condition"] > 40
    return gallery.pictures(run, True)


def boxes(made):
    """Where each piece of text stands, axis by axis: {what: boxes}; of texts that lie within the view."""
    made.draw_without_rendering()
    out = {}
    for number, ax in enumerate(ax for ax in made.axes if ax.get_visible()):
        for what, axis, at in (("x", ax.xaxis, 0), ("y", ax.yaxis, 1)):
            shown = [t for t in axis.get_ticklabels() if t.get_text() and t.get_visible()]
            low, high = sorted((ax.get_xlim(), ax.get_ylim())[at])
            out[number, what] = [t for t in shown if low <= t.get_position()[at] <= high]
        out[number, "text"] = [
            t for t in (*ax.texts, ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label) if t.get_text()
        ]
    for i, one in enumerate(made.legends):
        out["legend", i] = one.get_texts()
    return out


PICTURES = ("rates", "labels", "kl", "categories", "prompts", "dose_coef", "grid", "pairs", "differences", "null",
            "blocks", "tokens", "lens", "strength", "cosines", "shared", "harm")  # fmt: skip


def test_a_run_that_has_everything_has_every_picture_and_none_is_drawn_without_its_data(all_pictures):
    assert tuple(all_pictures) == PICTURES
    bare = synthetic.tree({"baseline": [0, 1], "steered": [1, 1]})
    assert set(gallery.drawable(bare)) == {"rates", "labels", "prompts"}
    assert set(gallery.drawable(synthetic.tree({"baseline": [0]}))) == {"rates", "labels"}


@pytest.mark.parametrize("name", PICTURES)
def test_no_text_of_a_picture_of_many_conditions_is_cut_off_or_stands_on_another(all_pictures, name):
    made = all_pictures[name][0]
    for (number, what), texts in boxes(made).items():
        found = [t.get_window_extent() for t in texts]
        for t, box in zip(texts, found, strict=True):
            inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= made.bbox.x1 + 1 and box.y1 <= made.bbox.y1 + 1
            assert inside, (number, what, t.get_text(), box, made.bbox)
        if any(t.get_rotation() not in (0, 90) for t in texts):
            continue  # the boxes of slanted words overlap where the words do not
        for (t, a), (u, b) in itertools.combinations(zip(texts, found, strict=True), 2):
            wide, high = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            assert wide <= 1 or high <= 1, (number, what, t.get_text(), u.get_text())


def test_every_picture_of_a_part_of_the_conditions_says_of_how_many(all_pictures):
    assert {n for n, (_, _, caption) in all_pictures.items() if "are drawn" in caption} == {
        *("categories", "harm", "prompts", "blocks", "tokens", "lens")
    }
    assert "The first 13 of 25 conditions" in all_pictures["lens"][2]
    assert "The first 2 of 12 directions" in all_pictures["blocks"][2]


def test_every_text_alternative_holds_what_the_picture_shows(all_pictures):
    assert all(len(alt) > 60 for _, alt, _ in all_pictures.values())
    for name in ("rates", "null", "pairs", "cosines", "shared", "harm", "prompts", "blocks", "lens", "strength"):
        assert re.search(r"\d", all_pictures[name][1].split(":")[1]), name


def test_two_lines_of_a_picture_differ_in_more_than_their_colour():
    looks = [base.series(i) for i in range(20)]
    assert all((a["ls"], a["marker"]) != (b["ls"], b["marker"]) for a, b in itertools.combinations(looks, 2))
    assert kl.MOST <= 20
