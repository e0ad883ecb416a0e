"""From the configuration to conditions: parts, defaults, system messages, and the directions that they need."""

import pytest

from gating import personas
from gating.errors import GatingError
from gating.pipeline import conditions
from gating.pipeline.config import check
from tests.conftest import compose

PART = "+parts.mp={direction: compliant, layers: 2, coef: 3}"


def of(*overrides):
    run, _, _ = compose("model=tiny-llama", "controls.random=0", *overrides)
    check(run)
    return {c.name: c for c in conditions.resolve(run).conditions(5)}


def test_a_part_is_used_by_its_name_and_may_be_changed_in_place():
    out = of(PART, "+conditions.a=[mp]", "+conditions.b=[mp, {part: mp, op: ablate, coef: 1, layers: 3}]")
    assert [iv.layers for iv in out["b"].interventions] == [(2,), (3,)]
    assert out["a"].interventions[0] == out["b"].interventions[0] and out["b"].interventions[1].op == "ablate"


def test_a_persona_as_system_message_is_its_first_positive_instruction():
    out = of("+conditions.told={system: compliant, do: []}", "+conditions.own={system: Be brief., do: []}")
    assert out["told"].system == personas.load("compliant").positive[0] and out["own"].system == "Be brief."
    assert out["told"].interventions == () and out["baseline"].system is None


def test_an_ablation_takes_out_all_of_it_where_no_coefficient_is_given_and_an_addition_takes_the_models():
    assert of("steer.op=ablate")["compliant"].interventions[0].coef == 1
    run, _, _ = compose("model=tiny-llama")
    assert of()["compliant"].interventions[0].coef == run.model.steer.coef
    with pytest.raises(GatingError, match=r"steer\.coef"):
        of("steer.op=[add,ablate]")
    with pytest.raises(GatingError, match=r"steer\.coef"):
        of("steer.op=rotate")


def test_every_direction_that_is_referred_to_is_extracted():
    run, _, _ = compose(
        "model=tiny-llama", "steer.gate=evil",
        "+conditions.a=[{direction: formal+terse, op: ablate, layers: 1, norm: playful}]",
        "+directions.derived.rest={of: compliant, orthogonal_to: cautious}", "+directions.extra=[sycophantic]",
    )  # fmt: skip
    names = conditions.resolve(run).direction_names
    assert set(names) == {"compliant", "evil", "formal", "terse", "playful", "cautious", "sycophantic", "refusal"}


@pytest.mark.parametrize(
    ("override", "culprit"),
    [("+conditions.a=[mp]", "parts"), ("+conditions.a={do: []}", "conditions.a"),
     ("+conditions.a=[5]", r"conditions.a\[0\]"),
     ("+conditions.a={system: '', do: []}", "system"), ("+conditions.a=[{direction: compliant}]", "layers is missing"),
     ("+conditions.a=[{direction: compliant, layers: 1, strength: 2}]", "strength"),
     ("+conditions.a=[{direction: compliant, layers: 1, random: -1}]", "random"),
     ("+directions.derived.x={of: compliant}", "directions.derived.x"), ("directions.samples=2", "temperature"),
     ("readouts.extra=[nope]", "readouts.extra"),
     ("directions.filter=good", "directions.filter"), ("steer.iso_kl=0", "steer.iso_kl"), ("steer.gate=x", "x")],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(override, culprit):
    with pytest.raises(GatingError, match=culprit):
        run, _, _ = compose("model=tiny-llama", override)
        check(run)
        conditions.resolve(run).conditions(5)
