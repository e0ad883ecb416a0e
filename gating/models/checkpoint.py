"""A folder in the transformers format: what is in it, its sizes and digest, and the model that it holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from gating.errors import GatingError, cause
from gating.models.base import READ, Pretrained

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


def is_folder(name: str | None) -> bool:
    return name is not None and Path(name).expanduser().is_dir()


def missing(folder: Path, weights: bool, tokenizer: bool) -> str | None:
    """The first file that a model (its weights, its tokenizer, or its configuration alone) lacks, or None."""
    if not (folder / "config.json").is_file():
        return "config.json"
    if tokenizer and not any((folder / name).is_file() for name in TOKENIZERS):
        return TOKENIZERS[0]
    if not weights:
        return None
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return None if any(folder.glob("*.safetensors")) else "safetensors weights"
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError):
        return f"readable {index.name}"
    return next((s for s in shards if not (folder / s).is_file()), None)


def sha256(path: Path) -> str:
    """64 hex digits over a file's bytes."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def sizes(folder: Path) -> dict[str, int]:
    """Sizes of a model by its config.json. Raises GatingError where that does not describe a chat model."""
    try:
        return config_sizes(AutoConfig.from_pretrained(folder, **READ))
    except Exception as e:  # a damaged or unknown configuration shows itself in a dozen ways
        raise GatingError(
            f"model.id: {folder / 'config.json'} does not describe a decoder-only chat model that transformers knows "
            f"({cause(e)}); give another model."
        ) from e


def config_sizes(config: PreTrainedConfig) -> dict[str, int]:
    """Sizes of a model by its configuration, counted on torch's meta device: no weights are read or made."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    return {
        "layers": text.num_hidden_layers,
        "hidden": text.hidden_size,
        "parameters": sum(p.numel() for p in without_weights(config).parameters()),
        "kv_heads": getattr(text, "num_key_value_heads", None) or heads,
        "head_dim": getattr(text, "head_dim", None) or text.hidden_size // heads,
        "vocab": text.vocab_size,
        **({"context": context} if (context := getattr(text, "max_position_embeddings", None)) else {}),
    }


def load(folder: Path, dtype: torch.dtype, revision: str | None = None) -> Pretrained:
    """The model and tokenizer in a folder. Raises GatingError naming the folder."""
    try:
        config = AutoConfig.from_pretrained(folder, **READ)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=attention_kernel(config),
            output_loading_info=True,
            **READ,
        )
        model, report = loaded
        _check_complete(report["missing_keys"], folder)
        return Pretrained(model, AutoTokenizer.from_pretrained(folder, **READ), revision)
    except GatingError:
        raise
    except Exception as e:  # a damaged folder shows itself in a dozen ways, all with one remedy
        raise GatingError(
            f"model.id: {folder} could not be loaded as a chat model ({cause(e)}); it needs config.json, safetensors "
            "weights and a tokenizer that belong together. Download it again, or give another folder."
        ) from e


def _check_complete(missing_keys: Iterable[str], folder: Path) -> None:
    """Raises GatingError for weights that the files do not hold: transformers would go on with random ones."""
    lacking = sorted(missing_keys)
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise GatingError(
            f"model.id: the weights in {folder} lack {lacking[0]}{more}; a run would use random numbers there. "
            "Download the model again, or give another folder."
        )


def skeleton(folder: Path, revision: str | None = None) -> Pretrained:
    """The model in a folder on torch's meta device, and its tokenizer: no weights are read or made."""
    tokenizer = AutoTokenizer.from_pretrained(folder, **READ)
    model = without_weights(AutoConfig.from_pretrained(folder, **READ))
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, **READ)
    return Pretrained(model, tokenizer, revision)


def without_weights(config: PreTrainedConfig) -> PreTrainedModel:
    """A model of this configuration on torch's meta device."""
    with torch.device("meta"):
        return untrained(config)


def untrained(config: PreTrainedConfig) -> PreTrainedModel:
    """A model of this configuration, its weights whatever transformers starts from."""
    return AutoModelForCausalLM.from_config(
        config, attn_implementation=attention_kernel(config), trust_remote_code=False
    )


def attention_kernel(config: PreTrainedConfig) -> str | None:
    """Gemma 2 caps its attention scores, which only the eager kernel does; for others transformers chooses."""
    return "eager" if config.model_type == "gemma2" else None
