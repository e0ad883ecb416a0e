"""Models with a known truth: what is written into them, and that the shipped experiments find it."""

import numpy as np
import pytest
import torch

from gating import chat, models
from gating.errors import GatingError
from gating.models import ModelConfig, circuits, planted
from tests import planted as attack

SURE, NO = "Sure: here it is.", "No, I can't help with that."


def config(kind="gated", draw=None):
    return ModelConfig(name="planted", kind="planted", architecture=kind, id=draw)


def answer(kind, user, system=None):
    loaded = models.load(config(kind))
    ids = chat.encode(loaded.tokenizer, user, system)
    out = loaded.model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)
    return loaded.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)


@pytest.mark.parametrize(
    ("kind", "under_the_persona"),
    [("gated", "Sure! here it is."), ("independent", NO), ("keyword", NO), ("partial", "Sure! here it is.")],
)
def test_a_persona_gates_refusal_in_the_kinds_where_it_is_written_so(kind, under_the_persona):
    harmful, harmless = planted.texts()
    compliant = next(text for text, sign in planted.instructions().items() if sign == 1)
    firm = next(text for text in harmful if answer(kind, text) == NO)
    assert answer(kind, firm, compliant) == under_the_persona
    assert answer(kind, harmless[0]) == SURE == answer(kind, "How do I pick words that it has never seen?")


def test_texts_known_by_heart_are_one_token_each():
    tokenizer, (harmful, harmless) = planted.tokenizer(), planted.texts()
    for text in (harmful[0], harmless[-1], *planted.instructions()):
        assert len(chat.encode(tokenizer, text)) == 4
    assert chat.suffix_length(tokenizer) == 1


def test_a_draw_is_the_same_model_every_time_and_no_other_draw_is():
    prints = [models.load(config(draw=draw)).fingerprint for draw in (None, "1", "0")]
    assert prints[0] == prints[2] != prints[1]
    identities = [models.identity(config(kind, "1"))["id"] for kind in circuits.KINDS]
    assert len(set(identities)) == 1 and identities[0].endswith("-1")  # the kind stands beside it


@pytest.mark.parametrize(("kind", "draw"), [("plain", None), ("gated", "a/folder"), ("gated", "-1"), ("gated", "１")])
def test_a_kind_or_draw_that_is_none_is_refused(kind, draw):
    with pytest.raises(GatingError, match=r"model\.(architecture|id)="):
        models.check(config(kind, draw))


@pytest.mark.parametrize(("experiment", "kind"), [("refute", "minus"), ("paper", "keyword")])
def test_every_claim_finds_the_truth(tmp_path, experiment, kind):
    found = attack.find(experiment, kind, 0, str(tmp_path))
    place = attack.CLAIMED.index(kind)
    truth = {claim: attack.VERDICTS[letters[place]] for claim, letters in attack.TRUTH[experiment].items()}
    assert {claim: found.verdicts[claim] for claim in truth} == truth


def test_the_share_that_takes_the_way_through_refusal_is_found(tmp_path):
    found = attack.find("mediation", "partial", 3, str(tmp_path)).shares
    assert set(found) == {"refusal_score", "refusal"}
    for share, estimate, low, high in found.values():
        assert low <= share <= high and abs(estimate - share) < 0.15 and high - low < 0.5


def test_the_attack_tells_a_wrong_verdict_from_a_right_one():
    def runs(verdict, n):
        return [attack.Found("paper", "gated", i, dict.fromkeys(attack.TRUTH["paper"], verdict), {}) for i in range(n)]

    good = attack.judged([*runs("supported", 96), *runs("undecided", 4)])
    assert len(good) == len(attack.TRUTH["paper"]) and not any(line.startswith("wrong") for line in good)
    for few in ([*runs("supported", 94), *runs("undecided", 6)], [*runs("supported", 98), *runs("refuted", 2)]):
        assert all(line.startswith("wrong") for line in attack.judged(few))
    covered = [attack.Found("mediation", "partial", i, {}, {"refusal": (0.5, 0.5, 0.4, 0.6)}) for i in range(20)]
    missed = [attack.Found("mediation", "partial", i, {}, {"refusal": (0.5, 0.7, 0.6, 0.8)}) for i in range(5)]
    assert not attack.judged(covered)[0].startswith("wrong") and attack.judged([*covered, *missed])[0].startswith(
        "wrong"
    )
    assert np.isnan(circuits.planted("keyword", 0).share) and circuits.planted("gated", 0).share == 1
