"""One batch of prompts under every condition: from rows to the store's groups, and those groups laid out."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import xarray as xr

from gating import store
from gating.errors import TooLarge
from gating.judging import degenerate
from gating.pipeline import answered, stopping
from gating.pipeline.answered import Answered
from gating.pipeline.batching import batches, leading
from gating.pipeline.study import Study
from gating.prompts import Prompt
from gating.steering import directions, lens, lowering, readouts
from gating.steering.backend import TOP_P, Backend
from gating.steering.interventions import Condition
from gating.steering.readouts import Generation, Readouts
from gating.store import TEXT

log = logging.getLogger(__name__)

SAMPLED = ("label", "completion", "token_ids", "n_tokens", "nll")  # of /outcomes, what is kept of a sample
SAMPLE_DIMS = ("condition", "prompt", "sample")


class Encoded(NamedTuple):
    """A prompt and its token ids under the run's own system message."""

    prompt: Prompt
    ids: list[int]


@dataclass(frozen=True)
class Worker:
    """What every prompt batch of a run shares."""

    study: Study
    backend: Backend
    directions: xr.Dataset | None  # the /directions group
    scale: Mapping[str, float]  # calibrated factors on strengths, by condition
    matched: lowering.Matched  # directions of matched controls
    probes: np.ndarray | None
    openings: list[int]
    lowered: dict[tuple[tuple[Condition, ...], int], lowering.Edits] = field(default_factory=dict)

    def edits(self, conditions: Sequence[Condition], prompts: int) -> lowering.Edits:
        """The edits of `prompts` under each of `conditions`: the same for every batch of that size, so made once."""
        key = (tuple(conditions), prompts)
        if self.directions is None:
            return {}
        if key not in self.lowered:
            seed = self.study.run.seed
            self.lowered[key] = lowering.lower([*conditions] * prompts, self.directions, seed, self.scale, self.matched)
        return self.lowered[key]

    def readouts(self, prompts: int = 1, conditions: int = 1) -> Readouts:
        """What is read of rows that are prompt x condition, each prompt's first condition being its baseline."""
        reference = [p * conditions for p in range(prompts) for _ in range(conditions)]
        return Readouts(self.probes, self.openings, reference, extra_readouts(self.study))


def extra_readouts(study: Study) -> tuple[str, ...]:
    """The readouts that readouts.* asks for beside the default ones."""
    asked = study.run.readouts
    named = (("lens_score", asked.lens), ("step_projection", asked.tokens))
    return (*(name for name, wanted in named if wanted), *asked.extra)


def worker(
    study: Study,
    backend: Backend,
    extracted: xr.Dataset | None,
    scale: Mapping[str, float],
    matched: lowering.Matched | None = None,
) -> Worker:
    """extracted: the /directions group, None where the run has no directions."""
    probes = None
    if extracted is not None and study.run.readouts.last:
        read = directions.probed(extracted)["vector"]
        unit = directions.unit(read.transpose("layer", "direction", "hidden").values, missing=0.0)
        probes = np.ascontiguousarray(unit)  # a direction that is zero at a layer reads as zero
        if "lens_score" in extra_readouts(study):
            lens.check(backend)
    return Worker(study, backend, extracted, scale, matched or {}, probes, opening_ids(study, backend))


def opening_ids(study: Study, backend: Backend) -> list[int]:
    """First tokens of the model's usual refusal openings, for the first-token score."""
    tokenizer = backend.loaded.tokenizer
    firsts = [tokenizer(o, add_special_tokens=False)["input_ids"][:1] for o in study.run.model.first_token_openings]
    return sorted({i for first in firsts for i in first})


def groups(w: Worker, prompts: Sequence[Encoded]) -> dict[str, xr.Dataset]:
    """Every group's part for one prompt batch: rows are prompt x condition, prompts outermost."""
    conditions, study = w.study.conditions, w.study
    shape = (len(prompts), len(conditions))
    greedy = _answered(w, prompts)
    filled = {"outcomes": _outcomes(w, prompts, greedy)}
    if w.probes is not None:
        filled["readouts"] = readouts.dataset(greedy.generation, shape[1])
    if greedy.generation.settled is not None:
        filled["stops"] = stopping.dataset(greedy.generation, [p.prompt for p in prompts], conditions)
    if study.run.sampling.n:
        drawn = [_outcomes(w, prompts, _answered(w, prompts, s)) for s in range(study.run.sampling.n)]
        filled["samples"] = _along_samples(drawn)
    if study.run.activations:
        states, _ = w.backend.capture([p.ids for p in prompts], ["last"], about=_about(prompts, conditions[:1]))
        filled["activations"] = xr.Dataset({"resid_post": (("prompt", "layer", "hidden"), states[:, 0])})
    return filled


