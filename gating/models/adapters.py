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
    kind = _document(path / CONFIG).get("peft_type")
    if kind != "LORA":
        raise GatingError(
            f"model.adapter: {path / CONFIG} has peft_type={shown(kind, 60)!r}; only LORA can be merged into a model."
        )
    return path


def _document(path: Path) -> dict[str, Any]:
    """A JSON file of named entries. Raises GatingError naming it."""
    document = foreign.parse_json(foreign.read_text(path, "model.adapter"), f"model.adapter: {path}")
    if not isinstance(document, dict):
        raise GatingError(f"model.adapter: {path} holds a {type(document).__name__}, not named entries; mend it.")
    return document


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
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            adapted = PeftModel.from_pretrained(model, str(path))
            merged: PreTrainedModel = adapted.merge_and_unload()
        lacking = next((str(w.message) for w in said if "missing adapter keys" in str(w.message)), None)
        if lacking:  # peft goes on with the model's own weights there
            raise ValueError(lacking)
    except GatingError:
        raise
    except Exception as e:  # a damaged adapter shows itself in a dozen ways
        raise GatingError(
            f"model.adapter: {path} could not be read as a LoRA adapter ({shown(cause(e))}); save it again with peft, "
            "or choose model.adapter=null."
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
    """Raises GatingError for a weight without a place in the model. A weight is a side of a low-rank change, or, of a
    module that was trained in full (modules_to_save), the whole."""
    own = {name: list(p.shape) for name, p in model.state_dict().items()}
    with safe_open(path / WEIGHTS, framework="pt") as f:
        for key in f.keys():  # noqa: SIM118 - not a mapping
            name, _, side = key.removeprefix("base_model.model.").rpartition(".lora_")
            size = f.get_slice(key).get_shape()
            place = own.get(f"{name}.weight" if name else key.removeprefix("base_model.model."))
            if place is None or (size != place if not name else not _fits(side, size, place)):
                raise GatingError(
                    f"model.adapter={adapter!r} was made for another architecture: its {shown(key)} {size} has no "
                    f"place in a {type(model).__name__} of width {model.config.get_text_config().hidden_size}; choose "
                    "this model's adapter, or model.adapter=null."
                )


def _fits(side: str, size: list[int], place: list[int]) -> bool:
    """Whether one side of a low-rank change, by its name and size, fits a weight (GPT-2 keeps [in, out])."""
    if side.startswith("A"):
        return size[1] in place
    return size[0] in place if side.startswith("B") else True  # what is left peft checks by itself


def training_prompts(adapter: str) -> list[str]:
    """Texts of the shipped sets that the adapter's recipe names; empty for an adapter without one."""
    path = folder(adapter) / RECIPE
    sets = _document(path).get("prompts", {}) if path.is_file() else {}
    if not isinstance(sets, dict) or not all(isinstance(harmful, bool) for harmful in sets.values()):
        raise GatingError(f"model.adapter: {path}: prompts has to name sets, each with true (harmful) or false.")
    return [p.text for name, harmful in sets.items() for p in prompts.load(name, harmful, "train")]
