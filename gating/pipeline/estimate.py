"""What a run would send to a server and get back, before anything is sent: jobs, rows a job, bytes at most.

Everything is reduced inside the trace, so a row costs a bounded number of bytes: its new token ids, one projection a
block and direction (a step, with readouts.tokens), its share of the plan. Upload is counted as it is before
compression, which takes off most of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gating import models
from gating.pipeline import batching, calibrate, matched, prompt_batches
from gating.pipeline.config import CALIBRATION_PROMPTS, MATCHING_PROMPTS
from gating.pipeline.study import Study
from gating.steering import lowering, readouts
from gating.steering.direction_methods import METHODS

ENVELOPE = 64_000  # bytes of a job that do not grow with its rows: the source of gating.steering.ops, the tracer, names
TENSORS = 24_000  # of a result: torch's own overhead a tensor


@dataclass(frozen=True)
class Jobs:
    """Jobs of one kind: how many, rows in the largest, bytes up and down of the largest."""

    kind: str
    n: int
    rows: int
    up: int
    down: int


def jobs(study: Study, tokens: Sequence[int]) -> list[Jobs]:
    """tokens: of every test prompt (gating.pipeline.dryrun.prompt_tokens)."""
    arch, run = models.architecture(study.run.model), study.run
    layers, hidden, new = arch["layers"], arch["hidden"], study.max_new_tokens
    n_prompt_batches = -(-len(study.test) // study.prompt_batch)
    chosen = batching.batches(len(study.conditions), study.batch_rows, batching.leading(study.conditions))
    rows, width = max(study.prompt_batch * len(conditions) for conditions in chosen), max(tokens)
    whole = sum(not spec.variant for spec in study.direction_specs)
    n_directions = (whole + len(run.directions.derived)) if run.readouts.last else 0
    sizes = {"step": new, "layer": layers, "direction": n_directions}
    plan = 4 * hidden * (rows * lowering.vectors_a_row(study.conditions) + layers * n_directions)
    read = rows * (4 * new + readouts.bytes_a_row(_asked(study), sizes))
    up, down = ENVELOPE + plan + rows * width * 40, TENSORS + read
    counted = [Jobs("model's signature", 1, 1, ENVELOPE, TENSORS + layers * hidden * 8)]
    if study.direction_specs and not run.directions.source:
        counted += _directions(study, layers, hidden, width)
    if "lens_score" in _asked(study):
        counted.append(Jobs("check of the logit lens", 1, 3, ENVELOPE + 4 * layers * hidden, TENSORS))
    if run.steer.iso_kl:
        counted.append(_calibration(study, width))
    if removals := matched.removals(study.conditions):
        counted.append(_matching(study, len(removals), width))
    counted.append(Jobs("answers", n_prompt_batches * len(chosen), rows, up, down))
    if samples := run.sampling.n:
        counted.append(
            Jobs("sampled answers", samples * n_prompt_batches * len(chosen), rows, up, TENSORS + rows * 4 * new)
        )
    scored = ENVELOPE + rows * (width + new) * 40
    counted.append(Jobs("scores of answers", (1 + samples) * n_prompt_batches, rows, scored, TENSORS + rows * 4))
    if run.activations:
        n = study.prompt_batch
        bare, states = ENVELOPE + n * width * 24, TENSORS + n * 4 * layers * (hidden + width)
        counted.append(Jobs("activations", n_prompt_batches, n, bare, states))
    return counted


def _asked(study: Study) -> tuple[str, ...]:
    """The readouts that a run brings back."""
    there = {"score_ids", "reference", *(["probes"] if study.run.readouts.last else [])}
    return readouts.named(prompt_batches.extra_readouts(study), there)


def _directions(study: Study, layers: int, hidden: int, width: int) -> list[Jobs]:
    how = study.run.directions
    # a user's persona is read where an answer stands as a user's message, which may be answered in turn
    rounds = 2 if any(spec.role in ("user", "i_thou") for spec in study.direction_specs) else 1
    answers = len(study.answered) * how.samples
    texts = len(study.chats) + rounds * answers
    rows = min(study.batch_rows, texts)
    positions = len({spec.position for spec in study.direction_specs})
    length = 4 * width + (how.response_tokens if answers else 0)  # persona chats hold an instruction too
    counted = []
    if answers:
        n, up = rounds * -(-answers // study.batch_rows), ENVELOPE + rows * length * 40
        counted.append(Jobs("answers for directions", n, rows, up, TENSORS + rows * 4 * how.response_tokens))
    sides = 2 * sum(2 if spec.role == "i_thou" else 1 for spec in study.direction_specs)
    needs_rows = METHODS[how.method].needs_rows or how.permutations > 0
    states = rows * positions * layers * hidden * 4 if needs_rows else sides * layers * hidden * 8
    up = ENVELOPE + rows * (length * (24 + 4 * positions) + sides * positions * 8)
    down = TENSORS + states + rows * length * layers * 4
    counted.append(Jobs("directions", -(-texts // study.batch_rows), rows, up, down))
    return counted


def _calibration(study: Study, width: int) -> Jobs:
    """Every condition on every calibration prompt at each step of the bisection (gating/pipeline/calibrate.py)."""
    parts = calibrate.parts(1 + len(calibrate.scaled(study)), CALIBRATION_PROMPTS, study.batch_rows)
    rows = max(len(part.conditions) * (part.stop - part.start) for part in parts)
    hidden = models.architecture(study.run.model)["hidden"]
    a_row = hidden * 4 * lowering.vectors_a_row(study.conditions) + width * 40
    n = (calibrate.STEPS + 2) * len(parts)
    return Jobs("calibration", n, rows, ENVELOPE + rows * a_row, TENSORS + rows * 8)


def _matching(study: Study, n: int, width: int) -> Jobs:
    """Each removal on the matching prompts, of three rows a prompt at most (gating/pipeline/matched.py)."""
    rows = min(3 * 2 * MATCHING_PROMPTS, study.batch_rows)
    jobs = -(-2 * MATCHING_PROMPTS // max(1, study.batch_rows // 3))
    hidden = models.architecture(study.run.model)["hidden"]
    up = ENVELOPE + rows * (hidden * 4 * lowering.vectors_a_row(study.conditions) + width * 40)
    return Jobs("matched controls", n * jobs, rows, up, TENSORS + rows * matched.TOKENS * hidden * 4)


def lines(study: Study, tokens: Sequence[int]) -> list[str]:
    """Jobs and bytes for a dry run."""
    every = jobs(study, tokens)
    n, rows = sum(j.n for j in every), len(study.test) * len(study.conditions)
    shown = [f"jobs: {n}, at most {study.run.backend.in_flight} under way at once"]
    shown += [
        f"  {j.kind}: {j.n} of at most {j.rows} rows, {j.up / 1e6:.2f} MB up (before compression) and "
        f"{j.down / 1e6:.2f} MB down"
        for j in every
    ]
    for way, total in (("up", sum(j.n * j.up for j in every)), ("down", sum(j.n * j.down for j in every))):
        shown.append(f"{way}: at most {total / rows / 1e3:.1f} KB a row, in all at most {total / 1e6:.2f} MB")
    return shown
