"""A model that the caller has loaded already (`gating.run(model=...)`): used as it is, never copied."""

from __future__ import annotations

import copy
import hashlib
import re
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gating.errors import GatingError
from gating.models import checkpoint
from gating.models.base import Pretrained, Source

_given: dict[str, Pretrained] = {}  # by the digest of its weights; the last one only


class Given(Source):
    """A loaded model, named by the digest of its weights (model.id)."""

    def check(self) -> None:
        if self.cfg.id not in _given:
            raise GatingError(
                "model.kind=given is a model that stands in memory, and the one of this run does not: give it to "
                "gating.run(model=..., tokenizer=...), or name a folder with model.kind=hf."
            )
        if self.cfg.adapter:
            raise GatingError(
                f"model.adapter={self.cfg.adapter!r} with a loaded model, which is not changed: merge it first, or "
                "name the model's folder with model.kind=hf."
            )

    @property
    def _held(self) -> Pretrained:
        return _given[str(self.cfg.id)]

    def sizes(self) -> dict[str, int]:
        return checkpoint.config_sizes(self._held.model.config)

    def identity(self, fetch: bool) -> dict[str, str | None]:
        return {"id": self.cfg.id}

    def tokenizer(self, fetch: bool = False) -> PreTrainedTokenizerBase:
        return self._held.tokenizer

    def load(self, dtype: torch.dtype) -> Pretrained:
        if dtype != self._held.model.dtype:
            raise GatingError(f"model.dtype={dtype}: the loaded model has {self._held.model.dtype}; leave it out.")
        return self._held

    def skeleton(self) -> Pretrained:
        raise GatingError("model: a server knows models by a hub id, not one in memory; say model.remote or a hub id.")


def hold(model: Any, tokenizer: Any = None, name: str | None = None) -> dict[str, str]:
    """Keep a loaded model, and give the settings that name it. model: of transformers, with its tokenizer, or of
    nnsight, which has one; it is put into eval mode without gradients, and otherwise left alone.

    Raises GatingError for anything else.
    """
    body, words = getattr(model, "_model", model), tokenizer or getattr(model, "tokenizer", None)
    if not isinstance(body, PreTrainedModel):
        raise GatingError(f"model is a {type(model).__name__}: give a name, a transformers model, or an nnsight one.")
    if not isinstance(words, PreTrainedTokenizerBase):
        raise GatingError("tokenizer has no value: a loaded model needs the tokenizer that belongs to it.")
    if any(p.is_meta for p in body.parameters()):
        raise GatingError("model has no weights yet (its parameters are on torch's meta device); load it first.")
    known = digest(body)
    _given.clear()
    _given[known] = Pretrained(body, copy.deepcopy(words))  # its padding side is set
    label = name or str(getattr(body.config, "name_or_path", "")) or type(body).__name__
    first = body.get_input_embeddings().weight
    return {
        "kind": "given",
        "id": known,
        "name": re.sub(r"[^\w.-]+", "-", label.rstrip("/").rpartition("/")[2])[:40] or "model",
        "dtype": str(body.dtype).removeprefix("torch."),
        "device": str(first.device),
    }


def digest(model: PreTrainedModel) -> str:
    """16 hex digits over every weight: what a run's key has of it."""
    h = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        h.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        h.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return h.hexdigest()[:16]
