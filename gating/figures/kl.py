"""Refusal against what a condition costs: first-token KL on prompts that it should leave alone."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gating import analysis
from gating.analysis.sites import GARBLED
from gating.analysis.wording import interval
from gating.figures import grids
from gating.figures.base import (
    KIND_COLOURS,
    LABEL_COLOURS,
    PLAIN,
    Look,
    Picture,
    left_out,
    legend,
    reach,
    series,
    styled,
    which,
)

MOST = 18  # lines of the legend


def groups(run: xr.DataTree) -> dict[str, list[str]]:
    """The conditions that share a colour, by what the legend calls them: the doses of a setting of the grid, in order;
    the settings of a named family; any other condition by itself."""
    conditions, shown = analysis.read_group(run, "conditions"), analysis.shown_names(run)
    steered = grids.steered(run)
    out: dict[str, list[str]] = {}
    for setting, part in grids.settings(steered, grids.varying(steered, besides=("coef",))):
        at = grids.names(part.sortby("coef"))
        name = grids.title(setting) or ("steered" if len(at) > 1 else shown[at[0]])
        out[name] = at
    for kind in ("reversed", "named"):
        of_kind = conditions.isel(condition=conditions["kind"].values == kind)
        families = of_kind["family"].values.tolist()
        for name, family in zip(grids.names(of_kind), families, strict=True):
            many = families.count(family) > 1
            text = f"{family}{'-reversed' if kind == 'reversed' else ''} ({families.count(family)} settings)"
            out.setdefault(text if many else shown[name], []).append(name)
    return out


@styled
def scatter(run: xr.DataTree, harmful: bool | None) -> Figure:
    """Refusal of every condition with its Wilson interval against its mean first-token KL to the baseline; doses of one
    setting are joined, a cross marks many degenerate answers."""
    flag = analysis.undisturbed(run)
    kl = analysis.strengths(run, flag)["kl"]
    r = analysis.rates(run, harmful=harmful)
    figure = Figure(figsize=(7.5, 5.6))
    ax = figure.add_subplot()
    base = r.sel(condition="baseline", label="refusal")
    ax.axhspan(100 * float(base["low"]), 100 * float(base["high"]), color="#000000", alpha=0.08, lw=0)
    random = analysis.conditions_of_kind(run, ("random",))
    if random:
        ax.plot(kl.sel(condition=random), 100 * r["rate"].sel(condition=random, label="refusal"), ".",
                color=KIND_COLOURS["random"], ms=5, label="random directions", zorder=1)  # fmt: skip
    steered = set(analysis.conditions_of_kind(run, ("steered",)))
    _points(ax, kl, r, ["baseline"], PLAIN, "baseline", False)
    for i, (text, names) in enumerate(list(groups(run).items())[:MOST]):
        _points(ax, kl, r, names, series(i), text, steered.issuperset(names))
    ax.plot([], [], "x", color=LABEL_COLOURS["degenerate"], ms=10, mew=1.4,
            label=f"{100 * GARBLED:.0f}% degenerate or more")  # fmt: skip
    ax.set_ylim(-3, 103)
    ax.set_ylabel(f"refusal, % of {which(harmful)} prompts")
    ax.set_xlabel(f"first-token KL to the baseline, nats, mean over {which(flag)} prompts")
    return legend(figure, 3)


def _points(ax: Axes, kl: xr.DataArray, r: xr.Dataset, names: list[str], look: Look, text: str, joined: bool) -> None:
    """A group's points. joined: as the doses of one setting."""
    x, of_names = kl.sel(condition=names).values, r.sel(condition=names)
    rate, ends = reach(of_names.sel(label="refusal"))
    style = look["ls"] if joined and len(names) > 1 else ""
    ax.errorbar(x, rate, yerr=ends, color=look["color"], marker=look["marker"], ls=style, ms=6, lw=1.2,
                elinewidth=0.7, label=text)  # fmt: skip
    garbled = of_names["rate"].sel(label="degenerate").values >= GARBLED
    if garbled.any():
        ax.plot(x[garbled], rate[garbled], "x", color=LABEL_COLOURS["degenerate"], ms=12, mew=1.4, zorder=1.5,
                label=f"_{text}, degenerate")  # fmt: skip


def in_words(run: xr.DataTree, harmful: bool | None) -> str:
    """Each group's KL and refusal."""
    kl = analysis.strengths(run, analysis.undisturbed(run))["kl"]
    r = analysis.refusal_rate(run, harmful=harmful)
    return "; ".join(
        f"{text}: " + ", ".join(f"{float(kl.sel(condition=n)):.2f} nats {interval(r.sel(condition=n))}" for n in names)
        for text, names in list(groups(run).items())[:MOST]
    )


def has_kl(run: xr.DataTree) -> bool:
    """Whether KL was kept and a condition is there to draw."""
    kept = analysis.strengths(run, analysis.undisturbed(run)) if groups(run) else xr.Dataset()
    return "kl" in kept and bool(np.isfinite(kept["kl"]).any())


FIGURES = (
    Picture(
        "outcomes",
        "method.md",
        "kl",
        has_kl,
        scatter,
        lambda run, harmful: f"Refusal against first-token KL: {in_words(run, harmful)}.",
        lambda run: (
            "What refusal costs. First-token KL on prompts that a condition should leave alone makes doses of "
            "different blocks, directions and operations comparable: lower at the same KL is more specific. "
            "The band is the baseline's interval." + left_out(len(groups(run)), MOST, "settings")
        ),
    ),
)
