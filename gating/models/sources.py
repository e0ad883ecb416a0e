"""The registry of model sources: what `model.kind` may be."""

from __future__ import annotations

from collections.abc import Callable

from gating.errors import GatingError, choices
from gating.models.base import Source
from gating.models.config import ModelConfig
from gating.models.embedded import Embedded
from gating.models.gguf import Gguf
from gating.models.given import Given
from gating.models.hub import hub_or_folder
from gating.models.planted import PlantedModel
from gating.models.tiny import Tiny

SOURCES: dict[str, Callable[[ModelConfig], Source]] = {
    "hf": hub_or_folder,
    "gguf": Gguf,
    "embedded": Embedded,
    "tiny": Tiny,
    "planted": PlantedModel,
    "given": Given,
}


def source(cfg: ModelConfig) -> Source:
    """The source of a model. Raises GatingError for an unknown kind."""
    if cfg.kind not in SOURCES:
        raise GatingError(f"model.kind={cfg.kind!r} is not a kind of model: use {choices(SOURCES, cfg.kind)}.")
    return SOURCES[cfg.kind](cfg)
