"""A run's answers as a guard sees them: projections at every token of a window, and what each answer counts as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np
import xarray as xr

from gating.analysis.reading import check_single, held_readouts, read_group, whole_directions
from gating.errors import GatingError, choices
from gating.judging.labels import COMPLIANCE, EVASIVE, MISSING

ATTACK, BENIGN, UNSEEN = "attack", "benign", "unseen"  # roles of conditions


class Roles(NamedTuple):
    """Names of conditions, with * and ?, that suppress refusal and that must not be flagged (the baseline is one)."""

    attack: tuple[str, ...] = ("attack_*",)
    benign: tuple[str, ...] = ("benign_*",)

    def of(self, condition: str) -> str:
        """ATTACK, BENIGN or UNSEEN; the baseline is benign."""
        if any(fnmatchcase(condition, pattern) for pattern in self.attack):
            return ATTACK
        return BENIGN if any(fnmatchcase(condition, p) for p in ("baseline", *self.benign)) else UNSEEN


PERSONA, REFUSAL = "compliant", "refusal"


ROLES = Roles()


@dataclass(frozen=True)
class Rows:
    """Answers (condition x prompt) that are there. windows: means of the projections over `window` tokens on end,
    [row, place, layer, direction] float64, NaN where the answer has no such token; all else is [row].

    role: of the condition: ATTACK and BENIGN are calibrated on, UNSEEN is all else.
    """

    windows: np.ndarray
    condition: np.ndarray
    prompt: np.ndarray
    category: np.ndarray
    harmful: np.ndarray
    label: np.ndarray
    role: np.ndarray

    @property
    def positive(self) -> np.ndarray:
        """Harmful requests that an attack's answer complies with or evades, as an empty promise does: [row] boolean."""
        return (self.role == ATTACK) & self.harmful & np.isin(self.label, (COMPLIANCE, EVASIVE))

    @property
    def benign(self) -> np.ndarray:
        """Answers to harmless requests without an attack, benign personas' too: [row] boolean."""
        return (self.role == BENIGN) & ~self.harmful

    def where(self, chosen: np.ndarray) -> Rows:
        """Some of the rows: [row] boolean."""
        names = ("windows", "condition", "prompt", "category", "harmful", "label", "role")
        return replace(self, **{name: getattr(self, name)[chosen] for name in names})


def rows_of(
    run: xr.DataTree,
    directions: tuple[str, ...],
    window: int,
    layers: Sequence[int] | None = None,
    roles: Roles = ROLES,
) -> Rows:
    """The answers of a run that have a label. layers: those alone. Raises GatingError for a run without projections
    at every token, without one of the directions, or with answers shorter than a window throughout."""
    steps = _steps(run, directions, layers)
    if steps.sizes["step"] < window:
        raise GatingError(f"window={window}: the run's answers have {steps.sizes['step']} tokens; give a lower window.")
    prompts, label = read_group(run, "prompts"), read_group(run, "outcomes")["label"]
    label = label.transpose("condition", "prompt")
    present = label.values.ravel() != MISSING
    c, p = (i.ravel()[present] for i in np.indices(label.shape))
    values = steps.sel(condition=label["condition"], prompt=label["prompt"]).values
    of_prompt = prompts.sel(prompt=label["prompt"])
    names, hashes = (np.array(label[d].values.tolist()) for d in ("condition", "prompt"))
    return Rows(
        windowed(values.reshape(-1, *values.shape[2:])[present], window),
        names[c],
        hashes[p],
        np.array(of_prompt["category"].values.tolist())[p],
        of_prompt["harmful"].values[p],
        label.values.ravel()[present],
        np.array([roles.of(name) for name in names])[c],
    )


def windowed(steps: np.ndarray, window: int) -> np.ndarray:
    """Means over `window` tokens on end: [row, token, ...] gives [row, token - window + 1, ...], NaN where one of them
    is missing."""
    return np.lib.stride_tricks.sliding_window_view(steps.astype("float64"), window, axis=1).mean(-1)


def _steps(run: xr.DataTree, directions: tuple[str, ...], layers: Sequence[int] | None) -> xr.DataArray:
    """Projections at generated tokens (step 0 is the prompt's last): condition, prompt, step, layer, direction."""
    check_single(run)
    readouts = held_readouts(run)
    if "step_projection" not in readouts:
        raise GatingError(
            "this run has no projections at every token (/readouts/step_projection); make one with "
            "readouts.tokens=true, such as python -m gating.run experiment=guard."
        )
    steps = readouts["step_projection"].isel(step=slice(1, None))
    for name in directions:
        if name not in steps["direction"].values:
            raise GatingError(
                f"direction {name!r} is not in the run: use {choices(steps['direction'].values.tolist(), name)}, or "
                f"add it with directions.extra=[{name}]."
            )
    for layer in layers or ():
        if layer not in steps["layer"].values:
            raise GatingError(f"layer={layer}: the run has no readouts of that block; take a run of the guard's model.")
    chosen = steps.sel(direction=list(directions))
    chosen = chosen if layers is None else chosen.sel(layer=list(layers))
    return chosen.load().transpose("condition", "prompt", "step", "layer", "direction")


def units(run: xr.DataTree, directions: tuple[str, ...], layers: Sequence[int]) -> np.ndarray:
    """The unit vectors that were read: [layer, direction, hidden] float64."""
    held = whole_directions(run)["vector"].sel(direction=list(directions), layer=list(layers))
    vectors = held.transpose("layer", "direction", "hidden").values.astype("float64")
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
