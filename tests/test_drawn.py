"""What a paper takes from a run: the headline, its cost, what is beyond random controls, and each as a table."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from gating import analysis
from gating.errors import GatingError
from gating.figures import categories, differences, drawn, gallery, kl, rates, traces
from gating.steering.interventions import Condition
from tests import synthetic
from tests.synthetic import named_conditions
from tests.test_figures import NAMES, PERSONA, a_run, steered, written


def table(figure):
    figure.draw_without_rendering()
    return list(csv.DictReader(io.StringIO(drawn.table(figure))))


@pytest.fixture(scope="module")
def both():
    """Ten harmful prompts and six harmless ones; the persona takes eight of ten refusals away, a random direction
    two."""
    conditions = [
        Condition("baseline"),
        *named_conditions({"persona": [{**PERSONA, "random": 2}]}, NAMES, 6),
    ]
    labels = {c.name: [1] * 2 + [0] * 8 + [1] * 6 for c in conditions}
    labels |= {"baseline": [0] * 10 + [1] * 6, "persona": [1] * 8 + [0, 0] + [0] * 3 + [3] * 3}
    return synthetic.tree(labels, [True] * 10 + [False] * 6, ["a"] * 6 + ["b"] * 4 + ["c"] * 6, conditions,
                          directions=list(NAMES))  # fmt: skip


def test_the_headline_pairs_harmful_and_harmless_refusal_and_marks_degenerate_answers(both):
    rows = table(rates.rates(both, True))
    at = {row["series"]: row for row in rows}
    assert at["persona, harmful"]["x"] == "20" and at["persona, harmless"]["x"] == "50"
    low = 100 * analysis.refusal_rate(both, harmful=True)["low"].sel(condition="persona")
    assert float(at["persona, harmful"]["low"]) == pytest.approx(float(low), abs=1e-3)
    assert at["persona, harmless, degenerate"]["x"] == "50" and "persona, harmful, degenerate" not in at
    assert {row["y"] for row in rows if row["y"]} == {"baseline", "persona", "persona-random (2 seeds)"}


def test_the_conditions_of_a_large_grid_share_a_line_instead_of_thousands_of_pixels_of_names():
    conditions = steered(layers=["1", "2", "3", "4"], coef=[float(c) for c in range(1, 10)])
    run = a_run(conditions)
    assert [line.text for line in rates.lines(run)] == ["baseline", "compliant (36 settings)"]
    assert sum(len(line.names) for line in rates.lines(run)) == 37
    assert rates.rates(run, True).get_figheight() < 4 and "share a line" in gallery.drawable(run)["rates"].caption(run)


def test_a_condition_is_held_against_the_mean_of_its_random_controls_with_its_interval_and_n(both):
    found = analysis.against_random(both, "refusal", True).isel(line=[0]).squeeze()
    assert found["condition"] == "persona" and int(found["k"]) == 2
    assert float(found["difference"]) == pytest.approx(-0.6) and int(found["n"]) == 10
    assert float(found["low"]) < -0.6 < float(found["high"])
    (cell,) = (row for row in table(differences.by_condition(both, True)) if row["x"] == "refusal, harmful prompts")
    assert cell["y"] == "persona less 2 random" and float(cell["value"]) == -60 and cell["note"].startswith("-60 [")
    assert cell["note"].endswith("n = 10")
    both = both.copy()
    both["outcomes"] = both["outcomes"].to_dataset().copy(deep=True)
    both["outcomes"]["done"].loc[{"condition": "persona-random-0"}] = np.arange(16) > 3
    assert analysis.against_random(both, "refusal", True)["n"].values.tolist() == [6]  # answers under all of them


def test_refusal_stands_against_the_kl_of_harmless_prompts_and_doses_of_a_setting_are_joined():
    conditions = steered(layers=["1", "2"], coef=[3.0, 1.0, 2.0])
    labels = [0, 0, 1, 1]
    run = synthetic.tree({c.name: labels for c in conditions}, [True, True, True, False], conditions=conditions,
                         directions=list(NAMES))  # fmt: skip
    run["readouts"]["kl"].values[:] = np.arange(7)[:, None] + [9, 9, 9, 0]
    assert list(kl.groups(run)) == ["layers 1", "layers 2"]
    found = {row["series"]: [] for row in table(kl.scatter(run, True))}
    for row in table(kl.scatter(run, True)):
        found[row["series"]].append((float(row["x"]), round(float(row["y"]))))
    names = run["conditions"]["condition"].values.tolist()
    doses = [f"compliant[layers=1,coef={c}]" for c in (1, 2, 3)]
    assert found["layers 1"] == [(names.index(n), 67) for n in doses] and found["baseline"] == [(0, 67)]


def test_categories_with_fewer_than_five_prompts_are_left_out_and_counted(both):
    assert not categories.has_categories(both)  # six of a, four of b
    run = synthetic.tree({"baseline": [0] * 14, "steered": [1] * 14}, categories=list("aaaaabbbbbcccc"))
    rows = table(categories.categories(run, True))
    assert {row["y"] for row in rows if row["series"] == "steered"} == {"a (5)", "b (5)"}
    assert "1 categories with fewer than 5" in gallery.drawable(run)["categories"].caption(run)


def test_the_blocks_that_a_condition_writes_are_marked_where_its_projections_are_drawn():
    knocked = {"direction": "compliant", "op": "ablate", "layers": 4}
    run = a_run(written({"persona": [PERSONA], "ko": [PERSONA, knocked]}), directions=list(NAMES))
    assert traces.edited(run, "persona") == {"added here": [2], "taken out here": []}
    rows = [r for r in table(traces.over_blocks(run, True)) if r["panel"] == "ko on compliant"]
    assert [r["x"] for r in rows if r["series"] == "added here"] == ["2"]
    assert [r["x"] for r in rows if r["series"] == "taken out here"] == ["4"]
    bands = [r for r in rows if r["series"] == "the condition, band"]
    assert len(bands) == 6 and all(float(r["low"]) < float(r["high"]) for r in bands)


def test_the_pictures_are_those_that_an_experiment_is_for_and_others_are_drawn_when_asked_for(both):
    everything = set(gallery.drawable(both))
    assert set(gallery.chosen(both)) == everything
    both = both.copy()
    both.attrs["choices"] = '{"experiment": "geometry"}'
    assert next(iter(gallery.chosen(both))) == "cosines" and "rates" not in gallery.chosen(both)
    assert list(gallery.chosen(both, ["rates", "kl"])) == ["rates", "kl"]
    assert set(gallery.chosen(both, ["all"])) == everything
    with pytest.raises(GatingError, match=r"pictures='rate' is not one of this run: use .*rates"):
        gallery.chosen(both, ["rate"])


def test_every_picture_names_a_page_and_a_heading_that_are_there():
    docs = Path(__file__).parents[1] / "docs"
    for picture in gallery.REGISTRY:
        page, _, heading = picture.method.partition("#")
        headings = [line.lstrip("# ").lower() for line in (docs / page).read_text().splitlines() if line[:1] == "#"]
        assert not heading or heading.replace("-", " ") in headings, picture.name
