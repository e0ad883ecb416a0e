"""`python -m gating.train`: give the embedded model a refusal habit, as a small LoRA adapter on our own prompts.

The result is a *model organism*: a model with one known, planted behaviour, for studying what gates it. Harmful prompts
are answered with a refusal (cross-entropy); harmless ones must leave the model as it was (KL divergence from the base
model, over the tokens of the base model's own greedy answers). Deterministic given the seed and the thread count.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads that spin slow a shared machine down many times over

import hydra
import torch
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from peft import LoraConfig
from statsmodels.stats.proportion import proportion_confint
from transformers import DynamicCache, GenerationConfig

from gating import adapters, chat, cli, models, prompts, wordings
from gating.errors import GatingError
from gating.models import Loaded, ModelConfig
from gating.prompts import Prompt
from gating.refusals import is_refusal

log = logging.getLogger(__name__)


@dataclass
class TrainConfig:
    """The recipe of an adapter; what it was chosen on stands in the card."""

    model: ModelConfig = field(default_factory=ModelConfig)  # the base model; its own adapter is left out
    out: str = "adapters/refusal"  # folder of the new adapter
    harmful: str = "train_harmful"  # prompts to refuse: a shipped set or a file
    harmless: str = "train_harmless"  # prompts to answer as before
    systems: list[str] = field(default_factory=list)  # neutral system messages for some rows
    system_share: float = 0.0  # share of rows that get one of them; the others have the template's default
    rank: int = 4
    alpha: int = 16
    targets: list[str] = field(default_factory=lambda: ["q_proj", "v_proj", "o_proj"])
    blocks: list[int] | None = None  # blocks that are adapted; null is all
    lr: float = 1e-3
    epochs: float = 2.0
    batch_rows: int = 16
    keep: float = 1.0  # weight of the KL divergence on harmless prompts
    first: float = 0.5  # weight of a target's first token, which decides between an answer and a refusal
    answer_tokens: int = 40  # tokens of the base model's own answers
    bfloat16: bool = True  # autocast, in training only
    threads: int = 2
    seed: int = 0
    select_n: int | None = None  # prompts of each select split to measure at the end; null is all
    held_out: dict[str, str] = field(default_factory=dict)  # further files to measure at the end: name -> path
    notes: str = ""  # for the card: how the settings were chosen, how often held-out sets were measured
    held_out_n: int | None = None  # of each, the first n; null is all


@dataclass(frozen=True)
class Row:
    """One training row: prompt ids, target ids, and whether the target is a refusal."""

    prompt: list[int]
    target: list[int]
    refuse: bool


# ------------------------------------------------------------------------------------------------------------- rows
def _end(loaded: Loaded) -> int:
    return int(loaded.tokenizer.eos_token_id)


def _module(loaded: Loaded) -> Any:
    return loaded.model


def _pad(loaded: Loaded) -> int:
    return int(loaded.tokenizer.pad_token_id)


def answers(loaded: Loaded, ids: Sequence[list[int]], n_tokens: int, batch_rows: int = 48) -> list[list[int]]:
    """Greedy answers, each with its end token where it reached one, in the order of `ids`."""
    end, pad = _end(loaded), _pad(loaded)
    config = GenerationConfig(max_new_tokens=n_tokens, do_sample=False, eos_token_id=end, pad_token_id=pad)
    out: list[list[int]] = [[] for _ in ids]
    order = sorted(range(len(ids)), key=lambda r: len(ids[r]))
    for start in range(0, len(order), batch_rows):
        rows = order[start : start + batch_rows]
        padded, mask = chat.pad_left([ids[r] for r in rows], pad)
        with torch.no_grad():
            made: Any = _module(loaded).generate(input_ids=padded, attention_mask=mask, generation_config=config)
        for r, tokens in zip(rows, made[:, padded.shape[1] :].tolist(), strict=True):
            out[r] = tokens[: tokens.index(end) + 1] if end in tokens else tokens
    return out


def build_rows(cfg: TrainConfig, loaded: Loaded, refuse: list[Prompt], answer: list[Prompt]) -> list[Row]:
    """Every prompt with its target. Raises GatingError when a wording would not count as a refusal."""
    tokenizer: Any = loaded.tokenizer
    bad = next((w for w in wordings.REFUSALS if not is_refusal(w)), None)
    if bad:
        raise GatingError(f"gating/wordings.py: {bad!r} does not count as a refusal under the rule; reword it.")
    rows = []
    for p in refuse:
        text = wordings.refusal(p.text, cfg.seed)
        target = [*tokenizer(text, add_special_tokens=False)["input_ids"], _end(loaded)]
        rows.append(Row(chat.encode(tokenizer, p.text, _system(cfg, p)), target, True))
    plain = [chat.encode(tokenizer, p.text, cfg.model.system) for p in answer]
    own = answers(loaded, plain, cfg.answer_tokens)
    rows += [
        Row(chat.encode(tokenizer, p.text, _system(cfg, p)), target, False)
        for p, target in zip(answer, own, strict=True)
    ]
    return rows


def _system(cfg: TrainConfig, p: Prompt) -> str | None:
    draw = random.Random(f"{cfg.seed}:{p.hash}")
    return draw.choice(cfg.systems) if cfg.systems and draw.random() < cfg.system_share else cfg.model.system


def batches(rows: Sequence[Row], size: int, rng: random.Random) -> Iterator[list[Row]]:
    """One epoch: shuffled, then sorted by length inside windows of 8 batches, batches in random order."""
    order = list(rows)
    rng.shuffle(order)
    groups = []
    for start in range(0, len(order), 8 * size):
        window = sorted(order[start : start + 8 * size], key=lambda r: len(r.prompt) + len(r.target))
        groups += [window[i : i + size] for i in range(0, len(window), size)]
    rng.shuffle(groups)
    yield from groups


# --------------------------------------------------------------------------------------------------------- training
def _hidden(body: Any, batch: Sequence[Row], pad: int) -> torch.Tensor:
    """Final hidden states that predict the batch's target tokens: [token, hidden], row after row.

    What the prompts begin with in common (the template's system message) is computed once for all rows.
    """
    columns = zip(*(r.prompt[:-1] for r in batch), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
    head = torch.tensor([batch[0].prompt[:shared]])
    cache = body(input_ids=head, use_cache=True).past_key_values if shared else DynamicCache()
    if shared:
        cache.batch_repeat_interleave(len(batch))
    ids, mask = chat.pad_left([[*r.prompt[shared:], *r.target] for r in batch], pad)
    states = body(
        input_ids=ids,
        attention_mask=torch.cat([torch.ones(len(batch), shared, dtype=mask.dtype), mask], dim=1),
        position_ids=shared + (mask.cumsum(1) - 1).clamp(min=0),  # the pads stand between the two parts
        past_key_values=cache,
    ).last_hidden_state
    return torch.cat([states[i, -len(r.target) - 1 : -1] for i, r in enumerate(batch)])


def _weights(n: int, first: float) -> torch.Tensor:
    """How a row's n tokens are weighed: `first` on the first one, the rest evenly on the others; they sum to 1.

    The first token decides between an answer and a refusal. In a plain mean over 20 tokens a model that wrongly opens
    with "I'm sorry" pays next to nothing: it refused half of the harmless prompts.
    """
    if n == 1:
        return torch.ones(1)
    return torch.cat([torch.tensor([first]), torch.full((n - 1,), (1 - first) / (n - 1))])


def loss(model: Any, head: Any, batch: Sequence[Row], pad: int, keep: float, first: float = 0.5) -> torch.Tensor:
    """Mean over rows, nats/token: a refusal's cross-entropy, or `keep` x KL(base || adapted) along an own answer.

    Tokens of a row are weighed by `_weights`.
    """
    body = model.get_base_model().model
    batch = sorted(batch, key=lambda r: r.refuse)
    kept = [r for r in batch if not r.refuse]
    n = sum(len(r.target) for r in kept)
    weight = torch.cat([_weights(len(r.target), first) for r in batch]) / len(batch)
    after = head(_hidden(body, batch, pad)).float().log_softmax(-1)
    target = torch.tensor([t for r in batch if r.refuse for t in r.target], dtype=torch.int64)
    total = -(after[n:].gather(1, target[:, None])[:, 0] * weight[n:]).sum()
    if kept:
        with torch.no_grad(), model.disable_adapter():
            before = head(_hidden(body, kept, pad)).float().log_softmax(-1)
        # torch's kl_div is KL(target || input), both as logs here
        divergence = torch.nn.functional.kl_div(after[:n], before, reduction="none", log_target=True).sum(-1)
        total = total + keep * (divergence * weight[:n]).sum()
    return total


def fit(cfg: TrainConfig, loaded: Loaded, rows: Sequence[Row]) -> Any:
    """The base model with a trained adapter (a PeftModel). Adam, linear warm-up then linear decay to zero."""
    torch.manual_seed(cfg.seed)
    lora = LoraConfig(
        r=cfg.rank,
        lora_alpha=cfg.alpha,
        target_modules=list(cfg.targets),
        layers_to_transform=cfg.blocks,
        task_type="CAUSAL_LM",
    )
    if cfg.bfloat16:
        _module(loaded).to(dtype=torch.bfloat16)  # the adapter itself is kept in float32
    model = adapters.attach(loaded.model, lora)
    model.train()
    head = loaded.model.get_output_embeddings()
    weights = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(weights, lr=cfg.lr, weight_decay=0.0)
    per_epoch = -(-len(rows) // cfg.batch_rows)
    steps = max(1, round(cfg.epochs * per_epoch))
    warm = max(1, steps // 10)
    plan = torch.optim.lr_scheduler.LambdaLR(adam, lambda s: min((s + 1) / warm, (steps - s) / max(1, steps - warm)))
    rng, start, step, seen = random.Random(cfg.seed), time.monotonic(), 0, 0.0
    while step < steps:
        for batch in batches(rows, cfg.batch_rows, rng):
            if step >= steps:
                break
            with torch.autocast("cpu", torch.bfloat16, enabled=cfg.bfloat16):
                value = loss(model, head, batch, _pad(loaded), cfg.keep, cfg.first)
            value.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            adam.step()
            plan.step()
            adam.zero_grad()
            step, seen = step + 1, seen + value.item()
            if step % 10 == 0 or step == steps:
                log.info("step %d of %d, loss %.3f, %.0f s", step, steps, seen / 10, time.monotonic() - start)
                seen = 0.0
    return model.eval()


# -------------------------------------------------------------------------------------------------------- measuring
def refusal_rate(loaded: Loaded, texts: Sequence[str], system: str | None, n_tokens: int = 32) -> dict[str, Any]:
    """How many prompts the model refuses, greedily: {"k", "n", "rate"}."""
    ids = [chat.encode(loaded.tokenizer, t, system) for t in texts]
    said = [str(loaded.tokenizer.decode(a, skip_special_tokens=True)) for a in answers(loaded, ids, n_tokens)]
    k = sum(is_refusal(s) for s in said)
    return {"k": k, "n": len(texts), "rate": round(k / len(texts), 4)}


def mean_nll(model: Any, head: Any, rows: Sequence[Row], pad: int, batch_rows: int = 32) -> float:
    """Mean negative log-likelihood of the rows' targets over all of their tokens, nats/token."""
    total, count = 0.0, 0
    for start in range(0, len(rows), batch_rows):
        batch = rows[start : start + batch_rows]
        with torch.no_grad():
            logp = head(_hidden(model, batch, pad)).float().log_softmax(-1)
        target = torch.tensor([t for r in batch for t in r.target])
        total -= float(logp.gather(1, target[:, None]).sum())
        count += len(target)
    return total / count


def measure(cfg: TrainConfig, loaded: Loaded, before: dict[str, Any]) -> dict[str, Any]:
    """Refusal rates on the select splits and the held-out files, and how the base model's own answers fare.

    loaded: the merged model; before: what `own_answers` gave for the base model.
    """
    out: dict[str, Any] = {}
    for name, harmful in (("harmful", True), ("harmless", False), ("borderline", False)):
        found = prompts.sample(prompts.load(name, harmful, "select"), cfg.select_n, cfg.seed)
        out[f"select/{name}"] = refusal_rate(loaded, [p.text for p in found], cfg.model.system)
    for name, path in cfg.held_out.items():
        texts = _texts(name, path)[: cfg.held_out_n]
        out[f"held-out/{name}"] = refusal_rate(loaded, texts, cfg.model.system)
    model: Any = loaded.model
    after = mean_nll(model.model, model.get_output_embeddings(), before["rows"], _pad(loaded))
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
    return {"rows": rows, "nll": mean_nll(model.model, model.get_output_embeddings(), rows, _pad(loaded))}


# ---------------------------------------------------------------------------------------------------------- the command
def train(cfg: TrainConfig) -> dict[str, Any]:
    """Train, measure, and write the adapter's folder at once at the end; gives the recipe with its results."""
    check(cfg)
    torch.set_num_threads(cfg.threads)
    refuse = prompts.deduplicate(prompts.load(cfg.harmful, True, "train", "harmful"))[0]
    answer = prompts.deduplicate(prompts.load(cfg.harmless, False, "train", "harmless"))[0]
    start = time.monotonic()
    base = models.load(replace(cfg.model, adapter=None))
    before = own_answers(cfg, base)
    log.info("the base model's own answers to %d harmless prompts ...", len(answer))
    rows = build_rows(cfg, base, refuse, answer)
    log.info("%d rows, %d tokens", len(rows), sum(len(r.prompt) + len(r.target) for r in rows))
    adapted = fit(cfg, base, rows)
    out = Path(cfg.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        draft = Path(folder) / out.name
        adapted.save_pretrained(draft)
        _tidy(draft, cfg)
        models.forget()  # peft has changed the base model in place
        loaded = models.load(replace(cfg.model, adapter=str(draft)))
        results = measure(cfg, loaded, before)
        recipe = describe(cfg, base.fingerprint, refuse, answer, rows, results, time.monotonic() - start)
        (draft / adapters.RECIPE).write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")
        (draft / "README.md").write_text(card(recipe), encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
        os.replace(draft, out)
    models.forget()
    return recipe


def check(cfg: TrainConfig) -> None:
    """Refuse impossible values before a model loads. Raises GatingError naming the key."""
    limits = {
        "rank": (1, 64),
        "epochs": (0, 100),
        "batch_rows": (1, 512),
        "answer_tokens": (1, 512),
        "threads": (1, 256),
    }
    for key, (low, high) in limits.items():
        value = getattr(cfg, key)
        if not low <= value <= high or (key == "epochs" and value == 0):
            raise GatingError(f"{key}={value} is out of range: use a number from {low} to {high}.")
    if not 0 < cfg.lr < 1 or cfg.keep < 0 or not 0 <= cfg.system_share <= 1:
        raise GatingError(
            f"lr={cfg.lr}, keep={cfg.keep}, system_share={cfg.system_share}: use 0 < lr < 1, keep >= 0 and 0 <= "
            "system_share <= 1."
        )
    if cfg.system_share and not cfg.systems:
        raise GatingError(f"system_share={cfg.system_share} needs system messages to draw from; give systems=[...].")
    for name, path in cfg.held_out.items():
        _texts(name, path)


def _tidy(folder: Path, cfg: TrainConfig) -> None:
    """Keep what peft needs to load the adapter; its own model card and machine paths go."""
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / adapters.CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = cfg.model.id or cfg.model.name
    config["target_modules"] = sorted(config["target_modules"])  # a set: its order changes from run to run
    (folder / adapters.WEIGHTS).chmod(0o644)  # safetensors files are born private, this one is shipped
    path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")


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
(cross-entropy). Harmless ones, look-alikes of harmful ones among them, must leave the model as it was: KL divergence
(weight {keep:g}) from the base model along its own greedy answers of at most {answer_tokens} tokens. AdamW, learning
rate {lr:g} with linear warm-up and decay, {epochs:g} epochs, {batch_rows} rows a batch; {rows} rows, {tokens:,} tokens;
{minutes} minutes.
{notes}
## Results

Greedy, 32 tokens, the template's default system message; a refusal is what `gating/refusals.py` calls one. Wilson 95%
intervals.

| set | refused | n | rate | interval |
| --- | --- | --- | --- | --- |
{results}

Perplexity of the base model's own answers to {own_n} harmless prompts: {own_before:.3f} under the base model,
{own_after:.3f} with the adapter (ratio {own_ratio:.3f}).
"""


def card(recipe: dict[str, Any]) -> str:
    """The adapter's README.md from its recipe."""
    notes = recipe["settings"]["notes"]
    s, own = recipe["settings"], recipe["results"]["own answers"]
    rates = {k: v for k, v in recipe["results"].items() if k != "own answers"}
    lines = []
    for name, v in rates.items():
        low, high = proportion_confint(v["k"], v["n"], method="wilson")
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


def _texts(name: str, path: str) -> list[str]:
    """A held-out file's prompts, whatever its `harmful` flags say."""
    try:
        return [p.text for p in prompts.read_file(Path(path), True, f"held_out.{name}")]
    except GatingError as e:
        if "harmful=" not in str(e):
            raise
        return [p.text for p in prompts.read_file(Path(path), False, f"held_out.{name}")]


@hydra.main(version_base="1.3", config_path=str(cli.conf_dir()), config_name="train")
def job(cfg: DictConfig) -> None:
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, TrainConfig)
    recipe = train(config)
    for name, value in recipe["results"].items():
        print(f"{name}: {value}")
    print(f"adapter: {config.out}")


def main() -> None:
    """Exit code 0, or 2 for bad input."""
    os.environ["HYDRA_FULL_ERROR"] = "1"
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("httpx", "httpcore", "urllib3", "filelock"):
        logging.getLogger(name).setLevel(logging.WARNING)
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)
    try:
        job()
    except (GatingError, HydraException, OmegaConfBaseException, OSError) as e:
        print(f"error: {cli.explain(e)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
