"""Where training stands, kept beside the adapter that it is to become: the same command goes on from it to the same
bytes. Batches and draws depend on the seed and the step alone, so no generator's state is needed."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gating import swap
from gating.errors import GatingError
from gating.models import adapters
from gating.training.config import TrainConfig
from gating.training.curve import Curve
from gating.training.recipe import NOT_SETTINGS, versions
from gating.training.rows import Row
from gating.training.vectors import Vectors

if TYPE_CHECKING:
    from peft import PeftModel

FOLDER, FILE = ".checkpoint", "training.pt"
SECONDS = 60.0  # at most so much work is lost
log = logging.getLogger(__name__)


class Checkpoint:
    """The folder OUT/.checkpoint. key: of everything that decides the weights; one with another key is begun anew."""

    def __init__(self, out: Path, key: str) -> None:
        self.out, self.folder, self.key, self.last = out, out / FOLDER, key, time.monotonic()

    def read(self) -> dict[str, Any] | None:
        """What `save` kept, or None. Raises GatingError for a folder that training did not write."""
        if not self.folder.exists():
            return None
        check(self.folder)
        path = self.folder / FILE
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            ours = state["key"] == self.key
        except Exception as e:  # a damaged file shows itself in a dozen ways
            raise GatingError(f"{path} could not be read; delete {self.folder} to train from the beginning.") from e
        if not ours:
            log.info("%s is of another recipe, model or version; training begins anew", path)
        return state if ours else None

    def due(self) -> bool:
        return time.monotonic() - self.last >= SECONDS

    def save(self, state: dict[str, Any]) -> None:
        """Keep where training stands, at once or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        held = io.BytesIO()
        torch.save({"key": self.key, **state}, held)
        swap.write(self.folder / FILE, held.getvalue())
        self.last = time.monotonic()

    def remove(self) -> None:
        """Delete it, and the adapter's folder where it held nothing else."""
        if self.folder.exists():
            check(self.folder)
            shutil.rmtree(self.folder)
            if not any(self.out.iterdir()):
                self.out.rmdir()


def check(folder: Path) -> None:
    """Raises GatingError where the folder holds anything that training does not write there."""
    if folder.is_symlink() or not folder.is_dir():
        raise GatingError(f"{folder} is no folder of gating.train; move it away, or choose another out=.")
    foreign = [p.name for p in folder.iterdir() if p.name != FILE and not p.name.startswith(f".{FILE}.")]
    if foreign:
        raise GatingError(
            f"{folder} holds {foreign[0]}, which training did not write; move it away, or choose another out=."
        )


def key(cfg: TrainConfig, fingerprint: str, rows: Sequence[Row]) -> str:
    """16 hex digits of what decides the weights: settings, base model, adapter to go on from, rows, versions, code."""
    settings = {k: v for k, v in asdict(cfg).items() if k not in (*NOT_SETTINGS, "notes")}
    start = adapters.digest(cfg.start) if cfg.start else None
    code = [p.read_text(encoding="utf-8") for p in sorted(Path(__file__).parent.glob("*.py"))]
    said = json.dumps([settings, fingerprint, start, [asdict(r) for r in rows], versions(), code], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def pack(
    step: int,
    model: PeftModel,
    adam: torch.optim.Optimizer,
    rate: torch.optim.lr_scheduler.LRScheduler,
    curve: Curve,
    vectors: Vectors | None,
) -> dict[str, Any]:
    """The state after `step` steps as plain tensors, numbers and lists. vectors: the directions that are in use."""
    return {
        "step": step,
        "weights": {name: p.detach() for name, p in model.named_parameters() if p.requires_grad},
        "adam": adam.state_dict(),
        "rate": rate.state_dict(),
        "curve": curve.steps,
        "vectors": None if vectors is None else {"difference": vectors.difference, "norm": vectors.norm},
    }


def unpack(
    state: dict[str, Any],
    model: PeftModel,
    adam: torch.optim.Optimizer,
    rate: torch.optim.lr_scheduler.LRScheduler,
    curve: Curve,
) -> tuple[int, Vectors | None]:
    """Put a state back in place; gives the number of steps made and the directions in use."""
    weights = state["weights"]
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.copy_(weights[name])
    adam.load_state_dict(state["adam"])
    rate.load_state_dict(state["rate"])
    curve.steps[:] = state["curve"]
    held = state["vectors"]
    return state["step"], None if held is None else Vectors(**held)