def _answered(w: Worker, prompts: Sequence[Encoded], sample: int | None = None) -> Answered:
    """Every prompt under every condition, greedily and read, or the sample of this number."""
    conditions = w.study.conditions
    chosen = batches(len(conditions), w.study.batch_rows, leading(conditions))
    generation = _joined(w, prompts, conditions, chosen, sample)
    asked = [p.ids for p in prompts for _ in conditions]
    return answered.score(w.backend, asked, generation, f"scores of {_about(prompts, conditions, sample)}")


def _along_samples(drawn: Sequence[xr.Dataset]) -> xr.Dataset:
    """What /samples keeps of each sample: [condition, prompt, sample] (, token)."""
    together = xr.concat([ds[list(SAMPLED)] for ds in drawn], "sample")
    return together.transpose(*SAMPLE_DIMS, ...)


def _about(prompts: Sequence[Encoded], conditions: Sequence[Condition], sample: int | None = None) -> str:
    names, hashes = [c.name for c in conditions], [p.prompt.hash for p in prompts]
    listed = ", ".join(names if len(names) < 7 else [*names[:5], f"{len(names) - 5} more"])
    return f"prompts {hashes[0]} to {hashes[-1]} ({len(hashes)}) under {listed}" + (
        "" if sample is None else f", sample {sample}"
    )


