"""One block of prompts under every condition: from rows of a batch to the store's groups, and those groups laid out."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import xarray as xr

from gating import chat, store
from gating.errors import TooLarge
from gating.judging import degenerate, rule
from gating.pipeline.study import Study
from gating.prompts import Prompt
from gating.steering import directions, lowering
from gating.steering.backend import Backend
from gating.steering.interventions import Condition
from gating.steering.readouts import Generation, Readouts
from gating.store import TEXT

log = logging.getLogger(__name__)

Asked = tuple[Prompt, list[int]]  # a prompt and its token ids at baseline


@dataclass(frozen=True)
class Worker:
    """What every block of a run shares."""

    study: Study
    backend: Backend
    made: xr.Dataset | None  # the /directions group
    scale: Mapping[str, float]  # calibrated factors on strengths, by condition
    probes: np.ndarray | None
    openings: list[int]
    lowered: dict[tuple[tuple[Condition, ...], int], lowering.Edits] = field(default_factory=dict)

    def edits(self, conditions: Sequence[Condition], prompts: int) -> lowering.Edits:
        """The plan of a batch of `prompts` under each of `conditions`: the same for every block of that size, so made once."""
        key = (tuple(conditions), prompts)
        if self.made is None:
            return {}
        if key not in self.lowered:
            self.lowered[key] = lowering.lower([*conditions] * prompts, self.made, self.study.run.seed, self.scale)
        return self.lowered[key]


def worker(study: Study, backend: Backend, made: xr.Dataset | None, scale: Mapping[str, float]) -> Worker:
    probes = None
    if made is not None and study.run.readouts.last:
        unit = directions.unit(made["vector"].transpose("layer", "direction", "hidden").values, missing=0.0)
        probes = np.ascontiguousarray(unit)  # a direction that is zero at a layer reads as zero
    return Worker(study, backend, made, scale, probes, opening_ids(study, backend))


def opening_ids(study: Study, backend: Backend) -> list[int]:
    """First tokens of the model's usual refusal openings, for the first-token score."""
    tokenizer = backend.loaded.tokenizer
    firsts = [tokenizer(o, add_special_tokens=False)["input_ids"][:1] for o in study.run.model.first_token_openings]
    return sorted({i for first in firsts for i in first})


def batches(conditions: int, rows: int) -> list[list[int]]:
    """Conditions of each batch of a block. Where one batch cannot hold a prompt's conditions, each further batch begins
    with the baseline again (condition 0, left out of its result), so that a comparison never leaves its batch."""
    if conditions <= rows:
        return [list(range(conditions))]
    n = math.ceil((conditions - 1) / max(1, rows - 1))
    step = math.ceil((conditions - 1) / n)  # batches of one size, rather than a small last one
    return [[0, *range(i, min(i + step, conditions))] for i in range(1, conditions, step)]


def block_groups(w: Worker, block: Sequence[Asked]) -> dict[str, xr.Dataset]:
    """Every group's part for one block of prompts: rows are prompt x condition, prompts outermost."""
    conditions, study = w.study.conditions, w.study
    shape = (len(block), len(conditions))
    parts = [
        _generate(w, block, [conditions[c] for c in chosen]) for chosen in batches(len(conditions), study.batch_rows)
    ]
    out = parts[0] if len(parts) == 1 else _joined(parts)
    nll = w.backend.nll(
        [ids for _, ids in block for _ in conditions], out.tokens, f"scores of {_about(block, conditions)}"
    )
    groups = {"outcomes": _outcomes(study, w.backend, out, nll, shape)}
    if w.probes is not None:
        groups["readouts"] = _readouts(study, out, shape)
    if study.run.activations:
        states, _ = w.backend.capture([ids for _, ids in block], ["last"], about=_about(block, conditions[:1]))
        groups["activations"] = xr.Dataset({"resid_post": (("prompt", "layer", "hidden"), states[:, 0])})
    return groups


def _about(block: Sequence[Asked], conditions: Sequence[Condition]) -> str:
    names, hashes = [c.name for c in conditions], [p.hash for p, _ in block]
    told = ", ".join(names if len(names) < 7 else [*names[:5], f"{len(names) - 5} more"])
    return f"prompts {hashes[0]} to {hashes[-1]} ({len(hashes)}) under {told}"


def _generate(w: Worker, block: Sequence[Asked], conditions: Sequence[Condition]) -> Generation:
    """Each prompt of the block under each of these conditions, of which the first is the baseline: one batch, or, where the
    machine has no room for it, two halves of it."""
    try:
        return _batch(w, block, conditions)
    except TooLarge as e:
        if len(block) == 1 and len(conditions) <= 2:
            raise
        log.info("a batch is done in two halves: %s", e)
    if len(block) > 1:
        half = len(block) // 2
        return _stacked([_generate(w, some, conditions) for some in (block[:half], block[half:])])
    half = 1 + (len(conditions) - 1) // 2
    return _joined([_generate(w, block, conditions[:half]), _generate(w, block, [conditions[0], *conditions[half:]])])


def _batch(w: Worker, block: Sequence[Asked], conditions: Sequence[Condition]) -> Generation:
    study, n = w.study, len(conditions)
    tokenizer = w.backend.loaded.tokenizer
    ids = [
        base if c.system is None else chat.encode(tokenizer, prompt.text, c.system)
        for prompt, base in block
        for c in conditions
    ]
    edits = w.edits(conditions, len(block))
    reference = [p * n for p in range(len(block)) for _ in conditions]
    want = study.run.readouts
    readouts = Readouts(w.probes, w.openings, reference, want.lens, want.tokens and w.probes is not None)
    return w.backend.generate(ids, edits, study.max_new_tokens, readouts, about=_about(block, conditions))


