"""Load a model, once a process, ready to run."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from gating.errors import GatingError
from gating.models import adapters, padding, parts, placement
from gating.models.base import pad_left
from gating.models.config import ModelConfig
from gating.models.description import DTYPES, check, checked, device_type, dtype_name, identity


@dataclass(frozen=True)
class Loaded:
    """A model ready to run: in eval mode, without gradients, adapter merged, tokenizer padding on the left."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str  # 16 hex digits over configuration, a fixed sample of the weights, and the adapter
    revision: str | None  # commit, for a model from the hub
    device: torch.device
    dtype: torch.dtype
    n_layers: int
    hidden: int
    name: str

    @property
    def end_ids(self) -> list[int]:
        """Every token that ends an answer: the model's own list and the tokenizer's end of sequence."""
        own = getattr(self.model.generation_config, "eos_token_id", None)
        own = [] if own is None else own if isinstance(own, list) else [own]
        return sorted({*own, self.tokenizer.eos_token_id} - {None})


# Settings that a loaded model depends on, beside its files.
SETTINGS = ("device", "dtype", "device_map", "quantization", "trust_remote_code")
_loaded: dict[str, Loaded] = {}  # the last model only: a second one might not fit beside it


def load(cfg: ModelConfig) -> Loaded:
    """The model, loaded once a process (the last one is kept). Raises GatingError where it cannot be loaded."""
    check(cfg)
    key = json.dumps(
        [identity(cfg), cfg.name, *(getattr(cfg, setting) for setting in SETTINGS)]
    )  # a folder may have other files by now
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = _load(cfg)
    return _loaded[key]


def forget() -> None:
    """Drop the model that is kept: after it was changed in place, or to free its memory."""
    _loaded.clear()


def _load(cfg: ModelConfig) -> Loaded:
    device, dtype = device_of(cfg), DTYPES[dtype_name(cfg)]
    disable_progress_bar()  # transformers' own bars, one for every few hundred tensors
    model, tokenizer, revision = checked(cfg).load(dtype)
    n_layers, hidden = shape(cfg, model)
    fingerprint = parts.fingerprint(model, adapters.digest(cfg.adapter) if cfg.adapter else "")
    if cfg.adapter:
        model = adapters.merge(model, cfg.adapter)
    if placement.is_placed(cfg):
        device = next(model.get_input_embeddings().parameters()).device  # where inputs go
    else:
        parts.move(model, device)
    model.eval().requires_grad_(False)
    padding.check(model)
    parts.pack_unembedding(model)
    return Loaded(model, pad_left(tokenizer), fingerprint, revision, device, dtype, n_layers, hidden, cfg.name)


def without_weights(cfg: ModelConfig, fingerprint: str, dtype: str | None) -> Loaded:
    """The model's shape on torch's meta device, and its tokenizer: what a client of a server needs.

    fingerprint, dtype: as the server has it. Raises GatingError where the configuration or the tokenizer is missing.
    """
    if placement.is_placed(cfg):
        key = "device_map" if cfg.device_map else "quantization"
        raise GatingError(f"model.{key}={getattr(cfg, key)}: a server decides how it holds a model; leave it out.")
    model, tokenizer, revision = checked(cfg).skeleton()
    n_layers, hidden = shape(cfg, model)
    served_dtype = DTYPES.get(str(dtype), torch.bfloat16)
    device = torch.device("cpu")
    return Loaded(model, pad_left(tokenizer), fingerprint, revision, device, served_dtype, n_layers, hidden, cfg.name)


def shape(cfg: ModelConfig, model: PreTrainedModel) -> tuple[int, int]:
    """Blocks and width. Raises GatingError where model.arch says otherwise."""
    n_layers, hidden = len(parts.decoder_blocks(model)), model.config.get_text_config().hidden_size
    if cfg.arch.layers not in (None, n_layers) or cfg.arch.hidden not in (None, hidden):
        raise GatingError(
            f"model.arch says {cfg.arch.layers} blocks of width {cfg.arch.hidden}, but {cfg.id or cfg.name} has "
            f"{n_layers} of width {hidden}; for another model than the one described use model=hf model.id=..."
        )
    return n_layers, hidden


def device_of(cfg: ModelConfig) -> torch.device:
    """Where `cfg.device` is. Raises GatingError for one that this machine does not have."""
    kind = device_type(cfg)
    index = int(cfg.device.partition(":")[2] or 0)
    if kind == "cuda" and index >= torch.cuda.device_count():
        raise GatingError(
            f"model.device={cfg.device}: this machine has {torch.cuda.device_count()} CUDA devices that torch "
            f"{torch.__version__} can use; say model.device=auto or cpu."
        )
    return torch.device(kind, index) if kind == "cuda" else torch.device(kind)
