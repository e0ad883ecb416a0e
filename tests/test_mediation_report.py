"""A mediation in the report: which conditions make one, its table, and its map over blocks."""

import io
import re

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from rich.console import Console

from gating import analysis
from gating.figures import gallery, mediation
from gating.reporting import page, tables
from gating.steering.interventions import Condition
from tests import synthetic

PERSONA = {"direction": "compliant", "layers": 2}
OWN = {"direction": "refusal", "op": "ablate", "layers": "3-5", "reference": "own"}
SPECS = {
    "calm": [PERSONA],
    "kept": [PERSONA, OWN],
    "shown": [{**OWN, "reference": "calm"}],
    "at": [PERSONA, {**OWN, "layers": "each"}],
    "other": [PERSONA, {**OWN, "direction": "compliant"}],  # not the mediator that is given
    "bare": [OWN],
    "at_random": [PERSONA, {**OWN, "direction": "random", "random": 2}],
}
RATES = {"baseline": 90, "calm": 10, "kept": 70, "shown": 50, **{f"at[1.layers={b}]": 10 + 15 * b for b in range(6)}}


def tree(rates, specs=SPECS, harmful=None):
    conditions = synthetic.named_conditions(specs, ["compliant", "refusal"], 6)
    conditions = [Condition("baseline", family="baseline"), *conditions]
    labels = {c.name: [0] * rates.get(c.name, 10) + [1] * (100 - rates.get(c.name, 10)) for c in conditions}
    categories = [f"c{i % 10}" for i in range(100)]
    return synthetic.tree(labels, harmful, categories, conditions)


@pytest.fixture(scope="module")
def run():
    return tree(RATES)


@pytest.fixture(autouse=True)
def only_the_map(monkeypatch):
    """The other pictures have tests of their own."""
    assert set(mediation.FIGURES) <= set(gallery.REGISTRY)
    monkeypatch.setattr(gallery, "REGISTRY", mediation.FIGURES)


def printed(run):
    out = io.StringIO()
    for table in tables.mediation_tables(run):
        Console(file=out, width=140).print(table)
    return out.getvalue()


def test_a_mediation_is_known_by_what_its_conditions_do_not_by_their_names(run):
    (route,) = analysis.routes(run)
    assert route[:4] == ("refusal", "calm", "kept", "shown")
    assert route.at == {b: f"at[1.layers={b}]" for b in range(6)}
    without = {name: spec for name, spec in SPECS.items() if name != "kept"}
    assert analysis.routes(tree(RATES, without)) == []
    assert analysis.routes(synthetic.tree({"baseline": [0], "compliant": [1]})) == []


def test_the_table_has_every_effect_with_its_interval_and_n_on_the_terminal_and_on_the_page(run, tmp_path):
    text = printed(run)
    assert "mediation: calm through refusal" in text
    for row in (r"natural direct \(held\) .*-20 \[", r"natural indirect \(given\) .*-40 \[", r"interaction .*-20 \["):
        assert re.search(row, text), row
    assert "75% [" in text and "50% [" in text and " 100 " in text
    html = page.write(run, tmp_path).read_text()
    assert "Mediation: calm through refusal" in html and "75% [" in html and (tmp_path / "mediation.png").is_file()


def test_without_an_effect_a_share_is_missing_and_the_reason_is_told():
    still = tree(dict.fromkeys(RATES, 90))
    assert printed(still).count("missing") >= 4 and "nothing is mediated then" in printed(still)
    picture = gallery.pictures(still, True)["mediation"]
    assert "no effect" in picture.alt_text and not picture.figure.axes[0].containers
    # the score is the same under every condition: no interval, no share
    assert analysis.mediation(still, "calm", "kept", "shown", "refusal_score")["estimate"].sel(effect="total") == 0


def test_an_effect_of_rounding_alone_has_no_share(run):
    rounded = run.copy(deep=True)
    score = rounded["outcomes"]["refusal_score"]
    noise = np.random.default_rng(0).normal(1e-5, 1e-6, score.shape)
    score.values[:] = 4 + noise * np.arange(len(score))[:, None]
    found = analysis.mediation(rounded, "calm", "kept", "shown", "refusal_score")
    assert (
        found["low"].sel(effect="total") > 0
        and found["estimate"].sel(effect=["share_held", "share_given"]).isnull().all()
    )


def test_equal_answers_claim_no_certainty():
    found = analysis.mediation(tree({**RATES, "kept": 90, "shown": 10}), "calm", "kept", "shown")
    direct, share = found.sel(effect="direct"), found.sel(effect="share_held")
    assert direct["estimate"] == 0 and direct["low"] < -0.01 and direct["high"] > 0.01
    assert share["estimate"] == 1 and share["low"] < 0.99 and share["high"] > 1.01


def test_the_map_draws_the_share_that_goes_at_each_block_with_its_interval(run):
    (bars,) = mediation.by_block(run, True).axes[0].containers  # the score has no effect
    assert isinstance(bars, ErrorbarContainer)
    assert np.allclose(bars.lines[0].get_ydata(), [100 * 15 * b / 80 for b in range(6)])
    found = analysis.by_block(run, "calm", analysis.routes(run)[0].at)
    assert (
        (found["low"] < found["estimate"]).all()
        and (found["estimate"] < found["high"]).all()
        and (found["n"] == 100).all()
    )
    assert "0: 0%, 1: 19%" in gallery.pictures(run, True)["mediation"].alt_text


def test_without_a_block_of_its_own_there_is_no_map():
    whole = {name: spec for name, spec in SPECS.items() if name != "at"}
    assert "mediation" not in gallery.pictures(tree(RATES, whole), True)


def test_harmful_and_harmless_prompts_stand_apart():
    both = tree(RATES, harmful=[i % 2 == 0 for i in range(100)])
    text = printed(both)
    assert "harmful: refusal" in text and "harmless: refusal" in text and text.count(" 50 ") >= 4
