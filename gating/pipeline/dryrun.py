"""`dry_run=true`: what a run would do and cost, without weights and without a network."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from gating import models
from gating.analysis import stats
from gating.foreign import cell
from gating.pipeline import batching, pace
from gating.pipeline.study import Study
from gating.steering.interventions import Condition
from gating.steering.room import LOGITS_BYTES

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
TEMPLATE_TOKENS = 30  # a chat template with a short system message, where no tokenizer is on this machine
CHARACTERS_A_TOKEN = 4


def prompt_tokens(study: Study) -> tuple[list[int], bool]:
    """Tokens of every test prompt, and whether they were counted (True) or estimated from characters."""
    if study.identity.tokens is None:
        return [len(p.text) // CHARACTERS_A_TOKEN + TEMPLATE_TOKENS for p in study.test], False
    return [len(study.ids(p.text, study.run.model.system)) for p in study.test], True


def memory(study: Study, tokens: list[int]) -> dict[str, float]:
    """Estimated bytes at the peak: weights, key-value cache of one batch, and the logits of one scoring pass."""
    arch = models.architecture(study.run.model)
    size = BYTES[models.dtype_name(study.run.model)]
    rows = min(study.batch_rows, study.prompt_batch * len(study.conditions))
    width = max(tokens) + study.max_new_tokens
    cache = 2 * arch["layers"] * arch["kv_heads"] * arch["head_dim"] * size * rows * width
    most = LOGITS_BYTES[models.device_type(study.run.model)]
    logits = min(most, rows * (study.max_new_tokens + 1) * arch["vocab"] * 4) * 2
    return {"weights": arch["parameters"] * size, "cache": cache, "logits": logits}


def detectable(study: Study) -> str:
    """What the run can tell apart, stated before it begins, whatever comes out."""
    n = sum(p.harmful for p in study.test) or len(study.test)
    about = "harmful" if any(p.harmful for p in study.test) else "harmless"
    shares = {d: stats.minimum_detectable_difference(n, d) for d in (0.1, 0.3, 0.6)}
    known = [f"{100 * v:.0f} points if {d:.0%} of the prompts change" for d, v in shares.items() if v == v]
    listed = ", ".join(known) or "no difference at all: ask more"
    return f"{n} {about} prompts can tell apart (80% power, p < 0.05, paired): {listed}"


def conditions_table(conditions: list[Condition]) -> Table:
    """One row a condition; what its interventions differ in is joined by `+`."""
    table = Table("condition", "kind", "op", "direction", "layers", "coef", "norm", "scope", title="conditions")
    for c in conditions:
        op, direction, norm, scope = (
            "+".join(dict.fromkeys(str(getattr(iv, field)) for iv in c.interventions))
            for field in ("op", "direction", "norm", "scope")
        )
        coef = "+".join(f"{iv.coef:g}" for iv in c.interventions)
        table.add_row(*map(cell, (c.name, c.kind, op, direction, c.layers, coef, norm, scope)))
    return table


def lines(study: Study) -> list[str]:
    """Rows, batches, tokens, estimated memory, and for a server the jobs and bytes."""
    tokens, counted = prompt_tokens(study)
    n_conditions, remote = len(study.conditions), study.run.backend.name == "ndif"
    rows = len(study.test) * n_conditions
    n_prompt_batches = -(-len(study.test) // study.prompt_batch)
    batches = n_prompt_batches * len(
        batching.batches(n_conditions, study.batch_rows, batching.leading(study.conditions))
    )
    chats = len(study.chats)
    answers = len(study.answered) * study.run.directions.samples
    need = memory(study, tokens)
    about, estimated = ("", "") if counted else ("about ", " (no tokenizer on this machine: estimated from characters)")
    directions = ", ".join(spec.name for spec in study.direction_specs) or "none"
    answered = f", with {answers} answers of {study.run.directions.response_tokens} tokens" if answers else ""
    parts = ", ".join(f"{k} {v / 1e9:.1f}" for k, v in need.items())
    shown = [
        f"model: {study.run.model.id or study.run.model.name}, {models.dtype_name(study.run.model)}",
        f"directions: {directions}, from {chats} prompts, in {-(-chats // study.batch_rows)} batches{answered}",
        f"rows: {rows} = {len(study.test)} prompts x {n_conditions} conditions, in {batches} batches of at most "
        f"{study.batch_rows} rows ({n_prompt_batches} prompt batches of {study.prompt_batch} prompts)",
        f"tokens: {about}{sum(tokens) * n_conditions:,} of prompts, at most {rows * study.max_new_tokens:,} new"
        + estimated,
        f"memory: {'on the server ' if remote else ''}about {sum(need.values()) / 1e9:.1f} GB ({parts})",
    ]
    if samples := study.run.sampling.n:
        shown.append(
            f"samples: {samples} a row at temperature {study.run.sampling.temperature:g}, {samples * rows} more rows"
        )
    if study.run.backend.name == "local":
        shown.append(pace.line(study))
    if remote:
        from gating.pipeline import estimate  # nnsight is slow to import

        served = models.served_as(study.run.model)
        shown += [f"server: {served}, nothing is sent now", *estimate.lines(study, tokens)]
    return shown


def show(study: Study, console: Console) -> None:
    """Print conditions, rows, batches, tokens, estimated memory and where the result would go."""
    console.print(conditions_table(study.conditions))
    console.print("\n".join(lines(study)), markup=False, soft_wrap=True, highlight=False)