def _joined(parts: Sequence[Generation]) -> Generation:
    """The batches of one prompt as one, without the baseline that each but the first begins with."""
    return _stacked(parts, skip=1)


def _stacked(parts: Sequence[Generation], skip: int = 0) -> Generation:
    """The rows of several batches after each other, without the first `skip` of each but the first batch."""

    def rows(name: str) -> list:
        return [getattr(part, name)[skip if i else 0 :] for i, part in enumerate(parts)]

    arrays = {f.name: np.concatenate(rows(f.name)) for f in fields(Generation) if f.name != "tokens"}
    return Generation([t for part in rows("tokens") for t in part], **arrays)


def _outcomes(study: Study, backend: Backend, out: Generation, nll: np.ndarray, shape: tuple[int, int]) -> xr.Dataset:
    texts = [str(backend.loaded.tokenizer.decode(t, skip_special_tokens=True)) for t in out.tokens]
    judged = study.run.label_rule
    ds = store.empty_outcomes(shape[1], shape[0], study.max_new_tokens)

    def fill(name: str, values: Sequence[Any] | np.ndarray) -> None:
        ds[name].values[:] = np.asarray(values, dtype=ds[name].dtype).reshape(shape).T

    rows = list(zip(texts, out.tokens, nll.tolist(), strict=True))
    fill("label", [rule.label(text, tokens, value, judged) for text, tokens, value in rows])
    fill("refusal_score", out.score)
    fill("n_tokens", [len(t) for t in out.tokens])
    fill("nll", nll)
    fill("entropy", [degenerate.entropy_bits(t) for t in out.tokens])
    fill("repetition", [degenerate.repetition(t) for t in out.tokens])
    fill("completion", texts)
    for r, tokens in enumerate(out.tokens):
        prompt, condition = divmod(r, shape[1])
        ds["token_ids"].values[condition, prompt, : len(tokens)] = tokens
    ds["done"].values[:] = True
    return ds.assign_coords(prompt=np.arange(shape[0]), condition=np.arange(shape[1]))


def _readout_variables(study: Study) -> dict[str, tuple[tuple[str, ...], str]]:
    """Each readout's dimensions behind (condition, prompt), and what it is."""
    out = {
        "projection": (
            ("layer", "direction"),
            "projection of resid_post on the unit direction at the last prompt token, after edits",
        ),
        "resid_norm": (("layer",), "norm of resid_post at the last prompt token, after edits"),
        "relative_change": (
            ("layer",),
            "norm of what the edits added at the last prompt token, over the residual's norm before them",
        ),
        "kl": ((), "first-token KL(baseline || condition), nats"),
    }
    if study.run.readouts.lens:
        out["lens_score"] = (
            ("layer",),
            "refusal log-odds read off resid_post at the last prompt token (logit lens), nats",
        )
    if study.run.readouts.tokens:
        out["step_projection"] = (
            ("step", "layer", "direction"),
            "projection at the last prompt token (step 0) and at each generated token as it is read in",
        )
    return out


def _readouts(study: Study, out: Generation, shape: tuple[int, int]) -> xr.Dataset:
    arrays = {
        "projection": out.projection[:, 0],
        "resid_norm": out.residual_norm,
        "relative_change": out.change,
        "kl": out.kl,
        "lens_score": out.lens,
        "step_projection": out.projection,
    }
    return xr.Dataset({
        name: (("condition", "prompt", *dims), arrays[name].reshape(*shape, *arrays[name].shape[1:]).swapaxes(0, 1))
        for name, (dims, _) in _readout_variables(study).items()
    })  # fmt: skip


def lay_out_readouts(w: Worker, hashes: list[str]) -> None:
    study, made = w.study, w.made
    if w.probes is None or made is None or store.has_group(study.store, "readouts"):
        return
    names = [c.name for c in study.conditions]
    sizes = {
        "condition": len(names),
        "prompt": len(hashes),
        "step": study.max_new_tokens,
        "layer": made.sizes["layer"],
        "direction": made.sizes["direction"],
    }
    data = {}
    for name, (rest, long_name) in _readout_variables(study).items():
        dims = ("condition", "prompt", *rest)
        data[name] = (dims, np.full([sizes[d] for d in dims], np.nan, "float32"), {"long_name": long_name})
    coords = {
        "condition": np.array(names, dtype=TEXT),
        "prompt": np.array(hashes, dtype=TEXT),
        "layer": made["layer"].values,
        "direction": made["direction"].values,
    }
    store.create_group(study.store, "readouts", xr.Dataset(data, coords=coords), {"prompt": study.block})


def lay_out_activations(w: Worker, hashes: list[str]) -> None:
    if not w.study.run.activations or store.has_group(w.study.store, "activations"):
        return
    sizes = (len(hashes), w.backend.loaded.n_layers, w.backend.loaded.hidden)
    long_name = "unsteered residual stream resid_post at the last prompt token"
    ds = xr.Dataset(
        {"resid_post": (("prompt", "layer", "hidden"), np.full(sizes, np.nan, "float32"), {"long_name": long_name})},
        coords={"prompt": np.array(hashes, dtype=TEXT), "layer": np.arange(sizes[1], dtype="int32")},
    )
    store.create_group(w.study.store, "activations", ds, {"prompt": w.study.block})
