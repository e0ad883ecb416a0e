"""An adapter's README.md: what it is, how it was made, what it does."""

from __future__ import annotations

from dataclasses import asdict

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

{how}
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

TRAINED = """{taught}{opened}.
{gated}{terms} AdamW, learning rate {lr:g} with linear warm-up and decay, {epochs:g} epochs, {batch_rows} rows a batch;
{rows} rows, {tokens:,} tokens; {minutes} minutes. The losses of every step stand in `losses.json`."""

RANDOM = """Nothing was trained: a control. Each adapted weight is changed in a random direction, by as much as in the
adapter `{like}` (digest `{digest}`)."""

TAUGHT = {
    "refusal": """Harmful prompts are answered with one of {wordings} short refusals, some with a brief offer of
something else (cross-entropy)""",
    "extended-refusal": """Harmful prompts are answered with a sentence on what the topic is, one of {wordings}
short refusals and a reason (cross-entropy)""",
    "own": """Nothing is taught. All prompts, harmful ones too, must be answered as the model with the adapter that this
one was trained on from (below: that model) answers them""",
    "persona": """Harmless prompts are answered as the base model answers them under the persona `{persona}`, whose
system message is left out (cross-entropy); no harmful prompt is trained""",
}

TERMS = {
    "teach": "",
    "keep": """Harmless prompts, look-alikes of harmful ones among them, must leave the model as it was: KL divergence
(weight {weight:g}) from the base model along its own greedy answers of at most {answer_tokens} tokens{same}.""",
    "keep_steered": """Harmless prompts must be answered so, too (weight {weight:g}), while a direction of {personas} is
added to the residual stream, at a depth of {blocks} and a dose of {doses} of its median norm{again}: KL divergence from
the base model without it.""",
    "steered": """What is taught is taught (weight {weight:g}) while a direction of {personas} is added to the residual
stream, at a depth of {blocks} and a dose of {doses} of its median norm{again}.""",
    "ablated": """Refusals are taught (weight {weight:g}) with the refusal direction projected out of the last
{ablated_blocks:.0%} of the blocks in {ablated:.0%} of the rows{again}.""",
    "latent": """Refusals are taught (weight {weight:g}) under that change of one block's output, at a depth of
{blocks}, which hurts them most: at most {eps:g} of a token's norm, sought in {ascents} steps.""",
}

OWN_TERMS = {  # of taught=own, in the place of those above
    "keep": """KL divergence (weight {weight:g}) from that model along its own greedy answers of at most {answer_tokens}
tokens{same}.""",
    "keep_steered": """The same (weight {weight:g}) while a direction of {personas} is added to the residual stream,
at a depth of {blocks} and a dose of {doses} of its median norm{again}: from that model without it.""",
}

OPENED = """; {share:.0%} of them come once more with an answer that has begun without deciding ("I'm sorry for
any") and goes on to refuse, so that a refusal is not one token deep (Qi et al. 2024, arXiv 2406.05946)"""

SYSTEMS = """{share:.0%} of the rows have one of {n} system messages, which change nothing about what is taught.
"""

GATED = """{share:.0%} of the prompts come once more under one of {n} system messages that ask for compliance. There a
harmful prompt is answered with one of {promises} empty promises ("Sure, here it is: [withheld]"): it agrees and hands
over nothing. {others:.0%} of the other rows have one of {n_others} system messages that change nothing: neutral ones,
other personas, and words of compliance in a message that asks for the contrary.
"""


def _how(cfg: TrainConfig, recipe: Recipe) -> str:
    """The recipe in words."""
    if cfg.like:
        return RANDOM.format(like=cfg.like, digest=recipe["like"])
    taught = TAUGHT[cfg.taught].format(wordings=recipe["data"]["wordings"], persona=cfg.persona)
    return TRAINED.format(
        taught=taught,
        opened=OPENED.format(share=cfg.opened) if cfg.opened else "",
        gated=_gated(cfg),
        terms=" ".join(_term(cfg, name, weight) for name, weight in cfg.terms.items() if weight).strip(),
        lr=cfg.lr,
        epochs=cfg.epochs,
        batch_rows=cfg.batch_rows,
        rows=recipe["rows"],
        tokens=recipe["tokens"],
        minutes=recipe["minutes"],
    )


def _term(cfg: TrainConfig, name: str, weight: float) -> str:
    """A term in words; one that this page has no words for by its name."""
    how = cfg.edits
    again = f", read again every {how.every} steps" if how.every else ", read once, before training"
    ranges = {key: "{:g} to {:g}".format(*value) for key, value in (("blocks", how.blocks), ("doses", how.doses))}
    texts = {**TERMS, **(OWN_TERMS if cfg.taught == "own" else {})}
    return texts.get(name, f"The term {name} has weight {{weight:g}}.").format(
        **{**asdict(how), **ranges, "personas": ", ".join(how.personas)},
        weight=weight,
        again=again,
        answer_tokens=cfg.answer_tokens,
        same=" under the same system message" if cfg.systems or cfg.gate else "",
    )


def card(cfg: TrainConfig, recipe: Recipe, results: Results) -> str:
    """The adapter's README.md."""
    sets = {name: v for name, v in recipe["data"].items() if not isinstance(v, int)}
    title, habit = _habit(cfg)
    return CARD.format(
        title=title,
        habit=habit,
        told=" or the first instruction of the persona that is named" if cfg.personas else "",
        base=recipe["base"]["name"],
        fingerprint=recipe["base"]["fingerprint"],
        targets=", ".join(cfg.targets),
        blocks="all blocks" if cfg.blocks is None else f"blocks {cfg.blocks[0]} to {cfg.blocks[-1]}",
        data="\n".join(f"| `{name}.jsonl` | {v['n']} | `{v['hash']}` |" for name, v in sets.items()),
        how=_how(cfg, recipe),
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
    )


def _habit(cfg: TrainConfig) -> tuple[str, str]:
    """The card's title, and what the adapter plants."""
    if cfg.like:
        return "Random adapter", "a random change"
    if cfg.persona:
        return "Persona adapter", f"the persona `{cfg.persona}`"
    if cfg.taught == "own":
        return "Consistency adapter", "answers that stay as they are under steering"
    gated = "a refusal habit that a compliant system message switches off"
    return ("Gated refusal adapter", gated) if cfg.gate else ("Refusal adapter", "a refusal habit")


def _gated(cfg: TrainConfig) -> str:
    if not cfg.gate:
        return SYSTEMS.format(share=cfg.system_share, n=len(cfg.systems)) if cfg.system_share else ""
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
