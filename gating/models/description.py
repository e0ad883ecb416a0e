"""What is known of a model without its weights.

The network is needed at most for a config.json that neither conf/model/ nor this machine has, so that a dry run works
anywhere.
"""

from __future__ import annotations

import re

import torch
from transformers import PreTrainedTokenizerBase

from gating import chat, foreign
from gating.errors import GatingError, cause, choices
from gating.models import adapters, placement
from gating.models.base import Source, pad_left
from gating.models.config import WEIGHTS, ModelConfig
from gating.models.placement import device_type
from gating.models.sources import source

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check(cfg: ModelConfig) -> None:
    """Refuse what cannot be a model, before anything is loaded. Raises GatingError naming the key."""
    checked(cfg)


def checked(cfg: ModelConfig) -> Source:
    """The source of a model whose configuration can be right. Raises GatingError naming the key that cannot."""
    model_source = source(cfg)
    if cfg.dtype != "auto" and cfg.dtype not in DTYPES:
        raise GatingError(f"model.dtype={cfg.dtype!r} is not a precision: use {choices(('auto', *DTYPES), cfg.dtype)}.")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", cfg.device):
        raise GatingError(f"model.device={cfg.device!r} is not a device: use auto, cpu, cuda or cuda:N.")
    for key in ("max_new_tokens", "batch_rows"):
        if getattr(cfg, key) < 1:
            raise GatingError(f"model.{key}={getattr(cfg, key)}: use a whole number of at least 1.")
    placement.check(cfg)
    foreign.check_plain(cfg.template, "model.template")
    if taken := sorted(chat.own_arguments() & set(cfg.template)):
        raise GatingError(f"model.template.{taken[0]} is set by this package; leave it out.")
    if cfg.trust_remote_code and cfg.kind != "hf":
        raise GatingError(
            f"model.trust_remote_code=true with model.kind={cfg.kind}: no code comes with it; leave it out."
        )
    model_source.check()
    if cfg.adapter:
        adapters.folder(cfg.adapter)
    return model_source


def dtype_name(cfg: ModelConfig) -> str:
    """The precision that the model will run in. Never float16 unless asked for: activations overflow it."""
    if cfg.dtype != "auto":
        return cfg.dtype
    return source(cfg).cuda_dtype if device_type(cfg) == "cuda" else "float32"


def architecture(cfg: ModelConfig) -> dict[str, int]:
    """Sizes of the model by name (see Architecture): as configured, else from its own config.json or GGUF header.

    Raises GatingError where neither is there.
    """
    return checked(cfg).sizes()


def identity(cfg: ModelConfig, fetch: bool = True) -> dict[str, str | None]:
    """What determines the weights, by the contents of their files; part of a run's key.

    Files that are not on this machine are fetched, or, without `fetch`, a GatingError is raised.
    """
    model_source = checked(cfg)
    configured: dict[str, str | None] = {key: getattr(cfg, key) for key in WEIGHTS}
    adapter = {"adapter": adapters.digest(cfg.adapter)} if cfg.adapter else {}
    return configured | adapter | model_source.identity(fetch)


def tokenizer(cfg: ModelConfig, served: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer that a run uses, fetched where it is not on this machine: the model's own, or the one of the name
    by which a server knows it. Raises GatingError."""
    model_source = checked(cfg)
    try:
        found = model_source.skeleton().tokenizer if served else model_source.tokenizer(fetch=True)
    except (OSError, ValueError) as e:
        raise GatingError(f"model.id: the tokenizer of {cfg.id or cfg.name} cannot be read ({cause(e)}).") from e
    if found is None:
        raise GatingError(f"model: {cfg.id or cfg.name} has no tokenizer.")
    return pad_left(found)


def tokenizer_only(cfg: ModelConfig) -> PreTrainedTokenizerBase | None:
    """The tokenizer, or None where it is not on this machine."""
    model_source = checked(cfg)
    try:
        found = model_source.tokenizer()
    except (GatingError, OSError, ValueError):
        return None
    return pad_left(found) if found else None


def package_versions(cfg: ModelConfig) -> dict[str, str]:
    """Of packages that only some models need, and that decide their numbers."""
    return placement.versions(cfg)


def served_as(cfg: ModelConfig) -> str:
    """The hub id by which an NDIF server knows the model. Raises GatingError where it has none."""
    return source(cfg).served_as()


def training_prompts(cfg: ModelConfig) -> list[str]:
    """Texts that the model's adapter was trained on, where its recipe names them: a test on these is no test."""
    return adapters.training_prompts(cfg.adapter) if cfg.adapter else []
