"""guard.json: a calibrated monitor, for one model. Its SHA-256 tells of damage; it is no signature."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gating import foreign, swap
from gating.errors import GatingError, naming
from gating.foreign import shown

FORM = 3
MODEL = ("model_id", "model_revision", "model_fingerprint", "template_hash", "dtype")


@dataclass(frozen=True)
class Guard:
    """A monitor: where it reads, what it weighs, when it flags.

    model: of the run that it was calibrated on (MODEL); layers: the blocks, in their order; attacks: each has a score,
    the weighted sum of projections less `centres` [attack]; weights [attack][layer][direction] of unit directions;
    vectors: their weighted sums, base64 of float32 [attack * layer, hidden]; acts: the one of the blocks where the
    persona acts and is held; persona: its unit direction there, likewise [1, hidden]; neutral: its mean projection in
    benign answers, upper: the 75th percentile there; calibration: what was measured, on how many; prompts: hashes of
    what it was calibrated on; attack,
    benign: patterns of conditions (rows.Roles).
    """

    model: dict[str, str]
    layers: list[int]
    window: int
    threshold: float
    fpr: float
    directions: list[str]
    attacks: list[str]
    weights: list[list[list[float]]]
    centres: list[float]
    vectors: str
    acts: int
    persona: str
    neutral: float
    upper: float
    calibration: dict[str, Any] = field(default_factory=dict)
    prompts: list[str] = field(default_factory=list)
    attack: list[str] = field(default_factory=list)
    benign: list[str] = field(default_factory=list)
    form: int = FORM


def packed(vectors: np.ndarray) -> str:
    """float32 [layer, hidden] as base64, little-endian."""
    return base64.b64encode(np.asarray(vectors, dtype="<f4").tobytes()).decode()


def unpacked(text: str, rows: int) -> np.ndarray:
    """[row, hidden] float32. Raises ValueError where the numbers are not so many."""
    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").reshape(rows, -1).copy()


def vectors(guard: Guard) -> np.ndarray:
    """Its weighted sums of directions: [attack, layer, hidden] float32."""
    return unpacked(guard.vectors, len(guard.attacks) * len(guard.layers)).reshape(
        len(guard.attacks), len(guard.layers), -1
    )


def digest(content: dict[str, Any]) -> str:
    """SHA-256 of the content without its digest, keys sorted."""
    plain = json.dumps({k: v for k, v in content.items() if k != "sha256"}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(plain.encode()).hexdigest()


def save(guard: Guard, path: Path) -> str:
    """Write the file, whole or not at all; its SHA-256."""
    content = json.loads(json.dumps(asdict(guard), allow_nan=False))
    content["sha256"] = digest(content)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        swap.write(path, json.dumps(content, indent=1) + "\n")
    return str(content["sha256"])


def load(path: str | Path) -> Guard:
    """Raises GatingError for a file that is no guard, is of another form, or is not as it was written."""
    where = f"guard={shown(path)}"
    remedy = "calibrate again with python -m gating.guard RUN"
    content = foreign.parse_json(foreign.read_text(Path(path).expanduser(), "guard"), where)
    if not isinstance(content, dict) or content.get("form") != FORM:
        raise GatingError(f"{where}: it is no guard of form {FORM}; {remedy}.")
    if content.get("sha256") != digest(content):
        raise GatingError(f"{where}: its content was changed since it was written (SHA-256); {remedy}.")
    del content["sha256"]
    try:
        guard = Guard(**content)
        fits = _holds(guard) and vectors(guard).shape[2] == unpacked(guard.persona, 1).shape[1]
    except (TypeError, ValueError, AttributeError, binascii.Error):
        fits = False
    if not fits:
        raise GatingError(f"{where}: an entry of it is not what a guard of form {FORM} holds; {remedy}.")
    return guard


def _holds(guard: Guard) -> bool:
    """Whether each entry is of its kind."""
    whole = (*guard.layers, guard.acts, guard.window)
    weights = [of for each in guard.weights for of in each]
    real = (guard.threshold, guard.fpr, guard.neutral, guard.upper, *guard.centres, *(w for of in weights for w in of))
    texts = (*guard.directions, *guard.attacks, *guard.prompts, *guard.attack, *guard.benign, *guard.model.values())
    return (
        all(type(n) is int for n in whole)
        and all(type(n) in (int, float) for n in real)
        and all(isinstance(text, str) for text in texts)
        and guard.window > 0
        and guard.layers == sorted(set(guard.layers))
        and guard.acts in guard.layers
        and len(guard.attacks) == len(guard.weights) == len(guard.centres) > 0
        and all(len(each) == len(guard.layers) for each in guard.weights)
        and all(len(of) == len(guard.directions) > 0 for of in weights)
    )


def check_model(guard: Guard, fingerprint: str, name: str) -> None:
    """Raises GatingError where the model's weights are not those that the guard was calibrated on."""
    own = guard.model.get("model_fingerprint")
    if own != fingerprint:
        raise GatingError(
            f"guard: it was calibrated on {shown(guard.model.get('model_id'))} (weights {shown(own)}), and {name} has "
            f"weights {fingerprint}; calibrate one on a run of this model."
        )
