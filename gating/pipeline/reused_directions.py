"""Directions of another run (`directions.source`): plain arrays, which may be read here and steered there, as long as
both are of one model and were made from the same texts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import xarray as xr

from gating import store
from gating.errors import GatingError, choices
from gating.pipeline.config import DirectionsConfig
from gating.steering.direction_specs import DirectionSpec
from gating.steering.directions import Extracted, assemble, derived_directions

# How far two readings of one model's residual stream lie apart, relative to its norm: rounding alone gives up to 1e-5
# in float32 and 2e-2 in bfloat16 (docs/ndif.md); other weights give much more.
SAME, SAME_ROUNDED = 1e-3, 5e-2


def read(source: str) -> xr.Dataset:
    """The /directions group of a run. Raises GatingError where it has none."""
    path = store.locate(source)
    store.read_attrs(path)
    if not store.has_group(path, "directions"):
        raise GatingError(f"directions.source={source}: that run has no directions; give one that has extracted some.")
    return store.read_group(path, "directions")


def digest(source: str) -> str:
    """16 hex digits of the vectors and their names, for the key of a run that uses them."""
    taken = read(source)
    h = hashlib.sha256(repr(taken["direction"].values.tolist()).encode())
    h.update(np.ascontiguousarray(taken["vector"].values).tobytes())
    return h.hexdigest()[:16]


def directions(how: DirectionsConfig, specs: Sequence[DirectionSpec], signature: xr.Dataset) -> xr.Dataset:
    """The directions that a run needs, out of another run's.

    signature: of the model that they are for. Raises GatingError naming the direction that is not there or was made
    from other texts (an overlap with test prompts would go unseen), or where the models differ.
    """
    source = str(how.source)
    taken = read(source)
    if "texts" not in taken:
        raise GatingError(f"directions.source={source} was made by an earlier version; run it again with this one.")
    if "variant" not in taken:  # of a version without variants
        taken["variant"] = "direction", np.full(taken.sizes["direction"], "", dtype=store.TEXT)
    known = dict(zip(taken["direction"].values.tolist(), taken["texts"].values.tolist(), strict=True))
    for spec in specs:
        if spec.name not in known:
            raise GatingError(
                f"directions.source={source} has no direction {spec.name!r}: it has {choices(known, spec.name)}; run "
                "that one with directions.extra=[...] to have it there."
            )
        if known[spec.name] != spec.texts:
            raise GatingError(
                f"directions.source={source}: {spec.name!r} was made from other texts or at another position there "
                "than this run's settings name; give this run the same directions.* settings, or extract anew "
                "(directions.source=null)."
            )
    _check_model(source, signature, how.other_weights)
    names = [spec.name for spec in specs]
    return _with_derived(taken.sel(direction=names, other=names), how)


def _check_model(source: str, signature: xr.Dataset, other_weights: bool) -> None:
    path = store.locate(source)
    if not store.has_group(path, "model"):
        raise GatingError(
            f"directions.source={source} does not say which model it is of; run it again with this version."
        )
    theirs = store.read_group(path, "model")
    if (apart := distance(theirs, signature)) is not None and other_weights:
        return
    if apart is None or not apart <= tolerance(theirs, signature):  # NaN is neither
        how = "another shape" if apart is None else f"activations that lie {apart:.2g} apart, relative to their norm"
        raise GatingError(
            f"directions.source={source} is of another model ({how}); directions belong to the weights that they were "
            "read from: choose a run of this model, or extract anew (directions.source=null)."
        )


def _with_derived(taken: xr.Dataset, how: DirectionsConfig) -> xr.Dataset:
    """The group with the derived directions, made anew of its own vectors: the other run may have none, or others under
    their names."""
    if not how.derived:
        return taken
    extracted = {}
    for name in taken["direction"].values.tolist():
        one = taken.sel(direction=name)
        role, position, method, origin, texts, variant = (
            str(one[field].item()) for field in ("role", "position", "method", "source", "texts", "variant")
        )
        n, distinct = ((int(one[f"{kind}_positive"]), int(one[f"{kind}_negative"])) for kind in ("n", "n_distinct"))
        vector = one["vector"].values.astype("float64")
        extracted[name] = Extracted(
            name, vector, role, position, method, origin, n, distinct, texts=texts, variant=variant
        )
    made = derived_directions(extracted, how.derived)
    group = assemble([*extracted.values(), *made], taken["residual_norm"].values)
    if "resting" in taken:
        group["resting"] = taken["resting"]
    for side in ("projection_positive", "projection_negative"):  # of states that only the other run has seen
        group[side].values[: len(extracted)] = taken[side].values
    return group


def distance(a: xr.Dataset, b: xr.Dataset) -> float | None:
    """Distance of two models' signatures [layer, hidden], relative to their norm; None for models of different
    shapes."""
    x, y = (s["signature"].values.astype("float64") for s in (a, b))
    return float(np.linalg.norm(x - y) / np.linalg.norm(x)) if x.shape == y.shape else None


def tolerance(a: xr.Dataset, b: xr.Dataset) -> float:
    return SAME if a.attrs.get("dtype") == b.attrs.get("dtype") == "float32" else SAME_ROUNDED
