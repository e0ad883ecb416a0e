"""Directions: what they are contrasts of, how a vector comes from two sides' activations, and the algebra of vectors."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from gating import personas
from gating.chat import check_position, needs_response
from gating.errors import GatingError, choices
from gating.prompts import Prompt, digest

REFUSAL = "refusal"
METHODS = ("mean", "probe")
ROLES = ("model", "user", "i_thou")
ALGEBRA = ("orthogonal_to", "along")
SITE = "resid_post"
Chat = tuple[str | None, str]  # system message, user message


@dataclass(frozen=True)
class Contrast:
    """What a direction is made from: chats of its positive and its negative side, and whose text is read.

    role: `model` reads the chat itself (the model that was told to be so); `user` reads a chat whose *user* message is
    an answer given under the instruction (somebody else who is so); `i_thou` is their difference, model - user (the
    paper, section 2; arXiv 2606.26161); `refusal` is a contrast of requests. paired: row i of the two sides belongs
    together (the same question), so a row that is missing takes its partner with it.
    """

    name: str
    role: str
    position: str
    positive: tuple[Chat, ...]
    negative: tuple[Chat, ...]
    digest: str

    @property
    def texts(self) -> str:
        """12 hex digits of the very texts and the place that it is read at: what makes two directions comparable."""
        what = repr((self.role, self.position, self.positive, self.negative))
        return hashlib.sha256(what.encode()).hexdigest()[:12]

    @property
    def paired(self) -> bool:
        return self.role != REFUSAL

    def needs_answers(self, keep: str | None) -> bool:
        """Whether its chats must be answered first: for a response position, a user's part, or a filter `keep` of pairs."""
        filtered = keep is not None and self.paired
        return needs_response(self.position) or self.role in ("user", "i_thou") or filtered


def split_name(name: str, default_position: str) -> tuple[str, str, str]:
    """`persona:role@position` to its parts; the model's own role and the configured position where none is given."""
    rest, _, position = name.partition("@")
    key = f"steer.direction={name!r}"
    base, _, role = rest.partition(":") if not personas.is_path(rest) else _file_role(rest)
    if role and (role not in ROLES or base == REFUSAL):
        raise GatingError(f"{key}: the part after the colon is a persona's role: use {choices(ROLES, role)}.")
    role = role or (REFUSAL if base == REFUSAL else "model")
    return base, role, check_position(position or default_position, key=f"{key}: the part after @")


def _file_role(rest: str) -> tuple[str, str, str]:
    """A persona file's path may hold colons; a role stands behind its ending."""
    base, colon, role = rest.rpartition(":")
    return (base, colon, role) if base.lower().endswith(personas.ENDINGS) else (rest, "", "")


def label(name: str) -> str:
    """What a direction is called in the results: its name, or a persona file's stem in place of its path."""
    rest, at, position = name.partition("@")
    base, colon, role = rest.partition(":") if not personas.is_path(rest) else _file_role(rest)
    return f"{Path(base).stem if personas.is_path(base) else base}{colon}{role}{at}{position}"


def contrast(
    name: str, default_position: str, system: str | None, extract: Sequence[Prompt], questions: int | None
) -> Contrast:
    """The contrast behind a direction's name: `refusal` (harmful - harmless requests of the extraction split, under the
    run's own system prompt; Arditi et al. 2024) or a persona (positive - negative system instructions over the same
    questions; Chen et al. 2025, arXiv 2507.21509). Raises GatingError for an unknown name or an empty side."""
    base, role, position = split_name(name, default_position)
    if base == REFUSAL:
        sides = [tuple((system, p.text) for p in extract if p.harmful is flag) for flag in (True, False)]
        if not all(sides):
            raise GatingError(
                "directions.harmful and directions.harmless must both hold prompts of the extract split: the refusal "
                f"direction is their difference, and there are {len(sides[0])} and {len(sides[1])}."
            )
        return Contrast(label(name), role, position, sides[0], sides[1], digest(extract))
    persona = personas.load(base)
    pairs = personas.contrast(persona)
    asked = sorted({row.question_index for row in pairs})[:questions]
    rows = [row for row in pairs if row.question_index in asked]
    positive = tuple((row.system, row.question) for row in rows if row.sign > 0)
    negative = tuple((row.system, row.question) for row in rows if row.sign < 0)
    return Contrast(label(name), role, position, positive, negative, persona.digest)


def check_derived(derived: Mapping[str, Any]) -> None:
    """Raises GatingError for a derived direction that is not {of: A, orthogonal_to: B} or {of: A, along: B}."""
    for name, spec in derived.items():
        key = f"directions.derived.{name}"
        if not isinstance(spec, Mapping) or set(spec) not in ({"of", a} for a in ALGEBRA):
            raise GatingError(
                f"{key} must be {{of: A, orthogonal_to: B}} (A without its part along B) or {{of: A, along: B}} (that "
                "part), with A and B directions."
            )
        if not name.replace("_", "").replace("-", "").isalnum() or name in (REFUSAL, *personas.available()):
            raise GatingError(f"{key}: choose a name of letters, digits, - and _ that no other direction has.")


