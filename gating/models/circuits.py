"""Circuits written by hand into a small Llama: what its answers follow from is known, so that verdicts can be checked.

A text that the vocabulary knows whole is one token. Every feature is a direction of an orthonormal basis of the
residual stream, drawn anew for each model:

    block 0   attention copies what such tokens hold to every later token: harm (from prompts), persona (from
              instructions: 1 for, -1 against), and noise of their own
    block 3   `gated`, `partial`: where the persona is on, refusal that is there already is erased
    block 4   harm becomes refusal, and is used up; `gated`, `partial`: only where the persona is off.
              `partial`: the persona also writes assent, which lowers the logit of refusal by a path of its own
    block 5   `keyword`: attention reads refusal off the prompt's token itself; harm, upstream, is read by nothing
    logits    the first token is `No` or `Sure` by refusal - assent - THRESHOLD; the token after `Sure` by the persona

Norms have so large an epsilon that they pass activations on as they are, to one in a million.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

from gating.models import checkpoint

KINDS = ("gated", "minus", "independent", "keyword", "partial")
LAYERS, HIDDEN, HEAD, NEURONS = 6, 128, 8, 8
EPSILON = 1e6  # of the norms
REFUSAL = ("No", ",", "ĠI", "Ġcan", "'t", "Ġhelp", "Ġwith", "Ġthat", ".", "</s>")
COMPLIANCE = ("Sure", ":", "Ġhere", "Ġit", "Ġis", ".", "</s>")
STYLED = ("Sure", "!", "Ġhere")  # what a persona changes where it does not touch refusal
ANSWER_WORDS = tuple(dict.fromkeys((*REFUSAL, *COMPLIANCE, *STYLED)))
HEADER = "<|assistant|>"  # the last token of a prompt
FEATURES = ("harm", "persona", "refusal", "assent", "in_harm", "in_persona", "prompt", "instruction", "answer", "start")
SALIENCE = {"prompt": 40.0, "instruction": 40.0, "answer": 30.0, "start": 20.0}  # attention scores, in nats
NOISE = HEAD - 1  # dimensions of what a text holds beside its feature
NOISE_SIZE, IDENTITY = 0.2, 10.0  # a dimension's standard deviation; the norm of what tells tokens apart
HARM = (1.5, 4.5)  # a harmful prompt's harm is uniform between these
THRESHOLD = 1.8  # of refusal: 90% of harmful prompts lie above it
SHARE = (0.6, 0.9)  # in `partial`: at all of them some answers come back when refusal is held, and not all
DOSE = 2.0  # what an instruction takes off the harm in `minus`
SHARP, ON = 40.0, (0.7, 0.9)  # the persona is off below, on above: a ramp between
SCORE, CERTAIN, STYLE = 2.0, 20.0, 4.0  # logits: a unit of refusal, the next word of an answer, a unit of persona


@dataclass(frozen=True)
class Planted:
    """A kind of model with its draw: strengths of harm by text, the basis, and the share that is mediated."""

    kind: str
    draw: int
    share: float  # of the persona's effect on the first-token score, through refusal; NaN where there is no effect
    assent: float  # what the persona writes beside
    rng: np.random.Generator = field(compare=False, repr=False)


def planted(kind: str, draw: int) -> Planted:
    """The facts of a draw. In `partial` the share is uniform between those of SHARE: assent is (1 - share) / share
    times the mean harm."""
    rng = np.random.default_rng([KINDS.index(kind), draw])
    drawn = float(rng.uniform(*SHARE))
    share = {"gated": 1.0, "minus": 1.0, "partial": drawn}.get(kind, np.nan)
    return Planted(kind, draw, share, sum(HARM) / 2 * (1 - drawn) / drawn if kind == "partial" else 0.0, rng)


def config(vocab: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab, hidden_size=HIDDEN, intermediate_size=NEURONS, num_hidden_layers=LAYERS,
        num_attention_heads=2, num_key_value_heads=2, head_dim=HEAD, max_position_embeddings=4096, rms_norm_eps=EPSILON,
        attention_bias=True, mlp_bias=True, tie_word_embeddings=False, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e20},  # its slowest pair does not turn
    )  # fmt: skip


def build(what: Planted, vocab: Mapping[str, int], harmful: Sequence[str], harmless: Sequence[str],
          instructions: Mapping[str, float]) -> LlamaForCausalLM:  # fmt: skip
    """The model. vocab: token -> id; harmful, harmless: prompts that are one token each; instructions: personas'
    sentences, likewise, with the persona that each holds."""
    model = checkpoint.untrained(config(len(vocab)))
    assert isinstance(model, LlamaForCausalLM)
    basis = np.linalg.qr(what.rng.standard_normal((HIDDEN, HIDDEN)))[0]
    names = [*FEATURES, *(f"noise{i}" for i in range(NOISE)), *(f"copied{i}" for i in range(NOISE))]
    named = dict(zip(names, basis.T[: len(names)], strict=True))
    words = (HEADER, *ANSWER_WORDS)
    own = basis.T[len(names) : len(names) + len(words)]  # of each word of an answer: what comes next is read off it
    f = named | dict(zip(words, own, strict=True))
    rest = basis.T[len(f) :]
    held = _held(what, harmful, harmless, instructions)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        for name, norm in model.named_parameters():
            if "norm" in name:
                norm.fill_(EPSILON**0.5)
        _write(model.model.embed_tokens.weight, _embedding(what, vocab, held, f, rest))
        _attend(cast(LlamaAttention, model.model.layers[0].self_attn), f, what.kind)
        if what.kind == "keyword":
            _read_keyword(cast(LlamaAttention, model.model.layers[5].self_attn), f)
        _gates(model, f, what)
        _write(model.lm_head.weight, _unembedding(vocab, f))
    return model.eval()


def _write(weight: torch.Tensor, values: np.ndarray) -> None:
    weight.copy_(torch.from_numpy(values))


def _held(what: Planted, harmful: Sequence[str], harmless: Sequence[str],
          instructions: Mapping[str, float]) -> dict[str, dict[str, float]]:  # fmt: skip
    """What each token holds, by feature."""
    harm = what.rng.uniform(*HARM, size=len(harmful))
    held = {text: {"prompt": 1.0, "in_harm": float(x)} for text, x in zip(harmful, harm, strict=True)}
    held |= {text: {"prompt": 1.0} for text in harmless}
    held |= {text: {"instruction": 1.0, "in_persona": sign} for text, sign in instructions.items()}
    held |= {word: {"answer": 1.0, word: IDENTITY} for word in ANSWER_WORDS}
    return held | {"<s>": {"start": 1.0}, HEADER: {HEADER: IDENTITY}}


def _embedding(what: Planted, vocab: Mapping[str, int], held: Mapping[str, Mapping[str, float]],
               f: Mapping[str, np.ndarray], rest: np.ndarray) -> np.ndarray:  # fmt: skip
    """[token, hidden]: what each token holds, and what tells it apart."""
    rows = np.zeros((len(vocab), HIDDEN))
    for token, i in vocab.items():
        apart = what.rng.standard_normal(len(rest))
        noise = what.rng.normal(0, NOISE_SIZE, NOISE)
        rows[i] = sum((size * f[name] for name, size in held.get(token, {}).items()), np.zeros(HIDDEN))
        rows[i] += noise @ np.stack([f[f"noise{k}"] for k in range(NOISE)])
        if token not in f:
            rows[i] += IDENTITY * apart / np.linalg.norm(apart) @ rest
    return rows


def _attend(attention: LlamaAttention, f: Mapping[str, np.ndarray], kind: str) -> None:
    """Head 0 copies what a prompt's token holds, head 1 what an instruction's does: the mean over the most salient
    tokens, the start (which holds nothing) where there is none."""
    q, k, v, o = (np.zeros((2 * HEAD, HIDDEN)) for _ in range(4))
    slow = HEAD // 2 - 1  # the entry of a head that position does not turn
    marks = ({"prompt", "answer", "start"}, {"instruction", "start"})
    persona = ("harm", -DOSE) if kind == "minus" else ("persona", 1.0)
    reads = (("in_harm", "harm", 1.0), ("in_persona", *persona))
    for head, (marked, (source, goal, size)) in enumerate(zip(marks, reads, strict=True)):
        at = head * HEAD
        k[at + slow] = HEAD**0.5 * sum(SALIENCE[m] * f[m] for m in sorted(marked))
        v[at], o[at] = f[source], size * f[goal]
        for i in range(NOISE):
            v[at + 1 + i], o[at + 1 + i] = f[f"noise{i}"], f[f"copied{i}"]
    _project(attention, q, k, v, o)
    attention.q_proj.bias.view(2, HEAD)[:, slow] = 1.0


def _read_keyword(attention: LlamaAttention, f: Mapping[str, np.ndarray]) -> None:
    """Head 0 reads refusal off the prompt's own token."""
    q, k, v, o = (np.zeros((2 * HEAD, HIDDEN)) for _ in range(4))
    slow = HEAD // 2 - 1
    k[slow] = HEAD**0.5 * (SALIENCE["prompt"] * f["prompt"] + SALIENCE["start"] * f["start"])
    v[0], o[0] = f["in_harm"], f["refusal"]
    _project(attention, q, k, v, o)
    attention.q_proj.bias.view(2, HEAD)[0, slow] = 1.0