def _generate(w: Worker, prompts: Sequence[Encoded], conditions: Sequence[Condition], sample: int | None) -> Generation:
    """Each of these prompts under each of these conditions, of which the first is the baseline: one batch, or, where
    the machine has no room for it, two halves of it."""
    try:
        return _batch(w, prompts, conditions, sample)
    except TooLarge as e:
        if len(prompts) == 1 and len(conditions) <= len(leading(conditions)) + 1:
            raise
        log.info("a batch is done in two halves: %s", e)
    if len(prompts) > 1:
        half = len(prompts) // 2
        return readouts.stacked([_generate(w, part, conditions, sample) for part in (prompts[:half], prompts[half:])])
    leads = leading(conditions)
    rows = max(len(leads) + 1, len(conditions) // 2 + 1)
    return _joined(w, prompts, conditions, batches(len(conditions), rows, leads), sample)


def _batch(w: Worker, prompts: Sequence[Encoded], conditions: Sequence[Condition], sample: int | None) -> Generation:
    study = w.study
    ids = [p.ids if c.system is None else study.ids(p.prompt.text, c.system) for p in prompts for c in conditions]
    edits, about = w.edits(conditions, len(prompts)), _about(prompts, conditions, sample)
    if sample is None:
        wanted, asked = w.readouts(len(prompts), len(conditions)), [p.prompt for p in prompts]
        stop = stopping.of_batch(study, w.backend.loaded, asked, conditions, ids) if study.run.stop == "label" else None
        made = w.backend.generate(ids, edits, study.max_new_tokens, wanted, about=about, watch=stop)
        return made if stop is None else made._replace(settled=stop.settled)
    drawn = (study.run.sampling.temperature, draw_seed(study.run.seed, sample, prompts, conditions))
    return w.backend.generate(ids, edits, study.max_new_tokens, sampling=drawn, about=about)


def draw_seed(seed: int, sample: int, prompts: Sequence[Encoded], conditions: Sequence[Condition]) -> int:
    """What the draws of one batch begin from: of its very rows, so that a run that goes on draws the same again, and no
    two batches draw alike."""
    rows = [p.prompt.hash for p in prompts], [c.name for c in conditions]
    return int.from_bytes(hashlib.sha256(repr((seed, sample, rows)).encode()).digest()[:4])


def _joined(
    w: Worker,
    prompts: Sequence[Encoded],
    conditions: Sequence[Condition],
    chosen: Sequence[Sequence[int]],
    sample: int | None,
) -> Generation:
    """Batches of conditions, of one prompt where there are several; each condition once, in order."""
    parts = [_generate(w, prompts, [conditions[c] for c in part], sample) for part in chosen]
    if len(parts) == 1:
        return parts[0]
    order = [c for part in chosen for c in part]
    return readouts.picked(readouts.stacked(parts), [order.index(c) for c in range(len(conditions))])


def _outcomes(w: Worker, prompts: Sequence[Encoded], rows: Answered) -> xr.Dataset:
    """The rows [condition, prompt] judged and measured."""
    study, shape = w.study, (len(prompts), len(w.study.conditions))
    said, generation, nll = rows
    before, texts = (answered.texts(w.backend, [row[part] for row in said]) for part in (0, 1))
    tokens = [answer for _, answer in said]
    ds = store.empty_outcomes(shape[1], shape[0], study.max_new_tokens)

    def fill(name: str, values: Sequence[object] | np.ndarray) -> None:
        ds[name].values[:] = np.asarray(values, dtype=ds[name].dtype).reshape(shape).T

    if study.max_new_tokens > 1:  # one token is no answer, and has no label
        fill("label", answered.labels(study, [p.prompt for p in prompts for _ in study.conditions], rows, texts))
    fill("n_tokens", [len(ids) for ids in tokens])
    fill("n_thought", [len(thought) for thought, _ in said])
    fill("thought", before)
    fill("nll", nll)
    fill("entropy", [degenerate.entropy_bits(ids) for ids in tokens])
    fill("repetition", [degenerate.repetition(ids) for ids in tokens])
    fill("completion", texts)
    for name in readouts.kept(tuple(generation.read), "outcomes"):
        fill(name, generation.read[name])
    for r, ids in enumerate(tokens):
        prompt, condition = divmod(r, shape[1])
        ds["token_ids"].values[condition, prompt, : len(ids)] = ids
    ds["done"].values[:] = True
    return ds.assign_coords(prompt=np.arange(shape[0]), condition=np.arange(shape[1]))


def lay_out_readouts(w: Worker, hashes: list[str]) -> None:
    """The /readouts group with every value missing, where the run has readouts and no such group."""
    study, extracted = w.study, w.directions
    if w.probes is None or extracted is None or store.has_group(study.store, "readouts"):
        return
    coords = {
        "condition": np.array([c.name for c in study.conditions], dtype=TEXT),
        "prompt": np.array(hashes, dtype=TEXT),
        "layer": extracted["layer"].values,
        "direction": directions.probed(extracted)["direction"].values,
    }
    sizes = {**{dim: len(values) for dim, values in coords.items()}, "step": study.max_new_tokens}
    laid_out = readouts.empty(w.readouts().names, sizes, coords)
    store.create_group(study.store, "readouts", laid_out, "prompt", study.prompt_batch)


def lay_out_samples(w: Worker, hashes: list[str]) -> None:
    """The /samples group with every value missing, where samples are asked for and not there."""
    study, how = w.study, w.study.run.sampling
    if not how.n or store.has_group(study.store, "samples"):
        return
    ds = store.empty_outcomes(len(study.conditions), 1, study.max_new_tokens)[list(SAMPLED)]
    ds = ds.expand_dims(sample=np.arange(how.n, dtype="int32")).transpose(*SAMPLE_DIMS, ...)
    ds = ds.assign_coords(condition=np.array([c.name for c in study.conditions], dtype=TEXT))
    ds = store.repeated(ds, "prompt", np.array(hashes, dtype=TEXT))
    ds.attrs = {"temperature": how.temperature, "top_p": TOP_P}
    store.create_group(study.store, "samples", ds, "prompt", study.prompt_batch)


def lay_out_activations(w: Worker, hashes: list[str]) -> None:
    """The /activations group with every value missing, where it is asked for and not there."""
    if not w.study.run.activations or store.has_group(w.study.store, "activations"):
        return
    sizes = (1, w.backend.loaded.n_layers, w.backend.loaded.hidden)
    long_name = "unsteered residual stream resid_post at the last prompt token"
    ds = xr.Dataset(
        {"resid_post": (("prompt", "layer", "hidden"), np.full(sizes, np.nan, "float32"), {"long_name": long_name})},
        coords={"layer": np.arange(sizes[1], dtype="int32")},
    )
    ds = store.repeated(ds, "prompt", np.array(hashes, dtype=TEXT))
    store.create_group(w.study.store, "activations", ds, "prompt", w.study.prompt_batch)
