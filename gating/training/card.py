"""What an adapter does: measured on the select splits and held-out files, kept as a recipe, told in a card."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

from gating import chat, models, prompts
from gating.analysis import stats
from gating.judging.refusals import is_refusal
from gating.models import Loaded
from gating.prompts import Prompt
from gating.training import wordings
from gating.training.config import TrainConfig, held_out_texts
from gating.training.fit import mean_nll
from gating.training.rows import Row, answers, pad_id


def refusal_rate(loaded: Loaded, texts: Sequence[str], system: str | None, n_tokens: int = 32) -> dict[str, Any]:
    """How many prompts the model refuses, greedily: {"k", "n", "rate"}."""
    ids = [chat.encode(loaded.tokenizer, t, system) for t in texts]
    said = [str(loaded.tokenizer.decode(a, skip_special_tokens=True)) for a in answers(loaded, ids, n_tokens)]
    k = sum(is_refusal(s) for s in said)
    return {"k": k, "n": len(texts), "rate": round(k / len(texts), 4)}


def measure(cfg: TrainConfig, loaded: Loaded, before: dict[str, Any]) -> dict[str, Any]:
    """Refusal rates on the select splits and the held-out files, and how the base model's own answers fare.

    loaded: the merged model; before: what `own_answers` gave for the base model.
    """
    out: dict[str, Any] = {}
    for name, harmful in (("harmful", True), ("harmless", False), ("borderline", False)):
        found = prompts.sample(prompts.load(name, harmful, "select"), cfg.select_n, cfg.seed)
        out[f"select/{name}"] = refusal_rate(loaded, [p.text for p in found], cfg.model.system)
    for name, path in cfg.held_out.items():
        texts = held_out_texts(name, path)[: cfg.held_out_n]
        out[f"held-out/{name}"] = refusal_rate(loaded, texts, cfg.model.system)
    model: Any = loaded.model
    after = mean_nll(model.model, model.get_output_embeddings(), before["rows"], pad_id(loaded))
    out["own answers"] = {
        "n": len(before["rows"]),
        "perplexity before": round(math.exp(before["nll"]), 4),
        "perplexity after": round(math.exp(after), 4),
        "ratio": round(math.exp(after - before["nll"]), 4),
    }
    return out


def own_answers(cfg: TrainConfig, loaded: Loaded) -> dict[str, Any]:
    """The base model's greedy answers to the harmless select prompts, and their nats/token under it."""
    found = prompts.sample(prompts.load("harmless", False, "select"), cfg.select_n, cfg.seed)
    ids = [chat.encode(loaded.tokenizer, p.text, cfg.model.system) for p in found]
    rows = [Row(i, a, False) for i, a in zip(ids, answers(loaded, ids, 64), strict=True)]
    model: Any = loaded.model
    return {"rows": rows, "nll": mean_nll(model.model, model.get_output_embeddings(), rows, pad_id(loaded))}


def describe(
    cfg: TrainConfig,
    fingerprint: str,
    refuse: list[Prompt],
    answer: list[Prompt],
    rows: Sequence[Row],
    results: dict[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """Everything that is known about an adapter, for recipe.json."""
    settings = {k: v for k, v in asdict(cfg).items() if k not in ("model", "out", "held_out", "held_out_n", "select_n")}
    return {
        "base": {
            "name": cfg.model.name,
            "fingerprint": fingerprint,
            **models.identity(replace(cfg.model, adapter=None)),
        },
        "prompts": {cfg.harmful: True, cfg.harmless: False},
        "data": {
            cfg.harmful: {"n": len(refuse), "hash": prompts.digest(refuse)},
            cfg.harmless: {"n": len(answer), "hash": prompts.digest(answer)},
            "wordings": len(wordings.REFUSALS),
        },
        "settings": settings,
        "rows": len(rows),
        "tokens": sum(len(r.prompt) + len(r.target) for r in rows),
        "minutes": round(seconds / 60, 1),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "results": results,
    }


CARD = """# {title}: a model organism

**This adapter plants a refusal habit in a small model so that it can be studied. It is a model organism, not a safety
mechanism**: it makes nothing safe, it is easily steered away (that is its purpose), and its refusals say nothing about
how Qwen, Llama or any deployed model refuses.

* Base model: {base}, weights fingerprint `{fingerprint}` (SmolLM2: Hugging Face, Apache-2.0).
* What it is: LoRA, rank {rank}, alpha {alpha}, on {targets} of {blocks}; merged into the weights at load.
* Licence: Apache-2.0, as the base model and this project.

## Recipe

`python -m gating.train` with the settings in `recipe.json` (seed {seed}, {threads} threads).

| prompts, all our own | n | hash |
| --- | --- | --- |
{data}

Harmful prompts are answered with one of {wordings} short refusals, some with a brief offer of something else
(cross-entropy){opened}.
Harmless ones, look-alikes of harmful ones among them, must leave the model as it was: KL divergence
(weight {keep:g}) from the base model along its own greedy answers of at most {answer_tokens} tokens. AdamW, learning
rate {lr:g} with linear warm-up and decay, {epochs:g} epochs, {batch_rows} rows a batch; {rows} rows, {tokens:,} tokens;
{minutes} minutes.
{notes}
## Results

Greedy, 32 tokens, the template's default system message; a refusal is what `gating/judging/refusals.py` calls one. Wilson 95%
intervals.

| set | refused | n | rate | interval |
| --- | --- | --- | --- | --- |
{results}

Perplexity of the base model's own answers to {own_n} harmless prompts: {own_before:.3f} under the base model,
{own_after:.3f} with the adapter (ratio {own_ratio:.3f}).
"""

OPENED = """; {share:.0%} of them come once more with an answer that has begun without deciding ("I'm sorry for
any") and goes on to refuse, so that a refusal is not one token deep (Qi et al. 2024, arXiv 2406.05946)"""


def card(recipe: dict[str, Any]) -> str:
    """The adapter's README.md from its recipe."""
    notes = recipe["settings"]["notes"]
    s, own = recipe["settings"], recipe["results"]["own answers"]
    rates = {k: v for k, v in recipe["results"].items() if k != "own answers"}
    lines = []
    for name, v in rates.items():
        low, high = (float(x) for x in stats.wilson(v["k"], v["n"]))
        lines.append(f"| {name} | {v['k']} | {v['n']} | {v['rate']:.1%} | {low:.1%} to {high:.1%} |")
    sets = [f"| `{k}.jsonl` | {v['n']} | `{v['hash']}` |" for k, v in recipe["data"].items() if isinstance(v, dict)]
    return CARD.format(
        title="Refusal adapter",
        base=recipe["base"]["name"],
        fingerprint=recipe["base"]["fingerprint"],
        targets=", ".join(s["targets"]),
        blocks="all blocks" if s["blocks"] is None else f"blocks {s['blocks'][0]} to {s['blocks'][-1]}",
        data="\n".join(sets),
        wordings=recipe["data"]["wordings"],
        rows=recipe["rows"],
        tokens=recipe["tokens"],
        opened=OPENED.format(share=s["opened"]) if s["opened"] else "",
        minutes=recipe["minutes"],
        notes=f"\n{notes}\n" if notes else "",
        results="\n".join(lines),
        own_n=own["n"],
        own_before=own["perplexity before"],
        own_after=own["perplexity after"],
        own_ratio=own["ratio"],
        **{
            k: s[k] for k in ("rank", "alpha", "seed", "threads", "keep", "answer_tokens", "lr", "epochs", "batch_rows")
        },
    )
