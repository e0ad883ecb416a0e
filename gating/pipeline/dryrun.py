"""`dry_run=true`: what a run would do and cost, without weights and without a network."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from gating import chat, models
from gating.analysis import stats
from gating.pipeline import prompt_batches
from gating.pipeline.study import Study
from gating.steering.backend import LOGITS_BYTES

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
TEMPLATE_TOKENS = 30  # a chat template with a short system message, where no tokenizer is on this machine
CHARACTERS_A_TOKEN = 4


def prompt_tokens(study: Study) -> tuple[list[int], bool]:
    """Tokens of every test prompt, and whether they were counted (True) or estimated from characters."""
    tokenizer = models.tokenizer_only(study.run.model)
    if tokenizer is None:
        return [len(p.text) // CHARACTERS_A_TOKEN + TEMPLATE_TOKENS for p in study.test], False
    return [len(chat.encode(tokenizer, p.text, study.run.model.system)) for p in study.test], True


def memory(study: Study, tokens: list[int]) -> dict[str, float]:
    """Estimated bytes at the peak: weights, key-value cache of one batch, and the logits of one scoring pass."""
    arch = models.architecture(study.run.model)
    size = BYTES[models.dtype_name(study.run.model)]
    rows = min(study.batch_rows, study.block * len(study.conditions))
    width = max(tokens) + study.max_new_tokens
    cache = 2 * arch["layers"] * arch["kv_heads"] * arch["head_dim"] * size * rows * width
    logits = min(LOGITS_BYTES, rows * (study.max_new_tokens + 1) * arch["vocab"] * 4) * 2
    return {"weights": arch["parameters"] * size, "cache": cache, "logits": logits}


def detectable(study: Study) -> str:
    """What the run can tell apart: said before it begins, whatever comes out."""
    n = sum(p.harmful for p in study.test) or len(study.test)
    about = "harmful" if any(p.harmful for p in study.test) else "harmless"
    shares = {d: stats.minimum_detectable_difference(n, d) for d in (0.1, 0.3, 0.6)}
    said = ", ".join(f"{100 * v:.0f} points if {d:.0%} of the prompts change" for d, v in shares.items() if v == v)
    return (
        f"{n} {about} prompts can tell apart (80% power, p < 0.05, paired): {said or 'no difference at all: ask more'}"
    )


def show(study: Study, console: Console) -> None:
    """Print conditions, rows, batches, tokens, estimated memory and where the result would go."""
    table = Table("condition", "kind", "op", "direction", "layers", "coef", "norm", "scope", title="conditions")
    for c in study.conditions:
        ivs = c.interventions
        cells = ["+".join(str(v) for v in dict.fromkeys(getattr(i, f) for i in ivs)) for f in ("op", "direction")]
        rest = [
            "+".join(f"{i.coef:g}" for i in ivs),
            *("+".join(dict.fromkeys(getattr(i, f) for i in ivs)) for f in ("norm", "scope")),
        ]
        table.add_row(c.name, c.kind, *cells, c.layers, *rest)
    console.print(table)
    tokens, counted = prompt_tokens(study)
    rows = len(study.test) * len(study.conditions)
    n_blocks = -(-len(study.test) // study.block)
    batches = n_blocks * len(prompt_batches.batches(len(study.conditions), study.batch_rows))
    chats = len(study.chats)
    answers = len(study.answered) * study.run.directions.samples
    need = memory(study, tokens)
    about = "" if counted else "about "
    lines = [
        f"model: {study.run.model.id or study.run.model.name}, {models.dtype_name(study.run.model)}",
        f"directions: {', '.join(k.name for k in study.contrasts) or 'none'}, from {chats} prompts, in "
        f"{-(-chats // study.batch_rows)} batches"
        + (f", with {answers} answers of {study.run.directions.response_tokens} tokens" if answers else ""),
        f"rows: {rows} = {len(study.test)} prompts x {len(study.conditions)} conditions, in {batches} batches of at most "
        f"{study.batch_rows} rows ({n_blocks} blocks of {study.block} prompts)",
        f"tokens: {about}{sum(tokens) * len(study.conditions):,} of prompts, at most {rows * study.max_new_tokens:,} new"
        + ("" if counted else " (no tokenizer on this machine: estimated from characters)"),
        ("memory: on the server about " if study.run.backend.name == "ndif" else "memory: about ")
        + f"{sum(need.values()) / 1e9:.1f} GB ({', '.join(f'{k} {v / 1e9:.1f}' for k, v in need.items())})",
    ]
    if study.run.backend.name == "ndif":
        from gating.pipeline import estimate

        lines += [f"server: {models.served_as(study.run.model)}, nothing is sent now", *estimate.told(study, tokens)]
    console.print("\n".join(lines), markup=False, soft_wrap=True, highlight=False)
