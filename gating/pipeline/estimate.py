"""What a run would send to a server and get back, before anything is sent: jobs, rows a job, bytes at most.

Everything is reduced inside the trace, so a row costs a bounded number of bytes: its new token ids, one projection a block
and direction (a step, with readouts.tokens), its share of the plan. Upload is counted as it is before compression, which
takes off most of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gating import models
from gating.pipeline import calibrate, prompt_batches
from gating.pipeline.study import Study

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
    n_directions = len(study.contrasts) + len(run.directions.derived)
    n_blocks = -(-len(study.test) // study.block)
    a_block = [study.block * len(chosen) for chosen in prompt_batches.batches(len(study.conditions), study.batch_rows)]
    rows, width = max(a_block), max(tokens)
    steps = new if run.readouts.tokens else 1
    probes = n_directions if run.readouts.last else 0
    plan = rows * hidden * 4 * _slots(study) + layers * probes * hidden * 4
    read = rows * (4 * new + 4 * layers * ((probes + 1) * steps + 2) + 8)
    out = [Jobs("model's signature", 1, 1, ENVELOPE, TENSORS + layers * hidden * 8)]
    if study.contrasts and not run.directions.source:
        out += _directions(study, layers, hidden, width)
    if run.steer.iso_kl:
        out.append(_calibration(study, width))
    out.append(Jobs("answers", n_blocks * len(a_block), rows, ENVELOPE + plan + rows * width * 40, TENSORS + read))
    out.append(Jobs("scores of answers", n_blocks, rows, ENVELOPE + rows * (width + new) * 40, TENSORS + rows * 4))
    if run.activations:
        bare = ENVELOPE + study.block * width * 24
        out.append(
            Jobs("activations", n_blocks, study.block, bare, TENSORS + study.block * 4 * layers * (hidden + width))
        )
    return out


def _directions(study: Study, layers: int, hidden: int, width: int) -> list[Jobs]:
    how = study.run.directions
    # a user's persona is read where an answer stands as a user's message, which may be answered in turn
    rounds = 2 if any(k.role in ("user", "i_thou") for k in study.contrasts) else 1
    answers, out = len(study.answered) * how.samples, []
    texts = len(study.chats) + rounds * answers
    rows = min(study.batch_rows, texts)
    positions = len({k.position for k in study.contrasts})
    length = 4 * width + (how.response_tokens if answers else 0)  # persona chats hold an instruction too
    if answers:
        up = ENVELOPE + rows * length * 40
        out.append(
            Jobs(
                "answers for directions",
                rounds * -(-answers // study.batch_rows),
                rows,
                up,
                TENSORS + rows * 4 * how.response_tokens,
            )
        )
    groups = 2 * sum(2 if k.role == "i_thou" else 1 for k in study.contrasts)
    whole = how.method == "probe" or how.permutations > 0
    states = rows * positions * layers * hidden * 4 if whole else groups * layers * hidden * 8
    up = ENVELOPE + rows * (length * (24 + 4 * positions) + groups * positions * 8)
    out.append(
        Jobs(
            "directions",
            -(-texts // study.batch_rows),
            rows,
            up,
            TENSORS + states + rows * length * layers * 4,
        )
    )
    return out


def _calibration(study: Study, width: int) -> Jobs:
    """Every condition on every calibration prompt at each step of the bisection (gating/pipeline/calibrate.py)."""
    parts = calibrate.parts(1 + len(calibrate.scaled(study)), calibrate.N, study.batch_rows)
    rows = max(len(chosen) * (stop - start) for chosen, start, stop in parts)
    n = (calibrate.STEPS + 2) * len(parts)
    hidden = models.architecture(study.run.model)["hidden"]
    return Jobs("calibration", n, rows, ENVELOPE + rows * (hidden * 4 * _slots(study) + width * 40), TENSORS + rows * 8)


def _slots(study: Study) -> int:
    """Vectors a row that the plan of a batch holds: one a block and place in the order, two where projections are measured."""
    slots = {
        (block, order, iv.op, iv.scope, bool(iv.gate)): (1 if iv.op in ("add", "remove") else 2 * len(iv.directions))
        + bool(iv.gate)
        for c in study.conditions
        for order, iv in enumerate(c.interventions)
        for block in iv.layers
    }
    return sum(slots.values())


def told(study: Study, tokens: Sequence[int]) -> list[str]:
    """Lines for a dry run."""
    every = jobs(study, tokens)
    n, rows = sum(j.n for j in every), len(study.test) * len(study.conditions)
    out = [f"jobs: {n}, at most {study.run.backend.in_flight} under way at once"]
    out += [
        f"  {j.kind}: {j.n} of at most {j.rows} rows, {j.up / 1e6:.2f} MB up (before compression) and {j.down / 1e6:.2f} MB down"
        for j in every
    ]
    for way, total in (("up", sum(j.n * j.up for j in every)), ("down", sum(j.n * j.down for j in every))):
        out.append(f"{way}: at most {total / rows / 1e3:.1f} KB a row, in all at most {total / 1e6:.2f} MB")
    return out
