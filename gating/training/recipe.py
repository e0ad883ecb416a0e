"""What is kept beside an adapter's weights as recipe.json: everything that is known about how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import TypedDict

from gating import models, prompts
from gating.models import adapters
from gating.prompts import Prompt
from gating.training import wordings
from gating.training.config import TrainConfig
from gating.training.measure import OwnAnswers, Rate, Results
from gating.training.rows import Row

NOT_SETTINGS = (
    "model",
    "out",
    "held_out",
    "held_out_n",
    "select_n",
    "personas",
)  # of TrainConfig: they do not change the weights


class PromptSet(TypedDict):
    n: int
    hash: str


class Recipe(TypedDict):
    base: dict[str, str | None]  # name, fingerprint and identity of the base model
    start: str | None  # digest of the adapter that was trained on from
    like: str | None  # digest of the adapter whose change the random one is as large as
    prompts: dict[str, bool]  # prompt set -> harmful, those of the adapter that was trained on from included
    data: dict[str, PromptSet | int]  # by prompt set, and under "wordings" how many ways to refuse there are
    settings: dict[str, object]  # of TrainConfig
    rows: int
    tokens: int
    minutes: float
    versions: dict[str, str]
    results: dict[str, Rate | OwnAnswers]  # by prompt set, and under "own answers" those of the base model


def describe(
    cfg: TrainConfig,
    fingerprint: str,
    refuse: list[Prompt],
    answer: list[Prompt],
    rows: Sequence[Row],
    results: Results,
    seconds: float,
) -> Recipe:
    """The recipe of an adapter. fingerprint: the base model's; refuse, answer: the prompts of the two
    training sets, none where a set was not used."""
    base = {"name": cfg.model.name, "fingerprint": fingerprint, **models.identity(replace(cfg.model, adapter=None))}
    sets = [s for s in ((cfg.harmful, True, refuse), (cfg.harmless, False, answer)) if s[2]]
    earlier = adapters.training_sets(cfg.start) if cfg.start else {}
    return {
        "base": base,
        "start": adapters.digest(cfg.start) if cfg.start else None,
        "like": adapters.digest(cfg.like) if cfg.like else None,
        "prompts": {**earlier, **{name: harmful for name, harmful, _ in sets}},
        "data": {
            **{name: PromptSet(n=len(asked), hash=prompts.digest(asked)) for name, _, asked in sets},
            "wordings": len(wordings.REFUSALS),
        },
        "settings": {k: v for k, v in asdict(cfg).items() if k not in NOT_SETTINGS},
        "rows": len(rows),
        "tokens": sum(len(r.prompt) + len(r.target) for r in rows),
        "minutes": round(seconds / 60, 1),
        "versions": versions(),
        "results": {**results.rates, "own answers": results.own},
    }


def versions() -> dict[str, str]:
    """Of the packages that decide the weights."""
    return {name: version(name) for name in ("torch", "transformers", "peft")}
