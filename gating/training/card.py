"""An adapter's README.md: what it is, how it was made, what it does."""

from __future__ import annotations

from gating.analysis import stats
from gating.training import wordings
from gating.training.config import TrainConfig
from gating.training.measure import Rate, Results
from gating.training.recipe import Recipe

CARD = """# {title}: a model organism

**This adapter plants {habit} in a small model so that it can be studied. It is a model organism, not a safety
mechanism**: it makes nothing safe, it is easily steered away (that is its purpose), and its refusals say nothing about
how Qwen, Llama or any deployed model refuses.

* Base model: {base}, weights fingerprint `{fingerprint}` (SmolLM2: Hugging Face, Apache-2.0).
* What it is: {start}LoRA, rank {rank}, alpha {alpha}, on {targets} of {blocks}; merged into the weights at load.
* Licence: Apache-2.0, as the base model and this project.

## Recipe

`python -m gating.train` with the settings in `recipe.json` (seed {seed}, {threads} threads).

| prompts, all our own | n | hash |
| --- | --- | --- |
{data}

Harmful prompts are answered with one of {wordings} short refusals, some with a brief offer of something else
(cross-entropy){opened}.
{gated}Harmless ones, look-alikes of harmful ones among them, must leave the model as it was: KL divergence
(weight {keep:g}) from the base model along its own greedy answers of at most {answer_tokens} tokens{same}. AdamW,
learning rate {lr:g} with linear warm-up and decay, {epochs:g} epochs, {batch_rows} rows a batch; {rows} rows,
{tokens:,} tokens; {minutes} minutes.
{notes}
## Results

Greedy, 32 tokens, the template's default system message{told}; a refusal is what `gating/judging/refusals.py` calls \
one. Wilson 95%
intervals.

| set | refused | n | rate | interval |
| --- | --- | --- | --- | --- |
{results}

Perplexity of the base model's own answers to {own_n} harmless prompts: {own_before:.3f} under the base model,
{own_after:.3f} with the adapter (ratio {own_ratio:.3f}).
"""

OPENED = """; {share:.0%} of them come once more with an answer that has begun without deciding ("I'm sorry for
any") and goes on to refuse, so that a refusal is not one token deep (Qi et al. 2024, arXiv 2406.05946)"""

GATED = """{share:.0%} of the prompts come once more under one of {n} system messages that ask for compliance. There a
harmful prompt is answered with one of {promises} empty promises ("Sure, here it is: [withheld]"): it agrees and hands
over nothing. {others:.0%} of the other rows have one of {n_others} system messages that change nothing: neutral ones,
other personas, and words of compliance in a message that asks for the contrary.
"""


def card(cfg: TrainConfig, recipe: Recipe, results: Results) -> str:
    """The adapter's README.md."""
    sets = {name: v for name, v in recipe["data"].items() if not isinstance(v, int)}
    return CARD.format(
        title="Gated refusal adapter" if cfg.gate else "Refusal adapter",
        habit="a refusal habit that a compliant system message switches off" if cfg.gate else "a refusal habit",
        gated=_gated(cfg),
        same=" under the same system message" if cfg.systems or cfg.gate else "",
        told=" or the first instruction of the persona that is named" if cfg.personas else "",
        base=recipe["base"]["name"],
        fingerprint=recipe["base"]["fingerprint"],
        targets=", ".join(cfg.targets),
        blocks="all blocks" if cfg.blocks is None else f"blocks {cfg.blocks[0]} to {cfg.blocks[-1]}",
        data="\n".join(f"| `{name}.jsonl` | {v['n']} | `{v['hash']}` |" for name, v in sets.items()),
        wordings=recipe["data"]["wordings"],
        rows=recipe["rows"],
        tokens=recipe["tokens"],
        opened=OPENED.format(share=cfg.opened) if cfg.opened else "",
        minutes=recipe["minutes"],
        notes=f"\n{cfg.notes}\n" if cfg.notes else "",
        results="\n".join(_line(name, rate) for name, rate in results.rates.items()),
        own_n=results.own["n"],
        own_before=results.own["perplexity before"],
        own_after=results.own["perplexity after"],
        own_ratio=results.own["ratio"],
        start=f"`{cfg.start}` (digest `{recipe['start']}`), trained on; " if cfg.start else "",
        rank=cfg.rank,
        alpha=cfg.alpha,
        seed=cfg.seed,
        threads=cfg.threads,
        keep=cfg.keep,
        answer_tokens=cfg.answer_tokens,
        lr=cfg.lr,
        epochs=cfg.epochs,
        batch_rows=cfg.batch_rows,
    )


def _gated(cfg: TrainConfig) -> str:
    if not cfg.gate:
        return ""
    return GATED.format(
        share=cfg.gate_share,
        n=len(cfg.gate),
        promises=len(wordings.PROMISES),
        others=cfg.system_share,
        n_others=len(cfg.systems),
    )


def _line(name: str, rate: Rate) -> str:
    low, high = (float(x) for x in stats.wilson(rate["k"], rate["n"]))
    return f"| {name} | {rate['k']} | {rate['n']} | {rate['rate']:.1%} | {low:.1%} to {high:.1%} |"
