"""What `python -m gating.serve` is told."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from gating import addresses, models, personas, settings
from gating.errors import GatingError, choices
from gating.foreign import shown
from gating.models import ModelConfig
from gating.pipeline import config
from gating.pipeline.config import DirectionsConfig

ACTIONS = ("note", "restore", "stop")  # of a guard, from the mildest


@dataclass
class LimitsConfig:
    """What a request may cost; beyond it is refused."""

    rows: int = 16  # answers under way at once, in one forward pass a step
    waiting: int = 64  # requests that wait for a row; the next gets 429
    connections: int = 256  # open ones; the next gets 503
    body: int = 256_000  # bytes of a request
    messages: int = 64
    prompt_tokens: int = 4096  # of one prompt, and (pads included) of those that are read in at once
    new_tokens: int = 1024  # of an answer; fewer where the model's context is full
    coef: float = 2.0  # by which a request may multiply a condition's dose, at most; its negative too
    seconds: float = 120.0  # that a request may take, waiting included
    ending: float = 30.0  # seconds that requests under way have when the server is told to end


@dataclass
class ServeConfig:
    """A server of one model."""

    model: ModelConfig = field(default_factory=ModelConfig)
    directions: DirectionsConfig = field(default_factory=DirectionsConfig)
    personas: list[str] = field(default_factory=list)  # which requests may be steered along, at the model's own dose
    conditions: dict[str, Any] = field(default_factory=dict)  # of your own, by name, as gating.run takes them
    guard: str | None = None  # guard.json, of python -m gating.guard
    cascade: bool = False  # the learned judge reads request and answer before a flag counts, and drops it on a refusal
    act: str = "note"  # what it does at least: note, restore, stop; a request may ask for more
    host: str = "127.0.0.1"
    port: int = 8000  # 0 is any that is free
    key_variable: str | None = None  # the environment variable that holds the key; null for none, on loopback only
    log: str | None = None  # file of decisions, a JSON line a request
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    runs_dir: str = "runs"  # where the directions are kept
    seed: int = 0


def check(cfg: ServeConfig) -> None:
    """Refuse impossible values before a model loads. Raises GatingError naming the key."""
    settings.check_lists(cfg)
    settings.check_numbers(cfg, settings.SERVING)
    for key in ("runs_dir", "log"):
        if getattr(cfg, key) is not None:
            config.check_path(getattr(cfg, key), key)
    for name in cfg.personas:
        personas.load(name)
    models.check(cfg.model)
    if cfg.act not in ACTIONS:
        raise GatingError(f"act={shown(cfg.act, 60)!r}: use {choices(ACTIONS, cfg.act)}.")
    if cfg.act != "note" and cfg.guard is None:
        raise GatingError(f"act={cfg.act}: there is no guard that could; give guard=FILE, of python -m gating.guard.")
    if cfg.cascade and cfg.guard is None:
        raise GatingError("cascade=true: there is no guard whose flags could be read again; give guard=FILE.")
    if not addresses.is_loopback(url(cfg.host, cfg.port)) and cfg.key_variable is None:
        raise GatingError(
            f"host={shown(cfg.host, 80)!r} can be reached from other machines, and no key is asked for; give "
            "key_variable=NAME of an environment variable that holds one, or host=127.0.0.1."
        )


def url(host: str, port: int) -> str:
    """The server's address. Raises GatingError for a host that is none."""
    return addresses.checked(f"http://{f'[{host}]' if ':' in host else host}:{port or 1}", "host") if host else ""


def key(cfg: ServeConfig) -> str | None:
    """The key that requests must carry. Raises GatingError where its variable holds none."""
    if cfg.key_variable is None:
        return None
    held = os.environ.get(cfg.key_variable, "").strip()
    if not held or not held.isascii() or not held.isprintable():
        raise GatingError(
            f"key_variable={shown(cfg.key_variable, 80)}: this environment variable holds no key of plain characters; "
            "set it, or leave key_variable out."
        )
    return held
