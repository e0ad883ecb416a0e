"""What an adapter does: how often the model refuses, and how likely the base model's own answers still are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, TypedDict

from gating import chat, personas, prompts
from gating.judging.refusals import is_refusal
from gating.models import Loaded, ModelConfig
from gating.models.parts import unembedding
from gating.prompts import Prompt
from gating.training.config import TrainConfig, held_out_texts
from gating.training.forward import mean_nll
from gating.training.rows import Row, answers, pad_id


class Rate(TypedDict):
    """k of n prompts refused."""

    k: int
    n: int
    rate: float


OwnAnswers = TypedDict(
    "OwnAnswers", {"n": int, "perplexity before": float, "perplexity after": float, "ratio": float}
)  # to n harmless prompts: the base model's own answers, under the base model and with the adapter


class Results(NamedTuple):
    rates: dict[str, Rate]  # by prompt set: select/NAME or held-out/NAME, and "... under PERSONA"
    own: OwnAnswers


class BaseAnswers(NamedTuple):
    rows: list[Row]
    nll: float  # nats/token


def refusal_rate(loaded: Loaded, texts: Sequence[str], cfg: ModelConfig, n_tokens: int = 32) -> Rate:
    """How many prompts the model refuses in its first n_tokens, greedily."""
    ids = [chat.encode(loaded.tokenizer, t, cfg.system, cfg.template) for t in texts]
    tokens = answers(loaded, ids, n_tokens)
    k = sum(is_refusal(str(loaded.tokenizer.decode(t, skip_special_tokens=True))) for t in tokens)
    return {"k": k, "n": len(texts), "rate": round(k / len(texts), 4)}


def measure(cfg: TrainConfig, loaded: Loaded, base: BaseAnswers) -> Results:
    """Refusal rates on the select splits and the held-out files, and the perplexity of the base model's own answers.

    loaded: the merged model; base: what `base_answers` gave for the base model. Each rate stands once more for every
    persona of the configuration, with its first instruction as the system message.
    """
    selected = (("harmful", True), ("harmless", False), ("borderline", False))
    sets = {f"select/{name}": [p.text for p in select(cfg, name, harmful)] for name, harmful in selected}
    sets |= {f"held-out/{n}": held_out_texts(n, path)[: cfg.held_out_n] for n, path in cfg.held_out.items()}
    rates = {
        f"{name}{under}": refusal_rate(loaded, texts, model)
        for name, texts in sets.items()
        for under, model in _systems(cfg).items()
    }
    after = _nll(loaded, base.rows)
    own: OwnAnswers = {
        "n": len(base.rows),
        "perplexity before": round(math.exp(base.nll), 4),
        "perplexity after": round(math.exp(after), 4),
        "ratio": round(math.exp(after - base.nll), 4),
    }
    return Results(rates, own)


def _systems(cfg: TrainConfig) -> dict[str, ModelConfig]:
    """The model without and with each persona's system message, by what it adds to a set's name."""
    told = {f" under {name}": replace(cfg.model, system=personas.load(name).positive[0]) for name in cfg.personas}
    return {"": cfg.model, **told}


def base_answers(cfg: TrainConfig, loaded: Loaded) -> BaseAnswers:
    """The base model's greedy answers to the harmless select prompts, and their likelihood under it."""
    asked = (p.text for p in select(cfg, "harmless", False))
    ids = [chat.encode(loaded.tokenizer, text, cfg.model.system, cfg.model.template) for text in asked]
    rows = [Row(i, a, False) for i, a in zip(ids, answers(loaded, ids, 64), strict=True)]
    return BaseAnswers(rows, _nll(loaded, rows))


def select(cfg: TrainConfig, name: str, harmful: bool) -> list[Prompt]:
    """A shipped set's prompts of the select split, as many as are asked for."""
    return prompts.sample(prompts.load(name, harmful, "select"), cfg.select_n, cfg.seed)


def _nll(loaded: Loaded, rows: Sequence[Row]) -> float:
    return mean_nll(loaded.model.base_model, unembedding(loaded.model), rows, pad_id(loaded))
