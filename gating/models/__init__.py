"""Load a chat model from whatever names it: a hub id, a folder, a GGUF file, the embedded default, random tiny weights.

`config` holds a model's settings, `sources` where a model can come from, `description` what is known without weights,
`loading` the model itself. Everything but the settings is imported when it is first used, because torch and
transformers take seconds to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from gating.models.config import WEIGHTS, Architecture, ModelConfig, Sites, SteerDefaults

if TYPE_CHECKING:
    from gating.models.description import (
        DTYPES,
        architecture,
        check,
        device_type,
        dtype_name,
        identity,
        package_versions,
        served_as,
        tokenizer,
        tokenizer_only,
        training_prompts,
    )
    from gating.models.loading import Loaded, forget, load, without_weights

__all__ = [
    "DTYPES",
    "WEIGHTS",
    "Architecture",
    "Loaded",
    "ModelConfig",
    "Sites",
    "SteerDefaults",
    "architecture",
    "check",
    "device_type",
    "dtype_name",
    "forget",
    "identity",
    "load",
    "package_versions",
    "served_as",
    "tokenizer",
    "tokenizer_only",
    "training_prompts",
    "without_weights",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        homes = (import_module(f"gating.models.{home}") for home in ("description", "loading"))
        return next(getattr(home, name) for home in homes if hasattr(home, name))
