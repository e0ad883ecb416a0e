"""LoRA adapters: find, check, merge; what they were trained on."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from transformers import PreTrainedModel

from gating import foreign, prompts
from gating.errors import GatingError, cause, choices
from gating.extras import require
from gating.foreign import shown
from gating.models import digests

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

SHIPPED = Path(__file__).parent.parent / "data" / "adapters"
TRAINED, REMEMBERED = "default", "remembered"  # peft's name of the first adapter, and ours of one that stays as it is
WEIGHTS, CONFIG, RECIPE = "adapter_model.safetensors", "adapter_config.json", "recipe.json"


def shipped() -> list[str]:
    return sorted(p.parent.name for p in SHIPPED.glob(f"*/{CONFIG}"))


def folder(adapter: str, key: str = "model.adapter") -> Path:
    """The adapter's folder: a shipped name or a path. key: the setting that names it.

    Raises GatingError where it or one of its files is missing.
    """
    path = SHIPPED / adapter if adapter in shipped() else Path(adapter).expanduser()
    if not path.is_dir():
        known = choices(shipped(), adapter)
        raise GatingError(
            f"{key}={adapter!r} is neither a shipped adapter ({known}) nor a folder; give a peft LoRA folder's "
            f"path, or {key}=null for none."
        )
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise GatingError(f"{key}: {path} has no {name}; a peft LoRA folder holds {CONFIG} and {WEIGHTS}.")
    kind = _document(path / CONFIG, key).get("peft_type")
    if kind != "LORA":
        raise GatingError(f"{key}: {path / CONFIG} has peft_type={shown(kind, 60)!r}; only LORA is an adapter here.")
    return path


def _document(path: Path, key: str = "model.adapter") -> dict[str, Any]:
    """A JSON file of named entries. Raises GatingError naming it."""
    document = foreign.parse_json(foreign.read_text(path, key), f"{key}: {path}")
    if not isinstance(document, dict):
        raise GatingError(f"{key}: {path} holds a {type(document).__name__}, not named entries; mend it.")
    return document


def shape(adapter: str, key: str = "model.adapter") -> dict[str, Any]:
    """An adapter's rank, alpha, targets (sorted) and blocks (None is all), as its configuration has them."""
    config = _document(folder(adapter, key) / CONFIG, key)
    targets = config.get("target_modules")
    return {
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "targets": sorted(targets) if isinstance(targets, list) else targets,
        "blocks": config.get("layers_to_transform"),
    }


def digest(adapter: str) -> str:
    """16 hex digits over the adapter's weights and configuration."""
    return digests.folder(folder(adapter), (CONFIG, WEIGHTS))


def merge(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """The model with the adapter added into its weights, so that nothing of peft is left in it.

    Raises GatingError when the files are damaged or belong to another architecture: peft itself only warns then.
    """
    with _read(adapter, "model.adapter"):
        merged: PreTrainedModel = _opened(model, adapter, "model.adapter").merge_and_unload()
    return merged


def resume(model: PreTrainedModel, adapter: str) -> PeftModel:
    """The model with an adapter's weights to train on from; the model itself is changed in place, the adapter is not.

    Raises GatingError as `merge` does, naming `start`.
    """
    with _read(adapter, "start"):
        return _opened(model, adapter, "start", trainable=True)


def remember(model: PeftModel, adapter: str) -> None:
    """Keep an adapter beside the one that is trained, as it is, for `as_remembered`."""
    with _read(adapter, "start"):
        model.load_adapter(str(folder(adapter, "start")), adapter_name=REMEMBERED)
        model.set_adapter(TRAINED)


@contextlib.contextmanager
def as_remembered(model: PeftModel) -> Iterator[None]:
    """Inside it the model is the one with the adapter that was remembered; the base model where none was."""
    if REMEMBERED not in model.peft_config:
        with model.disable_adapter():
            yield
        return
    model.set_adapter(REMEMBERED, inference_mode=True)
    try:
        yield
    finally:
        model.set_adapter(TRAINED)


def _opened(model: PreTrainedModel, adapter: str, key: str, trainable: bool = False) -> PeftModel:
    require("peft", f"{key}={adapter!r}")
    from peft import PeftModel

    path = folder(adapter, key)
    _check_fits(model, path, adapter, key)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        adapted = PeftModel.from_pretrained(model, str(path), is_trainable=trainable)
    lacking = next((str(w.message) for w in said if "missing adapter keys" in str(w.message)), None)
    if lacking:  # peft goes on with the model's own weights there
        raise ValueError(lacking)
    return adapted


@contextlib.contextmanager
def _read(adapter: str, key: str) -> Iterator[None]:
    try:
        yield
    except GatingError:
        raise
    except Exception as e:  # a damaged adapter shows itself in a dozen ways
        raise GatingError(
            f"{key}: {folder(adapter, key)} could not be read as a LoRA adapter ({shown(cause(e))}); save it "
            f"again with peft, or choose {key}=null."
        ) from e


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


def _check_fits(model: PreTrainedModel, path: Path, adapter: str, key: str) -> None:
    """Raises GatingError for a weight without a place in the model. A weight is a side of a low-rank change, or, of a
    module that was trained in full (modules_to_save), the whole."""
    own = {name: list(p.shape) for name, p in model.state_dict().items()}
    with safe_open(path / WEIGHTS, framework="pt") as f:
        for weight in f.keys():  # noqa: SIM118 - not a mapping
            name, _, side = weight.removeprefix("base_model.model.").rpartition(".lora_")
            size = f.get_slice(weight).get_shape()
            place = own.get(f"{name}.weight" if name else weight.removeprefix("base_model.model."))
            if place is None or (size != place if not name else not _fits(side, size, place)):
                raise GatingError(
                    f"{key}={adapter!r} was made for another architecture: its {shown(weight)} {size} has no "
                    f"place in a {type(model).__name__} of width {model.config.get_text_config().hidden_size}; choose "
                    f"this model's adapter, or {key}=null."
                )


def _fits(side: str, size: list[int], place: list[int]) -> bool:
    """Whether one side of a low-rank change, by its name and size, fits a weight (GPT-2 keeps [in, out])."""
    if side.startswith("A"):
        return size[1] in place
    return size[0] in place if side.startswith("B") else True  # what is left peft checks by itself


def training_prompts(adapter: str) -> list[str]:
    """Texts of the prompt sets that the adapter's recipe names; empty for an adapter without one."""
    return [p.text for name, harmful in training_sets(adapter).items() for p in prompts.load(name, harmful, "train")]


def training_sets(adapter: str, key: str = "model.adapter") -> dict[str, bool]:
    """The prompt sets that the adapter's recipe names, each with whether it is harmful; empty without a recipe."""
    path = folder(adapter, key) / RECIPE
    sets = _document(path, key).get("prompts", {}) if path.is_file() else {}
    if not isinstance(sets, dict) or not all(isinstance(harmful, bool) for harmful in sets.values()):
        raise GatingError(f"{key}: {path}: prompts has to name sets, each with true (harmful) or false.")
    return sets
