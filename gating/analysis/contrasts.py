"""Conditions against the baseline on the same prompts, and against the random directions that control them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xarray as xr

from gating.analysis import stats
from gating.analysis.judges import with_judge
from gating.analysis.label_rates import described, hits, with_names
from gating.analysis.pairs import pairs
from gating.analysis.reading import read_group
from gating.errors import GatingError, choices


def contrast(
    run: xr.DataTree,
    baseline: str = "baseline",
    label: str = "refusal",
    harmful: bool | None = None,
    level: float = 0.95,
    holm: bool = False,
    judge: str | None = None,
) -> xr.Dataset:
    """Every condition against `baseline` on the same prompts: difference of rates, low, high (Newcombe's method 10),
    p (exact McNemar), b and c (pairs where only the condition, only the baseline has the label), n pairs.

    A pair counts where both answers are present. holm: also p_holm, adjusted for the family of all contrasts in the
    result (the baseline against itself is not one, and is NaN). harmful: of harmful (True) or harmless (False) prompts
    alone. judge: whose labels, as in `refusal_rate`. Raises GatingError for a baseline or judge that the run does not
    have, and where harmful is left out of a run that asked both.
    """
    run = with_judge(run, judge)
    hit, present = (x.transpose(..., "prompt") for x in hits(run, label, harmful))
    names = hit["condition"].values.tolist()
    if baseline not in names:
        raise GatingError(f"baseline={baseline!r} is not a condition of this run: use {choices(names, baseline)}.")
    base, base_present = (
        x.sel(condition=baseline, drop=True).broadcast_like(x).transpose(*x.dims) for x in (hit, present)
    )
    found, like = pairs(hit.values, base.values, (present & base_present).values, level), hit.any("prompt")
    ds = xr.Dataset(
        {name: (like.dims, values) for name, values in found._asdict().items()},
        coords=like.coords,
        attrs={"baseline": baseline, "label": label, "interval": f"Newcombe method 10, {level:.0%}"},
    )
    ds = with_names(ds, {
        "difference": ("difference of rates, condition - baseline", "1"), "low": ("lower end of its interval", "1"),
        "high": ("upper end of its interval", "1"), "p": ("exact McNemar p", "1"),
        "b": ("pairs where only the condition has the label", "pair"),
        "c": ("pairs where only the baseline has the label", "pair"), "n": ("pairs", "pair"),
    })  # fmt: skip
    if holm:
        ds["p_holm"] = (like.dims, stats.holm(ds["p"].where(ds["condition"] != baseline).values))
    return described(run, ds)


def draws(run: xr.DataTree) -> list[str]:
    """How the random directions of a run were drawn, in order."""
    drawn = read_group(run, "conditions")["draw"].values.ravel().tolist()
    return [d for d in dict.fromkeys(drawn) if d]


def random_null(
    run: xr.DataTree,
    label: str = "refusal",
    harmful: bool | None = None,
    draw: str | None = None,
    judge: str | None = None,
) -> xr.Dataset:
    """Each steered condition against its own grid point's random controls, those of one `draw` (the first that the run
    has): its change from the baseline, theirs (null_low to null_high), and p = (1 + number of controls that change at
    least as much, either way) / (K + 1), with K as `k`. NaN and k = 0 where a condition has no controls, or a joined
    run no such condition."""
    draw = draw or next(iter(draws(run)), "isotropic")
    effect = contrast(run, label=label, harmful=harmful, judge=judge)["difference"].transpose(..., "condition")
    conditions = read_group(run, "conditions")
    kind, grid, drawn = (conditions[c].broadcast_like(effect).transpose(*effect.dims) for c in ("kind", "grid", "draw"))
    steered, fields = kind.values == "steered", ("difference", "null_low", "null_high", "p")
    out = {f: np.full(effect.shape, np.nan) for f in fields} | {"k": np.zeros(effect.shape, dtype="int64")}
    for at in zip(*np.nonzero(steered & np.isfinite(effect.values)), strict=True):
        run_at = at[:-1]  # the place in a joined multirun; () for a single run
        own = (drawn.values[run_at] == draw) & (grid.values[run_at] == grid.values[at])
        null, observed = effect.values[run_at][own & np.isfinite(effect.values[run_at])], effect.values[at]
        out["difference"][at], out["k"][at] = observed, null.size
        if null.size:
            out["null_low"][at], out["null_high"][at] = null.min(), null.max()
            out["p"][at] = stats.permutation_p(abs(observed), np.abs(null))
    ds = xr.Dataset({f: (effect.dims, v) for f, v in out.items()}, coords=effect.coords, attrs={"draw": draw})
    return ds.isel(condition=steered.any(axis=tuple(range(steered.ndim - 1))))


class Controlled(NamedTuple):
    """A condition and its random controls of one kind."""

    name: str
    draw: str
    controls: list[str]


def controlled(run: xr.DataTree) -> list[Controlled]:
    """Each steered or named condition with its random controls, those of each kind by themselves: those that were drawn
    for it; else those that do just what it does but for a random direction. Controls of no condition stand under the
    name that they share, `NAME (random)`."""
    conditions = read_group(run, "conditions")
    names, kinds, grids, drawn_as = (conditions[c].values.tolist() for c in ("condition", "kind", "grid", "draw"))
    nulls: dict[tuple[int, str], list[int]] = {}
    for i, kind in enumerate(kinds):
        if kind == "random":
            nulls.setdefault((grids[i], drawn_as[i]), []).append(i)
    candidates = [i for i, kind in enumerate(kinds) if kind in ("steered", "named")]
    columns = {str(c): v.values for c, v in conditions.items()}
    out = []
    for (_, draw), null in nulls.items():
        controls, drawn = str(columns["controls"][null[0]]), [names[i] for i in null]
        alike = [] if controls else [names[i] for i in candidates if _same_but_random(columns, i, null[0])]
        shared = f"{columns['family'][null[0]]} (random)"
        out += [Controlled(name, draw, drawn) for name in ([controls] if controls else alike or [shared])]
    return out


def against_random(run: xr.DataTree, label: str = "refusal", harmful: bool | None = None) -> xr.Dataset:
    """Each line of `controlled` against the mean of its random controls on the same prompts, along `line` (with the
    coordinates condition and draw): difference of rates, low and high (`stats.mean_of`: over prompts, not over the
    choice of directions), n prompts that have an answer under all of them, k controls. NaN below two prompts. Lines
    whose condition is not in the run (controls of none) are left out."""
    hit, present = (x.transpose("condition", "prompt") for x in hits(run, label, harmful))
    category = read_group(run, "prompts")["category"].sel(prompt=hit["prompt"].values).values
    place = {name: i for i, name in enumerate(hit["condition"].values.tolist())}
    lines = [line for line in controlled(run) if line.name in place]
    found = np.full((len(lines), 3), np.nan)
    n = np.zeros(len(lines), dtype="int64")
    for i, line in enumerate(lines):
        own, null = place[line.name], [place[c] for c in line.controls]
        counted = present.values[[own, *null]].all(0)
        n[i] = counted.sum()
        if n[i] >= 2:
            d = hit.values[own].astype("float64") - hit.values[null].mean(0)
            mean = stats.mean_of(d[counted], category[counted])
            found[i] = mean.estimate, *mean.interval()
    columns = {"difference": found[:, 0], "low": found[:, 1], "high": found[:, 2], "n": n}
    columns["k"] = np.array([len(line.controls) for line in lines], dtype="int64")
    at = {c: ("line", np.array([getattr(line, f) for line in lines], dtype=str)) for c, f in
          (("condition", "name"), ("draw", "draw"))}  # fmt: skip
    return xr.Dataset({c: ("line", v) for c, v in columns.items()}, at, {"label": label})


def _same_but_random(columns: dict[str, np.ndarray], own: int, control: int) -> bool:
    """Whether two conditions differ in nothing but the directions that are random in the control: the same operations
    at the same blocks and strengths on the same tokens under the same system message. columns: of /conditions."""
    if columns["system"][own] != columns["system"][control]:
        return False
    a, b = ({c: v[i] for c, v in columns.items() if c.startswith("iv_")} for i in (own, control))
    slots = range(len(b["iv_seed"]))
    return bool((b["iv_seed"] >= 0).any()) and all(_same_intervention(a, b, slot) for slot in slots)


def _same_intervention(own: dict[str, np.ndarray], control: dict[str, np.ndarray], slot: int) -> bool:
    """Whether the interventions in this place are the same, apart from a direction that is random in the control."""
    fixed = ["iv_op", "iv_scope", "iv_coef", "iv_written", "iv_reference"]
    if control["iv_seed"][slot] < 0:
        fixed += ["iv_direction", "iv_norm", "iv_read"]
    elif own["iv_seed"][slot] >= 0:
        return False
    elif control["iv_op"][slot] == "add":
        fixed += ["iv_norm"]  # a projection has no length to set
    return all(_equal(own[c][slot], control[c][slot]) for c in fixed)


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal values, a missing number equal to another."""
    return bool(np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f"))
