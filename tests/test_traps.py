"""The bugs of the paper's code (and of others'), each put in on purpose: the result must be visibly wrong, so that the
tests of the right version can fail."""

import operator

import numpy as np
import pytest
import torch

from gating import chat, prompts
from gating.judging import labels, rule
from gating.judging.degenerate import Limits
from gating.models.parts import decoder_layers
from gating.steering import ops
from gating.steering.backend import Backend
from gating.steering.interventions import Condition, Intervention
from gating.steering.lowering import lower
from gating.steering.readouts import Readouts
from tests.oracle import greedy
from tests.test_backend import asked, two_directions

STEER = Condition("s", "steered", (Intervention("add", "a", (1,), 1.0, "residual"),))


@pytest.fixture
def backend(tiny):
    return Backend(tiny, 8)


@pytest.fixture
def made(backend):
    return two_directions(backend.loaded, backend.capture([asked(backend.loaded, 1)[0]], ["last"])[1])


def alone(backend, ids, made):
    layers = operator.attrgetter(decoder_layers(backend.loaded.model))(backend.loaded.model)
    return [greedy(backend.loaded.model, layers, i, STEER, made, 0, 8, set(backend.loaded.end_ids)) for i in ids]


def test_the_last_token_by_mask_sum_under_left_padding_reads_another_token(backend, monkeypatch):
    ids = asked(backend.loaded, 4)
    right = backend.capture(ids, ["last"])[0]
    real = chat.position_weights

    def by_mask_sum(*args):
        weights = torch.zeros_like(real(*args))
        for r, row in enumerate(sorted(ids, key=len)):
            weights[r, 0, len(row) - 1] = 1.0  # mask.sum() - 1, as if the padding were on the right
        return weights

    monkeypatch.setattr(chat, "position_weights", by_mask_sum)
    wrong = backend.capture(ids, ["last"])[0]
    longest = int(np.argmax([len(i) for i in ids]))
    moved = [r for r in range(4) if not np.allclose(right[r], wrong[r], atol=1e-3)]
    assert moved == [r for r in range(4) if len(ids[r]) < len(ids[longest])] and moved


def test_a_hook_that_reaches_row_0_only_is_seen(backend, made, monkeypatch):
    ids, real = asked(backend.loaded, 3), ops.apply_edits

    def row_0(h, *args):
        out = h.clone()
        out[:1] = real(h, *args)[:1]
        return out

    edits = lower([STEER] * 3, made, 0)
    expected = alone(backend, ids, made)
    assert backend.generate(ids, edits, 8).tokens == expected
    monkeypatch.setattr(ops, "apply_edits", row_0)
    probes = np.ones((backend.loaded.n_layers, 1, backend.loaded.hidden), dtype="float32")
    change = backend.generate(ids, edits, 8, Readouts(probes)).read["relative_change"][:, 1]
    assert change[0] > 0 and backend.generate(ids, edits, 8).tokens != expected


def test_frozen_position_ids_give_other_tokens(backend, monkeypatch):
    ids = asked(backend.loaded, 4)
    model, free = backend.loaded.model, backend.generate(asked(backend.loaded, 4), {}, 8).tokens
    real = type(model).prepare_inputs_for_generation

    def frozen(self, *args, **kwargs):
        inputs = real(self, *args, **kwargs)
        if inputs.get("position_ids") is not None:
            inputs["position_ids"] = torch.zeros_like(inputs["position_ids"])
        return inputs

    monkeypatch.setattr(type(model), "prepare_inputs_for_generation", frozen)
    assert Backend(backend.loaded, 8).generate(ids, {}, 8).tokens != free


def test_a_second_bos_shifts_what_is_read(backend):
    tokenizer = backend.loaded.tokenizer
    ids = chat.encode(tokenizer, "How do locks work?")
    first = ids[0]
    assert ids[1] != first or tokenizer.bos_token_id is None
    doubled, _ = backend.capture([[first, *ids]], ["last"])
    assert not np.allclose(doubled, backend.capture([ids], ["last"])[0], atol=1e-3)


def test_gibberish_and_silence_are_no_compliance():
    config = Limits()
    for text, tokens in (("", []), ("the the the the the the the the the", [5] * 20), ("!!!!!!", [3] * 16)):
        assert labels.LABELS[rule.label(text, tokens, 1.0, config)] == "degenerate"


def test_a_test_prompt_that_was_extracted_from_is_found():
    extract = prompts.load("harmful", True, "extract")
    test = prompts.load("harmful", True, "test")
    assert not prompts.overlap({p.text for p in extract}, test)
    assert prompts.overlap({p.text.upper() + "!" for p in extract[:3]}, [*test, *extract[:3]]) == extract[:3]


def test_reading_and_writing_at_sites_one_apart_is_another_intervention(backend, made):
    """The paper reads hidden_states[L] and writes block L: resid_post[L-1] to resid_post[L]."""
    same, paper = (Intervention("add", "a", (2,), 1.0, "natural", read=r) for r in ("same", "previous"))
    a, b = (lower([Condition("c", "steered", (iv,))], made, 0)[2][0]["write"][0, 0].numpy() for iv in (same, paper))
    v = made["vector"].sel(direction="a")
    assert np.allclose(a, v.sel(layer=2)) and np.allclose(b, v.sel(layer=1)) and not np.allclose(a, b)
