"""A model as a client of a server has it: its name there, its shape on torch's meta device, its tokenizer; no
weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from gating import models
from gating.errors import GatingError
from gating.models import Loaded, ModelConfig, embedded, hub, tiny


def served_as(cfg: ModelConfig) -> str:
    """The hub id by which an NDIF server knows the model. Raises GatingError where it has none."""
    if cfg.remote:
        return cfg.remote
    if cfg.kind != "hf" or hub.is_folder(str(cfg.id)) or cfg.adapter:
        raise GatingError(
            f"model.remote has no value, and a server knows models by a hub id only, not {cfg.id or cfg.name} "
            f"({'with an adapter' if cfg.adapter else 'on this machine'}): say model.remote=org/name for one that serves these "
            "very weights, or backend=local."
        )
    return str(cfg.id)


def without_weights(cfg: ModelConfig, fingerprint: str, dtype: str | None) -> Loaded:
    """The model's shape on torch's meta device, and its tokenizer: what a client of a server needs.

    fingerprint, dtype: as the server has it. Raises GatingError where configuration or tokenizer cannot be had.
    """
    models.check(cfg)
    revision, generation = None, None
    tokenizer: PreTrainedTokenizerBase
    with torch.device("meta"):
        if cfg.kind == "tiny":
            model, tokenizer = tiny.bare(str(cfg.architecture)), tiny.tokenizer(str(cfg.architecture))
        else:
            config, tokenizer, generation, revision = _light(cfg)
            model = AutoModelForCausalLM.from_config(config, attn_implementation=models.attention_kernel(config))
    if generation is not None:
        model.generation_config = generation
    n_layers, hidden = models.shape(cfg, model)
    kind = models.DTYPES.get(str(dtype), torch.bfloat16)
    return Loaded(
        model, models.ready(tokenizer), fingerprint, revision, torch.device("cpu"), kind, n_layers, hidden, cfg.name
    )


def _light(cfg: ModelConfig) -> tuple[Any, PreTrainedTokenizerBase, GenerationConfig | None, str | None]:
    """Configuration, tokenizer, generation settings and commit, from the hub's cache, the hub, or the embedded
    package."""
    try:
        folder, revision = hub.find(
            served_as(cfg), cfg.revision, offline=cfg.kind == "embedded", weights=False, tokenizer=True
        )
    except GatingError:
        if cfg.kind != "embedded":
            raise
        return *embedded.light(), None, None
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    has = (folder / "generation_config.json").is_file()
    generation = GenerationConfig.from_pretrained(folder, local_files_only=True) if has else None
    return AutoConfig.from_pretrained(folder, local_files_only=True), tokenizer, generation, revision
