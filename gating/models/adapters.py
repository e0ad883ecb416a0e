"""LoRA adapters: find, check, merge; what they were trained on."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from gating import prompts
from gating.errors import GatingError, cause, choices
from gating.extras import require
from gating.models import digests

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

SHIPPED = Path(__file__).parent.parent / "data" / "adapters"
WEIGHTS, CONFIG, RECIPE = "adapter_model.safetensors", "adapter_config.json", "recipe.json"


def shipped() -> list[str]:
    return sorted(p.parent.name for p in SHIPPED.glob(f"*/{CONFIG}"))


def folder(adapter: str) -> Path:
    """The adapter's folder: a shipped name or a path. Raises GatingError where it or one of its files is missing."""
    path = SHIPPED / adapter if adapter in shipped() else Path(adapter).expanduser()
    if not path.is_dir():
        known = choices(shipped(), adapter)
        raise GatingError(
            f"model.adapter={adapter!r} is neither a shipped adapter ({known}) nor a folder; give a peft LoRA folder's "
            "path, or model.adapter=null for none."
        )
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise GatingError(f"model.adapter: {path} has no {name}; a peft LoRA folder holds {CONFIG} and {WEIGHTS}.")
    return path


def digest(adapter: str) -> str:
    """16 hex digits over the adapter's weights and configuration."""
    return digests.folder(folder(adapter), (CONFIG, WEIGHTS))


def merge(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """The model with the adapter added into its weights, so that nothing of peft is left in it.

    Raises GatingError when the files are damaged or belong to another architecture: peft itself only warns then.
    """
    require("peft", f"model.adapter={adapter!r}")
    from peft import PeftModel

    path = folder(adapter)
    try:
        _check_fits(model, path, adapter)
        with _quiet():
            adapted = PeftModel.from_pretrained(model, str(path))
        merged: PreTrainedModel = adapted.merge_and_unload()
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as e:
        raise GatingError(
            f"model.adapter: {path} could not be read as a LoRA adapter ({cause(e)}); save it again with peft, or "
            "choose model.adapter=null."
        ) from e
    return merged


def attach(model: PreTrainedModel, lora: LoraConfig) -> PeftModel:
    """The model with a new adapter to train; the model itself is changed in place."""
    from peft import get_peft_model

    with _quiet():
        return get_peft_model(model, lora)


def base_model(model: PeftModel) -> PreTrainedModel:
    """The model that an adapter is attached to."""
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    return base


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 for a property by its old name
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


def _check_fits(model: PreTrainedModel, path: Path, adapter: str) -> None:
    modules = dict(model.named_modules())
    with safe_open(path / WEIGHTS, framework="pt") as f:
        for key in f.keys():  # noqa: SIM118 - not a mapping
            name, _, side = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
            linear = modules.get(name)
            size = f.get_slice(key).get_shape()
            fits = isinstance(linear, torch.nn.Linear) and (
                size[1] == linear.in_features if side == "A" else size[0] == linear.out_features
            )
            if not fits:
                raise GatingError(
                    f"model.adapter={adapter!r} was made for another architecture: its {key} {size} has no place in a "
                    f"{type(model).__name__} of width {model.config.get_text_config().hidden_size}; choose this "
                    "model's adapter, or model.adapter=null."
                )


def training_prompts(adapter: str) -> list[str]:
    """Texts of the shipped sets that the adapter's recipe names; empty for an adapter without one."""
    path = folder(adapter) / RECIPE
    recipe = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    sets: dict[str, bool] = recipe.get("prompts", {})
    return [p.text for name, harmful in sets.items() for p in prompts.load(name, harmful, "train")]
