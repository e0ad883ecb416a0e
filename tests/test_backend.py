"""The heart: a packed, padded batch through nnsight gives what each row gives alone, written the long way."""

import operator

import numpy as np
import pytest
import torch
import xarray as xr

from gating import chat, prompts
from gating.models.parts import decoder_layers
from gating.steering.backend import Backend
from gating.steering.interventions import Condition, Intervention
from gating.steering.lowering import lower, vector
from gating.steering.readouts import Readouts
from tests.oracle import greedy

NEW = 12


def eight_conditions(n_layers):
    """Every op, scope and norm policy, windows, a random control and a mixed list, strong enough to change the text."""
    add = Intervention("add", "a", (1,), 1.0, "residual")
    late = tuple(range(n_layers // 2, n_layers))
    ivs = [
        (),
        (add,),
        (Intervention("add", "a", (1,), -1.0, "residual", "prompt"),),
        (Intervention("add", "b", late, 0.5, "residual", "generated"),),
        (Intervention("ablate", "a", late, 1.0, scope="response"),),
        (Intervention("add", "a", (1,), 1.0, "residual", "last", seed=3),),
        (add, Intervention("ablate", "a", late, 1.0)),
        (Intervention("add", "b", (n_layers - 1,), 2.0, "a", read="previous"),),
    ]
    return [Condition(f"c{i}", "named", iv) for i, iv in enumerate(ivs)]


def two_directions(loaded, norms):
    """Two random directions, with sides that a clamp and a gate can be told by."""
    v = np.random.default_rng(5).standard_normal((2, loaded.n_layers, loaded.hidden)).astype("float32")
    side = np.tile(norms.astype("float32"), (2, 1))
    return xr.Dataset(
        {
            "vector": (("direction", "layer", "hidden"), v),
            "residual_norm": ("layer", norms),
            "projection_negative": (("direction", "layer"), -side / 2),
            "projection_positive": (("direction", "layer"), side / 2),
        },
        coords={"direction": ["a", "b"], "layer": range(loaded.n_layers)},
    )


@pytest.fixture
def made(tiny):
    norms = Backend(tiny, 8).capture([chat.encode(tiny.tokenizer, "Hello there")], ["last"])[1]
    return two_directions(tiny, norms)


def further_conditions(n_layers):
    """The other operations: each with what makes it one, and a gate that some prompts pass and others do not."""
    add = Intervention("add", "a", (1,), 1.0, "residual")
    last = (n_layers - 2, n_layers - 1)
    ivs = [
        (Intervention("clamp", "a", last, 2.0),),
        (Intervention("cap", "a", last, -1.0),),
        (Intervention("floor", "b", last, 1.5, scope="response"),),
        (Intervention("rotate", "a", last, 25.0),),
        (Intervention("ablate", "a+b", last, 1.0), Intervention("add", "b", (n_layers - 1,), 2.0, "residual")),
        (add, Intervention("remove", "a", (n_layers - 1,), 1.0)),
        (Intervention("add", "a", (1,), 1.5, "residual", gate="b", threshold=0.5),),
        (add, Intervention("ablate", "a", last, 1.0, seed=4)),
    ]
    return [Condition(f"d{i}", "named", iv) for i, iv in enumerate(ivs)]


def asked(tiny, n):
    texts = [p.text for p in prompts.load("borderline", False, "select")] + ["Hi", "Why?", "x " * 60]
    return [chat.encode(tiny.tokenizer, t) for t in sorted(texts, key=lambda t: len(t) * 7919 % 101)[:n]]


@pytest.mark.parametrize("conditions_of", [eight_conditions, further_conditions])
def test_64_mixed_rows_of_8_conditions_give_the_tokens_that_each_gives_alone(tiny, made, conditions_of):
    conditions = conditions_of(tiny.n_layers)
    ids = [i for i in asked(tiny, 8) for _ in conditions]
    rows = conditions * 8
    backend = Backend(tiny, 64)
    packed = backend.generate(ids, lower(rows, made, 0), NEW)
    layers = operator.attrgetter(decoder_layers(tiny.model))(tiny.model)
    alone = [
        greedy(tiny.model, layers, i, c, made, 0, NEW, set(backend.loaded.end_ids))
        for i, c in zip(ids, rows, strict=True)
    ]
    assert len({len(i) for i in ids}) > 4
    assert packed.tokens == alone
    for p in range(8):  # the comparison would mean nothing if steering did nothing
        assert len({tuple(t) for t in packed.tokens[8 * p : 8 * p + 8]}) >= 5


def test_a_coefficient_of_zero_is_bit_identical_to_no_steering(tiny, made):
    ids = asked(tiny, 4)
    backend = Backend(tiny, 8)
    zero = [
        Condition("z", "steered", (Intervention("add", "a", (1, 2), 0.0), Intervention("ablate", "b", (2,), 0.0)))
    ] * 4
    probes = made["vector"].transpose("layer", "direction", "hidden").values
    off, on = (backend.generate(ids, e, NEW, Readouts(probes, [1, 5])) for e in ({}, lower(zero, made, 0)))
    assert off.tokens == on.tokens
    for name in ("refusal_score", "projection", "residual_norm"):
        assert np.array_equal(off.read[name], on.read[name])


def test_every_row_of_a_batch_moves_by_its_own_vector(tiny, made):
    ids = asked(tiny, 5)
    backend = Backend(tiny, 8)
    steered = [Condition("s", "steered", (Intervention("add", "a", (1,), float(k)),)) for k in range(1, 6)]
    unit = made["vector"].sel(direction="a", layer=1).values
    norm = float(np.linalg.norm(unit))
    probes = np.zeros((tiny.n_layers, 1, tiny.hidden), dtype="float32")
    probes[1, 0] = unit / norm
    off, on = (backend.generate(ids, e, 1, Readouts(probes)) for e in ({}, lower(steered, made, 0)))
    moved = on.read["projection"][:, 1, 0] - off.read["projection"][:, 1, 0]
    assert np.allclose(moved, norm * np.arange(1, 6), rtol=1e-4)
    assert np.array_equal(on.read["projection"][:, 0], off.read["projection"][:, 0])  # block 0 comes before


def test_a_batch_captures_what_each_prompt_gives_alone_and_what_transformers_reports(tiny):
    ids = asked(tiny, 5)
    answers = [[7, 8, 9], [7], [], [9, 9], [3, 4]]
    names = ["last", "-2", "response_start", "response_mean"]
    together, _ = Backend(tiny, 8).capture(ids, names, answers)
    for r, (prompt, answer) in enumerate(zip(ids, answers, strict=True)):
        with torch.no_grad():
            hs = tiny.model(input_ids=torch.tensor([[*prompt, *answer]]), output_hidden_states=True).hidden_states
        states = torch.stack(hs[1:-1])[:, 0].numpy()  # resid_post of every block but the last (that one is normed)
        n = len(prompt)
        assert np.allclose(together[r, 0, :-1], states[:, n - 1], atol=2e-4)
        assert np.allclose(together[r, 1, :-1], states[:, n - 2], atol=2e-4)
        if answer:
            assert np.allclose(together[r, 2, :-1], states[:, n], atol=2e-4)
            assert np.allclose(together[r, 3, :-1], states[:, n:].mean(1), atol=2e-4)
        else:
            assert np.isnan(together[r, 2:]).all()


def test_the_first_token_score_and_the_nll_are_those_of_transformers_alone(tiny):
    ids = asked(tiny, 3)
    backend = Backend(tiny, 8)
    out = backend.generate(ids, {}, 6, Readouts(score_ids=[4, 9]))
    nll = backend.nll([*ids, ids[0]], [*out.tokens, []])
    assert np.isnan(nll[-1])
    for r, (prompt, answer) in enumerate(zip(ids, out.tokens, strict=True)):
        with torch.no_grad():
            logits = tiny.model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].double()
        p = logits[len(prompt) - 1].softmax(-1)[[4, 9]].sum()
        assert np.isclose(out.read["refusal_score"][r], torch.log(p / (1 - p)), atol=1e-4)
        lp = logits[len(prompt) - 1 : -1].log_softmax(-1)[range(len(answer)), answer]
        assert np.isclose(nll[r], -lp.mean(), atol=1e-4)


def test_nll_is_the_same_when_it_is_scored_in_small_pieces(tiny, monkeypatch):
    ids = asked(tiny, 5)
    completions = [[5], [6, 7], [8, 9, 10], [4] * 9, [3, 3]]
    whole = Backend(tiny, 8).nll(ids, completions)
    monkeypatch.setattr("gating.steering.scoring.LOGITS_BYTES", {"cpu": 1})
    assert np.allclose(Backend(tiny, 8).nll(ids, completions), whole, atol=1e-5)


def test_an_answer_ends_before_its_end_token_and_the_other_rows_go_on(tiny):
    ids = asked(tiny, 4)
    backend = Backend(tiny, 8)
    free = backend.generate(ids, {}, NEW).tokens
    end = free[0][3]
    cut = [t[: t.index(end)] if end in t else t for t in free]
    tiny.model.generation_config.eos_token_id, kept = [end], tiny.model.generation_config.eos_token_id
    try:
        assert Backend(tiny, 8).generate(ids, {}, NEW).tokens == cut
    finally:
        tiny.model.generation_config.eos_token_id = kept


def test_readouts_of_a_batch_are_those_that_transformers_gives_each_row_alone(tiny, made):
    ids = asked(tiny, 3)
    backend = Backend(tiny, 8)
    steered = Condition("s", "steered", (Intervention("add", "a", (1,), 1.0, "residual"),))
    rows = [c for _ in ids for c in (Condition("baseline"), steered)]
    unit = np.ascontiguousarray(made["vector"].transpose("layer", "direction", "hidden").values)
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    readouts = Readouts(unit, [4, 9], [0, 0, 2, 2, 4, 4], extra=("lens_score", "step_projection", "cosine"))
    out = backend.generate([i for i in ids for _ in (0, 1)], lower(rows, made, 0), 4, readouts)
    v = torch.from_numpy(vector(steered.interventions[0], 1, made, 0)[0]).float()
    layers = operator.attrgetter(decoder_layers(tiny.model))(tiny.model)
    for r, (prompt, condition) in enumerate(zip([i for i in ids for _ in (0, 1)], rows, strict=True)):
        states: list = []
        add = v if condition.interventions else 0 * v
        handles = [layers[1].register_forward_hook(lambda m, a, o, add=add: o + add)]
        handles += [
            layer.register_forward_hook(lambda m, a, o, states=states: states.append(o[0].double())) for layer in layers
        ]
        with torch.no_grad():
            logits = tiny.model(input_ids=torch.tensor([[*prompt, *out.tokens[r]]])).logits[0].double()
        for handle in handles:
            handle.remove()
        at = range(len(prompt) - 1, len(prompt) + len(out.tokens[r]))  # the last prompt token, then each generated one
        expected = np.stack([[states[b][t].numpy() @ unit[b].T for b in range(tiny.n_layers)] for t in at])
        seen = out.read["step_projection"][r][: len(expected)]
        assert np.allclose(seen, expected[: len(seen)], atol=2e-3)
        assert np.isnan(out.read["step_projection"][r][len(expected) :]).all()
        norms = [float(states[b][len(prompt) - 1].norm()) for b in range(tiny.n_layers)]
        assert np.allclose(out.read["cosine"][r], expected[0] / np.array(norms)[:, None], atol=1e-4)
        assert np.allclose(out.read["residual_norm"][r], norms, rtol=1e-4)
        last = logits[len(prompt) - 1].log_softmax(-1)
        if not condition.interventions:
            base, before = last, states[1][len(prompt) - 1]
        kl = float((base.exp() * (base - last)).sum())
        row = {name: values[r] for name, values in out.read.items()}
        assert np.isclose(row["kl"], kl, atol=1e-4) and (row["kl"] == 0) is not bool(condition.interventions)
        # the last block's stream is what the head reads
        assert np.isclose(row["lens_score"][-1], row["refusal_score"], atol=1e-3)
        change = float(v.norm() / before.norm()) if condition.interventions else 0.0
        assert (
            np.isclose(row["relative_change"][1], change, rtol=1e-3)
            and (np.delete(row["relative_change"], 1) == 0).all()
        )


def test_sampling_is_the_same_under_one_seed_and_differs_under_another(tiny):
    ids, backend = asked(tiny, 4), Backend(tiny, 8)
    a, b, c = (backend.generate(ids, {}, 8, sampling=(1.0, seed)).tokens for seed in (1, 1, 2))
    assert a == b != c


def test_a_sides_sum_does_not_depend_on_the_order_in_which_batches_come_back(tiny):
    """To the last bit: a server's jobs end in any order, and a killed run must end as an undisturbed one."""
    ids = asked(tiny, 6)
    weights = np.random.default_rng(0).random((2, 6, 1))
    one_by_one = Backend(tiny, 1)
    forwards, _ = one_by_one.capture(ids, ["last"], sides=weights)
    one_by_one.each = lambda do, items: iter([(i, do(i)) for i in reversed(items)])
    backwards, _ = one_by_one.capture(ids, ["last"], sides=weights)
    assert np.array_equal(forwards, backwards)
