"""Where a model's weights go, and in how many bits: one device or several, whole or quantised."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import torch

from gating.errors import GatingError, choices
from gating.extras import require
from gating.models.config import ModelConfig

DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
QUANTIZATIONS = ("8bit", "4bit")


def check(cfg: ModelConfig) -> None:
    """Raises GatingError naming the key that has no usable value, or that goes with no other."""
    if cfg.device_map is not None and cfg.device_map not in DEVICE_MAPS:
        allowed = choices(DEVICE_MAPS, cfg.device_map)
        raise GatingError(f"model.device_map={cfg.device_map!r} is no way to spread a model: use {allowed}, or null.")
    if cfg.quantization is not None and cfg.quantization not in QUANTIZATIONS:
        allowed = choices(QUANTIZATIONS, cfg.quantization)
        raise GatingError(f"model.quantization={cfg.quantization!r}: use {allowed}, or null for none.")
    for key in ("device_map", "quantization"):
        if getattr(cfg, key) is not None and cfg.kind != "hf":
            raise GatingError(
                f"model.{key}={getattr(cfg, key)} with model.kind={cfg.kind}: only a hub id or a folder (model=hf) is "
                f"loaded so; say model.{key}=null."
            )
    if cfg.device_map is not None and cfg.device != "auto":
        raise GatingError(
            f"model.device={cfg.device} with model.device_map={cfg.device_map}: one device, or a map; leave one out."
        )
    if cfg.quantization is not None and cfg.adapter:
        raise GatingError(
            f"model.quantization={cfg.quantization} with model.adapter={cfg.adapter}: an adapter is merged into whole "
            "weights; say model.quantization=null, or give a model with the adapter merged."
        )


def device_type(cfg: ModelConfig) -> str:
    """`cpu` or `cuda`, whether or not the device is there."""
    if cfg.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return cfg.device.partition(":")[0]


def is_placed(cfg: ModelConfig) -> bool:
    """Whether loading puts the weights where they run; else they come to the CPU and are moved as a whole."""
    return cfg.device_map is not None or cfg.quantization is not None


def told(cfg: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """What from_pretrained is told. Raises GatingError where the package or the device for it is missing."""
    if not is_placed(cfg):
        return {}
    key = "device_map" if cfg.device_map else "quantization"
    require("accelerate", f"model.{key}={getattr(cfg, key)}")
    where = cfg.device_map or {"": cfg.device if cfg.device != "auto" else device_type(cfg)}
    if cfg.quantization is None:
        return {"device_map": where}
    require("bitsandbytes", f"model.quantization={cfg.quantization}")
    from transformers import BitsAndBytesConfig

    eight = cfg.quantization == "8bit"
    bits = {"load_in_8bit": True} if eight else {"load_in_4bit": True, "bnb_4bit_compute_dtype": dtype}
    return {"device_map": where, "quantization_config": BitsAndBytesConfig(**bits)}


def versions(cfg: ModelConfig) -> dict[str, str]:
    """Of the package that quantises: its rounding decides a number."""
    if cfg.quantization is None:
        return {}
    try:
        return {"bitsandbytes": importlib.metadata.version("bitsandbytes")}
    except importlib.metadata.PackageNotFoundError:
        return {}  # a dry run; told() refuses the run itself