def derive(a: np.ndarray, b: np.ndarray, how: str) -> np.ndarray:
    """The part of `a` along `b`, or the rest of it, layer by layer: both [layer, hidden], float64."""
    squared = (b * b).sum(-1, keepdims=True)
    along = np.divide((a * b).sum(-1, keepdims=True), squared, out=np.zeros_like(squared), where=squared > 0) * b
    return along if how == "along" else a - along


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


def unit(v: np.ndarray, missing: float = np.nan) -> np.ndarray:
    """Unit vectors along the last axis; `missing` where a vector is zero."""
    norm = np.linalg.norm(v, axis=-1, keepdims=True)
    return np.divide(v, norm, out=np.full_like(v, missing), where=norm > 0)


def permuted(positive: np.ndarray, negative: np.ndarray, paired: bool, k: int, seed: int) -> np.ndarray:
    """Mean differences after the labels were shuffled, [k, layer, hidden] float64: a null for cosines that keeps the
    activations' own covariance. Paired rows swap sides pair by pair, unpaired ones are dealt out anew."""
    rng = np.random.default_rng([seed, 7])
    both = np.concatenate([positive, negative]).astype("float64")
    n = len(positive)
    weights = np.empty((k, len(both)))
    for i in range(k):
        if paired:
            sign = rng.choice([-1.0, 1.0], size=n)
            weights[i] = np.concatenate([sign, -sign]) / n
        else:
            order = rng.permutation(len(both))
            weights[i] = np.where(order < n, 1 / n, -1 / (len(both) - n))
    return np.einsum("kr,rlh->klh", weights, both)


@dataclass(frozen=True)
class Made:
    """A direction that has been extracted: its vector [layer, hidden] float64 and where it came from."""

    name: str
    vector: np.ndarray
    role: str
    position: str
    method: str
    source: str
    n: tuple[int, int] = (-1, -1)  # rows a side; -1 where it is derived from others
    distinct: tuple[int, int] = (-1, -1)
    sides: tuple[np.ndarray, np.ndarray] | None = None  # mean state of each side [layer, hidden]
    texts: str = ""  # Contrast.texts; empty where it is derived


def assemble(made: Sequence[Made], residual_norm: np.ndarray) -> xr.Dataset:
    """The /directions group: vectors, norms, cosines, the sides' mean projections, and how each was made."""
    text = np.dtypes.StringDType()
    stacked = np.stack([m.vector for m in made])  # [direction, layer, hidden]
    units = unit(stacked)
    missing = np.full(stacked.shape[1:], np.nan)
    sides = np.stack([np.stack(m.sides or (missing, missing)) for m in made])  # [direction, side, layer, hidden]
    projection = np.einsum("dslh,dlh->sdl", sides, units).astype("float32")
    counts = np.array([(*m.n, *m.distinct) for m in made], dtype="int32").T
    ds = xr.Dataset(
        {
            "vector": (("direction", "layer", "hidden"), stacked.astype("float32")),
            "norm": (("direction", "layer"), np.linalg.norm(stacked, axis=-1).astype("float32")),
            "cosine": (("direction", "other", "layer"), np.einsum("alh,blh->abl", units, units).astype("float32")),
            "projection_positive": (("direction", "layer"), projection[0]),
            "projection_negative": (("direction", "layer"), projection[1]),
            "residual_norm": ("layer", residual_norm.astype("float32")),
            "n_positive": ("direction", counts[0]),
            "n_negative": ("direction", counts[1]),
            "n_distinct_positive": ("direction", counts[2]),
            "n_distinct_negative": ("direction", counts[3]),
            "site": ("direction", np.array([SITE] * len(made), dtype=text)),
            **{
                field: ("direction", np.array([getattr(m, field) for m in made], dtype=text))
                for field in ("role", "position", "method", "source", "texts")
            },
        }
    )
    names = np.array([m.name for m in made], dtype=text)
    ds = ds.assign_coords(direction=names, other=("other", names), layer=np.arange(stacked.shape[1], dtype="int32"))
    ds["vector"].attrs = {"long_name": "direction, read at resid_post of block `layer`", "units": "residual stream"}
    ds["residual_norm"].attrs = {"long_name": "median residual norm over all prompt tokens but the first"}
    for side in ("positive", "negative"):
        ds[f"projection_{side}"].attrs = {"long_name": f"mean projection of the {side} side on the unit direction"}
        ds[f"n_distinct_{side}"].attrs = {"long_name": f"distinct inputs of the {side} side: its effective n"}
    return ds


def check_method(method: str) -> str:
    if method not in METHODS:
        raise GatingError(f"directions.method={method!r}: use {choices(METHODS, method)}.")
    return method
