"""Decoding and scoring on this machine give what transformers' own loop gives in a trace, and rows that ended cost
nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gating import chat, models
from gating.errors import TooLarge
from gating.models import parts
from gating.steering import preamble, scoring
from gating.steering.backend import Backend
from gating.steering.decode import can_leave
from gating.steering.interventions import Condition, Intervention
from gating.steering.lowering import lower
from gating.steering.readouts import Readouts
from gating.steering.room import Room, in_halves
from tests import families
from tests.conftest import TINY, compose
from tests.test_backend import two_directions
from tests.test_families import loaded

NEW = 10
TEXTS = ("Hi", "Tell me about boats.", "Why is the sky blue? " * 3)


def conditions(n_layers):
    """What later steps depend on in every way: own vectors, a gate, means kept from the prompt, a subspace."""
    add, last = Intervention("add", "a", (1,), 1.0, "residual"), (n_layers - 1,)
    ivs = [
        (),
        (add,),
        (Intervention("ablate", "a", last, 1.0, reference="own"), add),
        (Intervention("add", "b", (1, *last), 1.5, "residual", gate="b", threshold=0.5),),
        (Intervention("ablate", "a+b", last, 1.0, scope="response"),),
        (Intervention("clamp", "a", last, 2.0, scope="generated"),),
    ]
    return [Condition("baseline", "baseline"), *(Condition(f"c{i}", "named", iv) for i, iv in enumerate(ivs) if iv)]


@pytest.fixture(scope="module", params=TINY)
def both(request):
    """A tiny model; what is decoded here, and in a trace by transformers' own loop; the sizes of the batch at each
    forward. Several tokens end an answer, so that rows end at different steps."""
    m = models.load(compose(f"model={request.param}")[0].model)
    ids = [chat.encode(m.tokenizer, text) for text in TEXTS]
    here, there = Backend(m, 64), Backend(m, 64, via=lambda call: None)
    made = two_directions(m, here.capture(ids, ["last"])[1])
    rows = conditions(m.n_layers) * len(ids)
    asked = [i for i in ids for _ in range(len(rows) // len(ids))]
    unit = np.ascontiguousarray(made["vector"].transpose("layer", "direction", "hidden").values)
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    wanted = Readouts(unit, [4, 9], [r - r % 6 for r in range(len(rows))], ("step_projection", "cosine", "lens_score"))
    free = here.generate(asked, lower(rows, made, 0), NEW).tokens
    ends = sorted({row[t] for row, t in zip(free, (1, 3, 3, 5, 7, 9) * 3, strict=True)})
    kept, m.model.generation_config.eos_token_id = m.model.generation_config.eos_token_id, ends
    sizes: list[int] = []  # rows that the last block sees
    hook = parts.decoder_blocks(m.model)[-1].register_forward_hook(lambda mod, a, out: sizes.append(len(out)))
    try:
        outs = []
        for backend in (there, here):
            sizes.clear()
            greedy = backend.generate(asked, lower(rows, made, 0), NEW, wanted)
            decoded = list(sizes)
            drawn = backend.generate(asked, lower(rows, made, 0), NEW, sampling=(1.0, 7)).tokens
            outs.append((greedy, drawn, decoded))
    finally:
        hook.remove()
        m.model.generation_config.eos_token_id = kept
    return m, ids, outs


def test_tokens_and_every_reading_are_those_of_transformers_own_loop(both):
    _, _, ((theirs, _, _), (ours, _, _)) = both
    assert len({len(t) for t in ours.tokens}) > 3
    assert ours.tokens == theirs.tokens
    for name, values in theirs.read.items():
        atol = 1e-5 * (1 + np.nanmax(np.abs(values)))
        assert np.allclose(ours.read[name], values, rtol=0, atol=atol, equal_nan=True), name


def test_rows_that_ended_are_not_computed(both):
    _, _, ((_, _, theirs), (ours, _, sizes)) = both
    lengths = [len(t) for t in ours.tokens]
    assert sizes == [sum(n >= step for n in lengths) for step in range(len(sizes))] and len(set(sizes)) > 2
    assert set(theirs) == {len(lengths)}


def test_blocks_below_the_first_edit_see_each_prompt_once(tiny):
    seen: list[int] = []
    ids = [chat.encode(tiny.tokenizer, text) for text in TEXTS for _ in range(4)]
    made = two_directions(tiny, np.ones(tiny.n_layers))
    add = Condition("c", "named", (Intervention("add", "a", (2,), 1.0),))
    hooks = [b.register_forward_hook(lambda m, a, out: seen.append(len(out))) for b in parts.decoder_blocks(tiny.model)]
    try:
        Backend(tiny, 12).generate(ids, lower([add] * 12, made, 0), 1)
    finally:
        for hook in hooks:
            hook.remove()
    begun = [] if tiny.name == "tiny-gemma" else [1] * tiny.n_layers  # all rows are edited alike
    assert seen == [*begun, 3, 3, *[12] * (tiny.n_layers - 2)]


@pytest.mark.parametrize("family", TINY)
def test_a_preamble_that_is_read_once_changes_no_token_no_reading_and_no_score(family, monkeypatch):
    m = models.load(compose(f"model={family}")[0].model)
    asked = [chat.encode(m.tokenizer, text, "You are a calm pirate.") for text in TEXTS]
    rows = [c for c in conditions(m.n_layers) if not any(i.gate or i.reference == "own" for i in c.interventions)]
    prompt_only = Intervention("add", "b", (0, 2), 1.0, "residual", scope="prompt")
    rows = [
        *rows,
        Condition("p", "named", (prompt_only,)),
        Condition("s", "named", (Intervention("scale", "a", (1,), 0.5),)),
    ]
    ids = [i for i in asked for _ in rows]
    edits = lower(rows * 3, two_directions(m, np.ones(m.n_layers)), 0)
    unit = np.ascontiguousarray(
        two_directions(m, np.ones(m.n_layers))["vector"].transpose("layer", "direction", "hidden").values
    )
    wanted = Readouts(unit, [4, 9], [r - r % len(rows) for r in range(len(ids))], ("step_projection", "lens_score"))
    sizes: list[tuple[int, int]] = []
    hook = parts.decoder_blocks(m.model)[-1].register_forward_hook(lambda mod, a, out: sizes.append(out.shape[:2]))
    outs, longest = [], max(len(i) for i in asked)
    try:
        for share in (True, False):
            if not share:
                monkeypatch.setattr("gating.steering.preamble.length", lambda *a, **k: 0)
            b = Backend(m, 64)
            outs.append(
                (
                    b.generate(ids, edits, NEW, wanted),
                    b.nll(asked, [[5, 6], [7], [8] * 5]),
                    b.capture(asked, ["last", "-2"]),
                )
            )
    finally:
        hook.remove()
    if m.name == "tiny-gemma":  # of a sliding window every pad takes a place
        assert sizes[0][0] == len(ids)
    else:
        (kinds, begun), rest = sizes[:2]
        assert kinds == len(rows) and begun >= 8 and rest == (len(ids), longest - begun)
    (ours, nll, states), (whole, nll_whole, states_whole) = outs
    assert ours.tokens == whole.tokens and np.allclose(nll, nll_whole, atol=1e-5)
    for name, values in whole.read.items():
        atol = 1e-5 * (1 + np.nanmax(np.abs(values)))
        assert np.allclose(ours.read[name], values, rtol=0, atol=atol, equal_nan=True), name
    for here, there in zip(states, states_whole, strict=True):
        assert np.abs(here - there).max() <= 1e-5 * np.abs(there).max()


def test_what_an_edit_takes_from_other_tokens_leaves_the_preamble_in_every_row(tiny):
    ids = [chat.encode(tiny.tokenizer, text, "You are a calm pirate.") for text in TEXTS]
    made = two_directions(tiny, np.ones(tiny.n_layers))
    led, gated = Intervention("ablate", "a", (1,), 1.0, reference="own"), Intervention("add", "a", (1,), 1.5, gate="b")
    for iv in (led, replace(gated, threshold=0.5)):
        edits = lower([Condition("baseline", "baseline"), Condition("c", "named", (iv,))], made, 0)
        assert preamble.length(tiny.model, ids[:2], edits) == 0
    assert (preamble.length(tiny.model, ids[:2], {}) > 8) == (tiny.name != "tiny-gemma")


def test_a_rows_draws_do_not_depend_on_when_others_end(both):
    _, _, ((_, theirs, _), (_, ours, _)) = both
    assert ours == theirs and len({len(t) for t in ours}) > 3


def test_answers_scored_on_their_prompts_cache_score_as_in_a_forward_of_their_own(both):
    m, ids, _ = both
    answers = [[5], [6, 7, 8], [9] * 7, [5], [3, 4], [6, 7, 9, 9], [11] * 5]
    asked = [ids[0], ids[0], ids[1], ids[1], ids[1], ids[2], ids[2]]
    here, there = (Backend(m, rows, via=via).nll(asked, answers) for rows, via in ((2, None), (64, lambda call: None)))
    assert np.allclose(here, there, atol=1e-5)


# One of each way to keep what was read: whole, sliding and chunked caches, latent ones, states, places of three kinds.
@pytest.mark.parametrize("family", [
    "gpt2", "bloom", "gemma3_text", "llama4_text", "gpt_oss", "deepseek_v3", "lfm2", "falcon_h1", "mamba", "qwen2_vl",
])  # fmt: skip
def test_a_familys_rows_leave_its_cache_or_stay_and_nothing_else_changes(family, monkeypatch):
    m = loaded(families.model(family))
    ids = [chat.encode(m.tokenizer, text) for text in TEXTS for _ in range(3)]
    backend, made = Backend(m, 9), two_directions(m, np.ones(m.n_layers))
    unit = np.ascontiguousarray(made["vector"].transpose("layer", "direction", "hidden").values)
    rows = [
        Condition("baseline", "baseline"),
        *(Condition(k, "named", (Intervention("add", k, (2,), 5.0),)) for k in "ab"),
    ]
    edits, wanted = lower(rows * 3, made, 0), Readouts(unit, [4, 9], [0, 0, 0, 3, 3, 3, 6, 6, 6])
    free = backend.generate(ids, edits, 6).tokens
    ends = [row[min(t, len(row) - 1)] for row, t in zip(free[:7:3], (0, 2, 4), strict=True)]
    m.model.generation_config.eos_token_id = ends
    ours = backend.generate(ids, edits, 6, wanted)
    monkeypatch.setattr("gating.steering.decode.can_leave", lambda *a: False)
    plain = backend.generate(ids, edits, 6, wanted)
    assert ours.tokens == plain.tokens
    for name, values in plain.read.items():
        assert np.allclose(ours.read[name], values, rtol=0, atol=1e-5 * (1 + np.abs(values).max())), name
    here = backend.nll(ids[::3], [[5, 6, 7], [8], [9, 5]])
    with torch.no_grad():
        for r, answer in enumerate([[5, 6, 7], [8], [9, 5]]):
            logp = m.model(input_ids=torch.tensor([[*ids[3 * r], *answer]])).logits[0].log_softmax(-1)
            at = range(len(ids[3 * r]) - 1, len(ids[3 * r]) - 1 + len(answer))
            assert np.isclose(here[r], -logp[at, answer].mean(), atol=1e-4)


def test_a_family_that_keeps_state_elsewhere_keeps_its_rows():
    mamba = families.model("mamba")
    assert not can_leave(mamba, {"attention_mask": torch.ones(2, 3)}, 2)
    assert scoring.scores(mamba, [([1, 2], [3])], 0, 8, Room()) is None


def test_where_memory_runs_out_batches_are_halved_and_no_row_is_lost_or_changed(tiny, monkeypatch):
    """Out of memory strikes whatever has more rows than fit, and once at random."""
    ids = [chat.encode(tiny.tokenizer, f"{text} {i}") for text in TEXTS for i in range(3)]
    answers = [[5, 6, 7], [8], [9, 5]] * 3
    plain = Backend(tiny, 9)
    wanted = (
        [plain.generate([i], {}, NEW).tokens[0] for i in ids],
        plain.nll(ids, answers),
        plain.capture(ids, ["last"]),
    )
    strikes = iter([True, *[False] * 10_000])

    def full(module, args, kwargs):
        if (n := len(kwargs["input_ids"])) > 4 or (n > 1 and next(strikes)):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("gating.steering.preamble.length", lambda *a, **k: 0)
    b, hook = Backend(tiny, 9), tiny.model.register_forward_pre_hook(full, with_kwargs=True)
    try:
        parts = in_halves(lambda rows: b.generate(rows, {}, NEW).tokens, ids)
        nll, states = b.nll(ids, answers), b.capture(ids, ["last"])
    finally:
        hook.remove()
    assert [t for _, part in parts for t in part] == wanted[0] and b.room.too_many["rows"] <= 5
    assert np.allclose(nll, wanted[1], atol=1e-5)
    for here, there in zip(states, wanted[2], strict=True):
        assert np.abs(here - there).max() <= 1e-5 * np.abs(there).max()
    with pytest.raises(RuntimeError, match="another fault"), b.room.of("rows", 1):
        raise RuntimeError("another fault")
    with pytest.raises(TooLarge, match=r"no memory for 3 rows.*batch_rows"), Room().of("rows", 3):
        torch.empty(2**60)  # what torch itself says of a processor's memory
