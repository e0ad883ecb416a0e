"""Interchange of projections between rows of a prompt, and the effects that are read off it."""

import numpy as np
import pytest

import gating
from gating import analysis
from gating.errors import GatingError
from gating.pipeline import prompt_batches
from gating.steering.interventions import Condition, Intervention
from tests import synthetic

SMALL = ("model=tiny-llama", "steer=none", "data.n=3", "directions.n=4", "directions.questions=2", "max_new_tokens=4")
HELD = "{direction: refusal, op: ablate, layers: 3, reference: %s}"
PERSONA = "{direction: compliant, layers: 2, coef: 4}"
CONDITIONS = (
    f"+conditions.persona=[{PERSONA}]",
    f"+conditions.held=[{PERSONA},{HELD % 'own'}]",
    f"+conditions.given=[{HELD % 'persona'}]",
    f"+conditions.rest=[{HELD % 'own'}]",
    f"+conditions.resting=[{HELD % 'mean'}]",
    "+conditions.system={system: evil, do: [%s]}" % (HELD % "own"),
)


def run(command, *overrides):
    code, lines = command(*SMALL, *CONDITIONS, *overrides)
    assert code == 0, lines
    return gating.open_run(lines[-1].removeprefix("store: "))


@pytest.mark.parametrize("backend", ["local", "simulation"])
def test_a_held_projection_is_the_other_rows_and_an_unsteered_row_is_left_as_it_is(command, backend):
    tree = run(command, f"backend={backend}")
    at = tree["readouts"]["projection"].sel(layer=3, direction="refusal")
    assert np.allclose(at.sel(condition="held"), at.sel(condition="baseline"), atol=1e-4)
    assert np.allclose(at.sel(condition="given"), at.sel(condition="persona"), atol=1e-4)
    assert not np.allclose(at.sel(condition="persona"), at.sel(condition="baseline"), atol=1e-2)
    score = tree["outcomes"]["refusal_score"]
    assert np.allclose(score.sel(condition="rest"), score.sel(condition="baseline"), atol=1e-5)
    resting = at.sel(condition="resting")
    assert float(resting.std()) < 1e-4 and not np.allclose(resting, at.sel(condition="baseline"), atol=1e-3)
    # both texts end alike, in the user's turn, so the last token is compared with the unsteered row's last one
    assert np.allclose(at.sel(condition="system"), at.sel(condition="baseline"), atol=1e-4)


def test_conditions_that_are_led_to_another_find_it_in_whichever_batch_they_stand(command):
    whole, parts = run(command), run(command, "backend.batch_rows=3")
    assert (whole["outcomes"]["token_ids"] == parts["outcomes"]["token_ids"]).all()
    for name in ("refusal_score", "nll"):
        assert np.allclose(whole["outcomes"][name], parts["outcomes"][name], atol=1e-4, equal_nan=True)
    read = [t["readouts"]["projection"] for t in (whole, parts)]
    assert np.allclose(read[0], read[1], atol=1e-3, equal_nan=True)


def test_every_batch_holds_what_its_conditions_are_led_to():
    def led(name, reference):
        return Condition(name, "named", (Intervention("ablate", "r", (1,), 1.0, reference=reference),))

    conditions = [Condition("baseline"), led("a", "zero"), led("b", "c"), led("c", "own"), led("d", "c")]
    leads = prompt_batches.leading(conditions)
    assert leads == [0, 3] and prompt_batches.batches(5, 5, leads) == [[0, 1, 2, 3, 4]]
    assert prompt_batches.batches(5, 3, leads) == [[0, 3, 1], [0, 3, 2], [0, 3, 4]]


@pytest.mark.parametrize(
    ("given", "says"),
    [("nobody", "use .*persona"), ("given", "no other condition"), ("system", "system message")],
)
def test_a_reference_that_cannot_be_compared_is_refused_before_the_run(command, given, says):
    code, lines = command(*SMALL, *(c.replace("reference: persona", f"reference: {given}") for c in CONDITIONS))
    assert code == 2 and any(f"reference='{given}'" in line for line in lines), (lines, says)


def test_a_claim_on_a_condition_that_the_run_will_not_have_is_refused_before_it(command):
    code, lines = command(*SMALL, "claims=mediation")
    assert code == 2 and any("claims.persona_suppresses: the run has no condition 'persona'" in line for line in lines)


def test_a_reference_belongs_to_an_ablation(command):
    code, lines = command(*SMALL, "steer=compliant", "steer.op=add", "steer.reference=own")
    assert code == 2 and any("steer.reference='own'" in line and "op=add" in line for line in lines)


def labels(refused, n=100):
    return [0] * refused + [1] * (n - refused)


def test_effects_are_shares_of_prompts_and_add_up_with_their_interaction():
    rates = {"baseline": labels(90), "persona": labels(10), "held": labels(70), "given": labels(50)}
    found = analysis.mediation(synthetic.tree(rates), "persona", "held", "given")
    at = found["estimate"].to_series().to_dict()
    assert np.allclose([at["total"], at["direct"], at["indirect"], at["interaction"]], [-0.8, -0.2, -0.4, -0.2])
    assert np.isclose(at["share_held"], 0.75) and np.isclose(at["share_given"], 0.5)
    assert (
        (found["low"] <= found["estimate"]).all() and (found["estimate"] <= found["high"]).all() and found["n"] == 100
    )


def test_without_a_total_effect_there_is_no_share_to_speak_of():
    found = analysis.mediation(
        synthetic.tree({c: labels(90) for c in ("baseline", "persona", "held", "given")}), "persona", "held", "given"
    )
    assert np.isnan(found["estimate"].sel(effect=["share_held", "share_given"])).all()


def test_an_interval_covers_the_planted_share_at_its_level():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(100):
        drawn = {
            name: np.where(rng.random(80) < rate, 0, 1).tolist()
            for name, rate in (("baseline", 0.9), ("persona", 0.2), ("held", 0.6), ("given", 0.5))
        }
        found = analysis.mediation(synthetic.tree(drawn), "persona", "held", "given").sel(effect="share_held")
        covered += bool(found["low"] <= 1 - 0.3 / 0.7 <= found["high"])
    assert covered >= 90  # of 100 at 95%


@pytest.mark.parametrize("change", [{"held": "nobody"}, {"measure": "charm"}, {"measure": "completion"}])
def test_a_condition_or_measure_that_is_not_there_is_refused(change):
    tree = synthetic.tree({c: labels(90) for c in ("baseline", "persona", "held", "given")})
    with pytest.raises(GatingError, match=next(iter(change.values()))):
        analysis.mediation(tree, **{"persona": "persona", "held": "held", "given": "given", **change})
