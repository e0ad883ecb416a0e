"""What every source of models answers, with and without weights: one class a source, bound to one configuration."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import ClassVar, NamedTuple, TypedDict

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gating.errors import GatingError
from gating.models.config import ModelConfig


class Reading(TypedDict):
    local_files_only: bool
    trust_remote_code: bool


def reading(trust: bool = False) -> Reading:
    """How transformers reads what is on this machine: without the network, and running code that came with a model only
    where model.trust_remote_code says so (never asking on standard input)."""
    return {"local_files_only": True, "trust_remote_code": trust}


class Pretrained(NamedTuple):
    """What a source gives: a model not yet on its device, without its adapter, and the model's tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    revision: str | None = None  # commit, for a model from the hub


@dataclass(frozen=True)
class Source(ABC):
    """A way to obtain a model. To add one: a file with its class, and a line in `sources.SOURCES`."""

    cfg: ModelConfig
    cuda_dtype: ClassVar[str] = "float32"  # what model.dtype=auto means on CUDA

    @abstractmethod
    def check(self) -> None:
        """Raises GatingError where a key of the configuration that this source reads has no usable value."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Sizes by name (see Architecture), without weights. Raises GatingError where they are nowhere to be read."""

    @abstractmethod
    def identity(self, fetch: bool) -> dict[str, str | None]:
        """The values that stand in a run's key instead of the configured ones: digests of what determines the weights,
        which are fetched first where they may be. Raises GatingError where they are not on this machine."""

    @abstractmethod
    def tokenizer(self, fetch: bool = False) -> PreTrainedTokenizerBase | None:
        """The tokenizer, by the network only where it may be fetched. None or an OSError, ValueError or GatingError
        where it is not here."""

    @abstractmethod
    def load(self, dtype: torch.dtype) -> Pretrained:
        """The model on the CPU. Raises GatingError where it cannot be loaded."""

    @abstractmethod
    def skeleton(self) -> Pretrained:
        """The model on torch's meta device, without weights: what a client of a server needs. Raises GatingError."""

    def served_as(self) -> str:
        """The hub id by which an NDIF server knows the model. Raises GatingError where it has none."""
        if self.cfg.remote:
            return self.cfg.remote
        raise GatingError(
            "model.remote has no value, and a server knows models by a hub id only, not "
            f"{self.cfg.id or self.cfg.name} ({'with an adapter' if self.cfg.adapter else 'on this machine'}): say "
            "model.remote=org/name for one that serves these very weights, or backend=local."
        )

    def stated(self) -> dict[str, int]:
        """The sizes that the configuration states in model.arch."""
        return {name: size for name, size in asdict(self.cfg.arch).items() if size is not None}

    def all_stated(self) -> bool:
        return len(self.stated()) == len(asdict(self.cfg.arch))


def pad_left(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, set to pad on the left, with a token for it."""
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
