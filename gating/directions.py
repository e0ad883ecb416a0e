"""Directions: contrasts of prompts, extracted as mean differences or probes at every block, with norms and cosines."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from gating import personas
from gating.chat import check_position
from gating.errors import GatingError, choices
from gating.prompts import Prompt, digest

REFUSAL = "refusal"
METHODS = ("mean", "probe")
SITE = "resid_post"


@dataclass(frozen=True)
class Contrast:
    """What a direction is made from: chats (system, user) of its positive and its negative side."""

    name: str
    position: str
    positive: tuple[tuple[str | None, str], ...]
    negative: tuple[tuple[str | None, str], ...]
    digest: str


def split_name(name: str, default_position: str) -> tuple[str, str]:
    """`persona@position` to its parts; the configured position where none is given."""
    base, _, position = name.partition("@")
    return base, check_position(position or default_position, key=f"steer.direction={name!r}: the part after @")


def label(name: str) -> str:
    """What a direction is called in the results: its name, or a persona file's stem in place of its path."""
    base, at, position = name.partition("@")
    return f"{Path(base).stem if personas.is_path(base) else base}{at}{position}"


def contrast(
    name: str, default_position: str, system: str | None, extract: Sequence[Prompt], questions: int | None
) -> Contrast:
    """The contrast behind a direction's name: `refusal` (harmful - harmless requests of the extraction split, under the
    run's own system prompt; Arditi et al. 2024) or a persona (positive - negative system instructions over the same
    questions; Chen et al. 2025, arXiv 2507.21509). Raises GatingError for an unknown name or an empty side."""
    base, position = split_name(name, default_position)
    if base == REFUSAL:
        sides = [tuple((system, p.text) for p in extract if p.harmful is flag) for flag in (True, False)]
        if not all(sides):
            raise GatingError(
                "directions.harmful and directions.harmless must both hold prompts of the extract split: the refusal "
                f"direction is their difference, and there are {len(sides[0])} and {len(sides[1])}."
            )
        return Contrast(label(name), position, sides[0], sides[1], digest(extract))
    persona = personas.load(base)
    pairs = personas.contrast(persona)
    asked = sorted({row.question_index for row in pairs})[:questions]
    rows = [row for row in pairs if row.question_index in asked]
    positive = tuple((row.system, row.question) for row in rows if row.sign > 0)
    negative = tuple((row.system, row.question) for row in rows if row.sign < 0)
    return Contrast(label(name), position, positive, negative, persona.digest)


def mean_difference(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """[row, layer, hidden] of both sides give [layer, hidden] float64: mean(positive) - mean(negative), natural norm."""
    return positive.mean(axis=0, dtype="float64") - negative.mean(axis=0, dtype="float64")


def probe(positive: np.ndarray, negative: np.ndarray, seed: int) -> np.ndarray:
    """The normal of a logistic-regression boundary at each layer: [layer, hidden] float64.

    Features are centred and scaled by one number a layer, so that the normal stays in the residual stream's own axes.
    The vector takes the norm of the mean difference, so that coefficients mean the same for both methods.
    """
    reference = mean_difference(positive, negative)
    x = np.concatenate([positive, negative]).astype("float64")
    y = np.array([1] * len(positive) + [0] * len(negative))
    out = np.zeros_like(reference)
    for layer in range(x.shape[1]):
        features = x[:, layer] - x[:, layer].mean(axis=0)
        features = features / (features.std() or 1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a separable set has no finite optimum; l2 bounds it
            normal = LogisticRegression(C=0.1, max_iter=500, random_state=seed).fit(features, y).coef_[0]
        out[layer] = normal / (np.linalg.norm(normal) or 1.0) * np.linalg.norm(reference[layer])
    return out


def assemble(
    contrasts: Sequence[Contrast], vectors: Sequence[np.ndarray], method: str, residual_norm: np.ndarray
) -> xr.Dataset:
    """The /directions group from each contrast's vector [layer, hidden]: vectors, norms, cosines and how each was made."""
    text = np.dtypes.StringDType()
    stacked = np.stack(vectors)  # [direction, layer, hidden]
    norm = np.linalg.norm(stacked, axis=-1)
    unit = np.divide(stacked, norm[..., None], out=np.full_like(stacked, np.nan), where=norm[..., None] > 0)
    ds = xr.Dataset(
        {
            "vector": (("direction", "layer", "hidden"), stacked.astype("float32")),
            "norm": (("direction", "layer"), norm.astype("float32")),
            "cosine": (("direction", "other", "layer"), np.einsum("alh,blh->abl", unit, unit).astype("float32")),
            "residual_norm": ("layer", residual_norm.astype("float32")),
            "n_positive": ("direction", np.array([len(c.positive) for c in contrasts], dtype="int32")),
            "n_negative": ("direction", np.array([len(c.negative) for c in contrasts], dtype="int32")),
            "position": ("direction", np.array([c.position for c in contrasts], dtype=text)),
            "method": ("direction", np.array([method] * len(contrasts), dtype=text)),
            "site": ("direction", np.array([SITE] * len(contrasts), dtype=text)),
            "source": ("direction", np.array([c.digest for c in contrasts], dtype=text)),
        }
    )
    names = np.array([c.name for c in contrasts], dtype=text)
    ds = ds.assign_coords(direction=names, other=("other", names), layer=np.arange(stacked.shape[1], dtype="int32"))
    ds["vector"].attrs = {"long_name": "direction, read at resid_post of block `layer`", "units": "residual stream"}
    ds["residual_norm"].attrs = {"long_name": "median residual norm over all prompt tokens but the first"}
    return ds


def check_method(method: str) -> str:
    if method not in METHODS:
        raise GatingError(f"directions.method={method!r}: use {choices(METHODS, method)}.")
    return method
