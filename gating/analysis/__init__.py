"""Rates and contrasts: pure functions from a run's tree to labelled Datasets. No model, no zarr.

Everything counts prompts that are `done` and have a label; what is missing is left out and shows in `n`. Dimensions other
than prompt (condition, and a joined multirun's axes) are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from gating.analysis import stats
from gating.errors import GatingError, choices
from gating.judging.labels import LABELS, MISSING

GROUPINGS = ("category", "source", "harmful")
CONDITION_COORDINATES = ("kind", "direction", "op", "layers", "coef", "norm", "scope", "read", "seed", "grid")


def refusal_rate(
    run: xr.DataTree,
    by: str | Sequence[str] | None = None,
    label: str = "refusal",
    harmful: bool | None = None,
    level: float = 0.95,
) -> xr.Dataset:
    """How often each condition's answers have `label`: rate, low, high (Wilson), k, n over condition.

    by: one or more of category, source, harmful: a further dimension each. harmful: count only harmful (True) or only
    harmless (False) prompts; None counts both. Raises GatingError for an unknown label or grouping.
    """
    return _described(run, _rate(run, by, label, harmful, level))


def _rate(
    run: xr.DataTree, by: str | Sequence[str] | None, label: str, harmful: bool | None, level: float
) -> xr.Dataset:
    hit, present = _hits(run, _code(label), harmful)
    for name in [by] if isinstance(by, str) else list(by or []):
        if name not in GROUPINGS:
            raise GatingError(f"by={name!r} is not a grouping of prompts: use {choices(GROUPINGS, name)}.")
        column = group(run, "prompts")[name].reindex(prompt=hit["prompt"])
        values = sorted(set(column.values.tolist()))
        member = xr.DataArray(
            np.array([column.values == v for v in values]), dims=(name, "prompt"), coords={name: np.array(values)}
        )
        hit, present = hit & member, present & member
    k, n = hit.sum("prompt"), present.sum("prompt")
    low, high = stats.wilson(k.values, n.values, level)
    rate = k / n.where(n > 0)
    ds = xr.Dataset({"rate": rate, "low": (k.dims, low), "high": (k.dims, high), "k": k, "n": n})
    ds.attrs = {"label": label, "interval": f"Wilson, {level:.0%}"}
    return ds


def rates(
    run: xr.DataTree, by: str | Sequence[str] | None = None, harmful: bool | None = None, level: float = 0.95
) -> xr.Dataset:
    """`refusal_rate` for every label, along a dimension `label`."""
    each = [_rate(run, by, name, harmful, level) for name in LABELS]
    dim = xr.DataArray(np.array(LABELS), dims="label", name="label")
    return _described(run, xr.concat(each, dim=dim, combine_attrs="drop_conflicts"))


def contrast(
    run: xr.DataTree,
    baseline: str = "baseline",
    label: str = "refusal",
    harmful: bool | None = None,
    level: float = 0.95,
    holm: bool = False,
) -> xr.Dataset:
    """Every condition against `baseline` on the same prompts: difference of rates, low, high (Newcombe's method 10),
    p (exact McNemar), b and c (pairs where only the condition, only the baseline has the label), n pairs.

    A pair counts where both answers are present. holm: also p_holm, adjusted for the family of all contrasts in the
    result (the baseline with itself is none, and is NaN). Raises GatingError for a baseline that the run does not have.
    """
    hit, present = _hits(run, _code(label), harmful)
    names = hit["condition"].values.tolist()
    if baseline not in names:
        raise GatingError(f"baseline={baseline!r} is not a condition of this run: use {choices(names, baseline)}.")
    base, base_present = (x.sel(condition=baseline, drop=True) for x in (hit, present))
    pair = present & base_present
    a, b, c, d = ((pair & x & y).sum("prompt") for x, y in ((hit, base), (hit, ~base), (~hit, base), (~hit, ~base)))
    difference, low, high = stats.paired_difference(a.values, b.values, c.values, d.values, level)
    p = np.where((a + b + c + d).values > 0, stats.mcnemar_exact(b.values, c.values), np.nan)
    ds = xr.Dataset(
        {"difference": (a.dims, difference), "low": (a.dims, low), "high": (a.dims, high), "p": (a.dims, p),
         "b": b, "c": c, "n": a + b + c + d},
        coords=a.coords,
        attrs={"baseline": baseline, "label": label, "interval": f"Newcombe method 10, {level:.0%}"},
    )  # fmt: skip
    if holm:
        ds["p_holm"] = (a.dims, stats.holm(ds["p"].where(ds["condition"] != baseline).values))
    return _described(run, ds)


def random_null(run: xr.DataTree, label: str = "refusal", harmful: bool | None = None) -> xr.Dataset:
    """Each steered condition against its own grid point's random controls: its change from the baseline, theirs
    (null_low to null_high), and p = (1 + number of controls that change at least as much, either way) / (K + 1), with
    K as `k`. NaN and k = 0 where a condition has no controls, or a joined run no such condition."""
    effect = contrast(run, label=label, harmful=harmful)["difference"].transpose(..., "condition")
    kind, grid = (group(run, "conditions")[c].broadcast_like(effect).transpose(*effect.dims) for c in ("kind", "grid"))
    steered, fields = kind.values == "steered", ("difference", "null_low", "null_high", "p")
    out = {f: np.full(effect.shape, np.nan) for f in fields} | {"k": np.zeros(effect.shape, dtype="int64")}
    for at in zip(*np.nonzero(steered & np.isfinite(effect.values)), strict=True):
        run_at = at[:-1]  # the place in a joined multirun; () for one run
        own = (kind.values[run_at] == "random") & (grid.values[run_at] == grid.values[at])
        null, observed = effect.values[run_at][own & np.isfinite(effect.values[run_at])], effect.values[at]
        out["difference"][at], out["k"][at] = observed, null.size
        if null.size:
            out["null_low"][at], out["null_high"][at] = null.min(), null.max()
            out["p"][at] = stats.permutation_p(abs(observed), np.abs(null))
    ds = xr.Dataset({f: (effect.dims, v) for f, v in out.items()}, coords=effect.coords)
    return ds.isel(condition=steered.any(axis=tuple(range(steered.ndim - 1))))


def controlled(run: xr.DataTree) -> list[tuple[str, list[str]]]:
    """Each steered or named condition with its random controls: those of its own place in the grid; else those that do just
    what it does but for a random direction. Controls of no condition stand under the name that they share, `NAME (random)`."""
    about = group(run, "conditions")
    names, kinds, grids = (about[c].values.tolist() for c in ("condition", "kind", "grid"))
    null: dict[int, list[str]] = {}
    own: dict[int, list[str]] = {}
    for name, kind, grid in zip(names, kinds, grids, strict=True):
        into = null if kind == "random" else own if kind in ("steered", "named") else {}
        into.setdefault(grid, []).append(name)
    free = [name for some in own.values() for name in some]
    out = []
    for grid, some in null.items():
        whose = own.get(grid) or [n for n in free if _same_but_random(about, names.index(n), names.index(some[0]))]
        out += [(name, some) for name in whose or [some[0].partition("-random-")[0] + " (random)"]]
    return out


def _same_but_random(about: xr.Dataset, own: int, control: int) -> bool:
    """Whether two conditions are one but for the directions that are random in the control: the same operations at the
    same blocks and strengths on the same tokens under the same system message."""
    if "iv_op" not in about or about["system"].values[own] != about["system"].values[control]:
        return False
    a, b = ({c: about[c].values[i] for c in about.data_vars if str(c).startswith("iv_")} for i in (own, control))
    for slot in range(about.sizes["intervention"]):
        fixed = ["iv_op", "iv_layers", "iv_scope"]
        if b["iv_seed"][slot] < 0:
            fixed += ["iv_direction", "iv_norm", "iv_read"]
        elif a["iv_seed"][slot] >= 0:
            return False
        elif b["iv_op"][slot] == "add":
            fixed += ["iv_norm"]  # a projection has no length to set
        if any(a[c][slot] != b[c][slot] for c in fixed):
            return False
        if not np.array_equal(a["iv_coef"][slot], b["iv_coef"][slot], equal_nan=True):
            return False
    return bool((b["iv_seed"] >= 0).any())


def group(run: xr.DataTree, name: str) -> xr.Dataset:
    """One group of a run, loaded."""
    return run[f"/{name}"].to_dataset().load()


def asked(run: xr.DataTree, harmful: bool | None) -> np.ndarray:
    """Which prompts are harmful (True) or harmless (False); None is all of them: boolean [prompt]."""
    flags = group(run, "prompts")["harmful"].values
    return np.ones(flags.size, dtype=bool) if harmful is None else flags == harmful


def strengths(run: xr.DataTree, harmful: bool | None) -> xr.Dataset:
    """How hard each condition pushes in units that compare, means over the prompts asked for: `change`, |added| / |h| at the
    last prompt token (the largest over blocks), and `kl`, first-token KL to the baseline in nats; empty where not kept."""
    held = run["/readouts"].to_dataset() if "readouts" in run.children else xr.Dataset()
    if not {"relative_change", "kl"} <= set(held.data_vars):
        return xr.Dataset()
    held = (
        held[["relative_change", "kl"]].isel(prompt=asked(run, harmful)).load()
    )  # per-token readouts may be gigabytes
    return xr.Dataset({"change": held["relative_change"].max("layer").mean("prompt"), "kl": held["kl"].mean("prompt")})


def undisturbed(run: xr.DataTree) -> bool | None:
    """The prompts that a condition's KL is read on: harmless ones, or all (None) where none was asked."""
    return None if asked(run, True).all() else False


def _code(label: str) -> int:
    if label not in LABELS:
        raise GatingError(f"label={label!r} is not a label: use {choices(LABELS, label)}.")
    return LABELS.index(label)


def _hits(run: xr.DataTree, code: int, harmful: bool | None) -> tuple[xr.DataArray, xr.DataArray]:
    """Which answers have the label, and which are present at all: both boolean, over condition and prompt."""
    out = run["/outcomes"].to_dataset()[["label", "done"]].load()
    if harmful is not None:
        flags = group(run, "prompts")["harmful"]
        out = out.sel(prompt=flags["prompt"].values[flags.values == harmful])
    present = out["done"] & (out["label"] != MISSING)
    return present & (out["label"] == code), present


def _described(run: xr.DataTree, ds: xr.Dataset) -> xr.Dataset:
    """With what each condition is, as coordinates along condition (and the axes of a joined multirun, where it differs)."""
    about = group(run, "conditions").sel(condition=ds["condition"].values)
    columns = {c: about[c] for c in CONDITION_COORDINATES if c in about}
    plain = {c: v.dtype if v.dtype.kind in "biuf" else str for c, v in columns.items()}
    return ds.assign_coords({c: (v.dims, np.array(v.values.tolist(), dtype=plain[c])) for c, v in columns.items()})
