"""A folder in the transformers format: what is in it, its sizes and digest, and the model that it holds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from gating import foreign
from gating.errors import GatingError, cause
from gating.foreign import shown
from gating.models.base import Pretrained, reading

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
    return next((s for s in _shards(index) if not (folder / s).is_file()), None)


def _shards(index: Path) -> list[str]:
    """The files that an index of weights names. Raises GatingError naming the index where it is none."""
    document = foreign.parse_json(foreign.read_text(index, "model.id"), f"model.id: {index}")
    files = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(files, dict) or not files or not all(isinstance(f, str) for f in files.values()):
        raise GatingError(f"model.id: {index} has no weight_map from weights to files; download it again.")
    return sorted(set(files.values()))


def sha256(path: Path) -> str:
    """64 hex digits over a file's bytes."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def sizes(folder: Path, trust: bool = False) -> dict[str, int]:
    """Sizes of a model by its config.json. Raises GatingError where that does not describe a chat model."""
    config = described(folder, trust)
    try:
        return config_sizes(config, trust)
    except GatingError:
        raise
    except Exception as e:  # sizes that do not belong together show themselves in a dozen ways
        raise _not_described(folder, cause(e)) from e


def described(folder: Path, trust: bool = False) -> PreTrainedConfig:
    """A folder's configuration. Raises GatingError naming its file, and why no model that continues text is in it."""
    path = folder / "config.json"
    raw = foreign.parse_json(foreign.read_text(path, "model.id"), f"model.id: {path}")
    if not isinstance(raw, dict):
        raise _not_described(folder, f"it holds a {type(raw).__name__}, not named entries")
    if raw.get("auto_map") and raw.get("model_type") not in CONFIG_MAPPING_NAMES and not trust:
        raise GatingError(
            f"model.id: {path} names Python files of its own (auto_map), which run with your rights when the model is "
            "read. None was run. If you have read them and trust who wrote them, say model.trust_remote_code=true."
        )
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, **reading(trust))
    except Exception as e:  # a damaged or unknown configuration shows itself in a dozen ways
        raise _not_described(folder, cause(e)) from e
    if reason := _not_causal(config):
        raise _not_described(folder, reason)
    return config


def _not_described(folder: Path, reason: str) -> GatingError:
    return GatingError(
        f"model.id: {folder / 'config.json'} does not describe a model that can be steered ({shown(reason)}); give "
        "another model, one that continues text."
    )


def _not_causal(config: PreTrainedConfig) -> str | None:
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        return f"{kind} is an encoder with a decoder behind it: its prompt is not in the residual stream of the answer"
    known = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    if not known and "AutoModelForCausalLM" not in (getattr(config, "auto_map", None) or {}):
        return f"transformers has no model of the kind {kind} that continues text"
    return None


def model_class(config: PreTrainedConfig) -> Any:
    """What transformers calls a model that continues text; one that sees images too is asked with text alone."""
    own = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    causal = own or config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return AutoModelForCausalLM if causal else AutoModelForImageTextToText


def config_sizes(config: PreTrainedConfig, trust: bool = False) -> dict[str, int]:
    """Sizes of a model by its configuration, counted on torch's meta device: no weights are read or made."""
    text = config.get_text_config(decoder=True)
    heads = getattr(text, "num_attention_heads", None) or 0  # a state-space model has none
    return {
        "layers": text.num_hidden_layers,
        "hidden": text.hidden_size,
        "parameters": sum(p.numel() for p in without_weights(config, trust).parameters()),
        "kv_heads": getattr(text, "num_key_value_heads", None) or heads,
        "head_dim": getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else 0),
        "vocab": text.vocab_size,
        **({"context": context} if (context := getattr(text, "max_position_embeddings", None)) else {}),
    }


def load(
    folder: Path,
    dtype: torch.dtype,
    revision: str | None = None,
    trust: bool = False,
    placed: Mapping[str, Any] | None = None,
) -> Pretrained:
    """The model and tokenizer in a folder; placed: what from_pretrained is told beside. Raises GatingError naming the
    folder."""
    config = described(folder, trust)
    try:
        loaded: Any = model_class(config).from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=attention_kernel(config),
            output_loading_info=True,
            **(placed or {}),
            **reading(trust),
        )
    except Exception as e:  # a damaged folder shows itself in a dozen ways, all with one remedy
        raise GatingError(
            f"model.id: {folder} could not be loaded as a chat model ({cause(e)}); it needs config.json, safetensors "
            "weights and a tokenizer that belong together. Download it again, or give another folder."
        ) from e
    model, report = loaded
    check_complete(report["missing_keys"], folder)
    return Pretrained(model, tokenizer(folder, trust), revision)


def tokenizer(folder: Path, trust: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder. Raises GatingError naming the folder."""
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **reading(trust))
    except Exception as e:  # readers of a dozen formats, each with its own errors
        own = "" if trust else ", and model.trust_remote_code=true where it has Python of its own that you trust"
        raise GatingError(
            f"model.id: the tokenizer in {folder} cannot be read ({cause(e)}); it needs files that belong "
            f"together{own}. Download it again, or give another folder."
        ) from e
    return found


def check_complete(missing_keys: Iterable[str], folder: Path) -> None:
    """Raises GatingError for weights that the files do not hold: transformers would go on with random ones."""
    lacking = sorted(missing_keys)
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise GatingError(
            f"model.id: the weights in {folder} lack {lacking[0]}{more}; a run would use random numbers there. "
            "Download the model again, or give another folder."
        )


def skeleton(folder: Path, revision: str | None = None, trust: bool = False) -> Pretrained:
    """The model in a folder on torch's meta device, and its tokenizer: no weights are read or made. Raises GatingError
    naming the folder."""
    model = without_weights(described(folder, trust), trust)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, **reading(trust))
    return Pretrained(model, tokenizer(folder, trust), revision)


def without_weights(config: PreTrainedConfig, trust: bool = False) -> PreTrainedModel:
    """A model of this configuration on torch's meta device."""
    with torch.device("meta"):
        return untrained(config, trust)


def untrained(config: PreTrainedConfig, trust: bool = False) -> PreTrainedModel:
    """A model of this configuration, its weights whatever transformers starts from."""
    made: PreTrainedModel = model_class(config).from_config(
        config, attn_implementation=attention_kernel(config), trust_remote_code=trust
    )
    return made


def attention_kernel(config: PreTrainedConfig) -> str | None:
    """Gemma 2 caps its attention scores, which only the eager kernel does; for others transformers chooses."""
    return "eager" if config.model_type == "gemma2" else None