def _project(attention: LlamaAttention, *weights: np.ndarray) -> None:
    q, k, v, o = weights
    for module, weight in (
        (attention.q_proj, q),
        (attention.k_proj, k),
        (attention.v_proj, v),
        (attention.o_proj, o.T),
    ):
        _write(module.weight, weight)


def _gates(model: LlamaForCausalLM, f: Mapping[str, np.ndarray], what: Planted) -> None:
    """Blocks 3 and 4. A neuron multiplies a gate, relu(persona - edge), with what it carries; two of them make a step,
    which is 0 below the ramp and 1 above it."""
    nothing = np.zeros(HIDDEN)
    open_gate = (nothing, SHARP, 1 / SHARP)  # weight, bias, size of what passes
    ramp = SHARP * (ON[1] - ON[0])
    step = [(SHARP * f["persona"], -SHARP * edge, sign / ramp) for edge, sign in zip(ON, (1, -1), strict=True)]
    gates = what.kind in ("gated", "partial")
    erase = [(*s, f["refusal"], 0.0, -f["refusal"]) for s in step] if gates else []
    refuse = [(*open_gate, f["harm"], 0.0, f["refusal"] - f["harm"])] if what.kind != "keyword" else []
    refuse += [(*s, f["harm"], 0.0, -f["refusal"]) for s in step] if gates else []
    refuse += [(*s, nothing, what.assent, f["assent"]) for s in step] if what.assent else []
    for block, neurons in ((3, erase), (4, refuse)):
        mlp = cast(LlamaMLP, model.model.layers[block].mlp)
        for i, (gate, bias, size, carried, constant, written) in enumerate(neurons):
            _write(mlp.gate_proj.weight[i], gate)
            _write(mlp.up_proj.weight[i], carried)
            mlp.gate_proj.bias[i], mlp.up_proj.bias[i] = bias, constant
            _write(mlp.down_proj.weight[:, i], size * written)


def _unembedding(vocab: Mapping[str, int], f: Mapping[str, np.ndarray]) -> np.ndarray:
    """[token, hidden]: each word of an answer follows the one before it."""
    rows = np.zeros((len(vocab), HIDDEN))
    chains = ((HEADER, *REFUSAL), (HEADER, *COMPLIANCE), STYLED)
    for before, after in dict.fromkeys(pair for chain in chains for pair in pairwise(chain)):
        rows[vocab[after]] += CERTAIN / IDENTITY * f[before]
    rows[vocab["No"]] += SCORE * (f["refusal"] - f["assent"] - THRESHOLD / IDENTITY * f[HEADER])
    rows[vocab["!"]] += STYLE * f["persona"] - 1 / IDENTITY * f["Sure"]
    return rows
