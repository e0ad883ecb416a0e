"""What steering does inside: projections over blocks and over tokens, the refusal score by block, strength."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gating import analysis
from gating.figures.base import SHADES, STYLES, which

MOST = 8  # conditions in one picture; the others are in the store


def shown(run: xr.DataTree) -> list[str]:
    """The baseline and the first conditions that are no controls."""
    about = analysis.group(run, "conditions")
    names = about["condition"].values[about["kind"].values != "random"].tolist()
    return names[:MOST]


def _readouts(run: xr.DataTree, harmful: bool | None) -> xr.Dataset:
    flags = analysis.group(run, "prompts")["harmful"].values
    keep = np.ones(flags.size, dtype=bool) if harmful is None else flags == harmful
    return analysis.group(run, "readouts").isel(prompt=keep)


def _line(ax: Axes, x: np.ndarray, values: xr.DataArray, i: int, name: str) -> None:
    """Mean over prompts with a band of 1.96 standard errors; places without any prompt are left out."""
    v = values.transpose("prompt", ...).values
    n = np.isfinite(v).sum(0)
    fine = n > 0
    mean = np.nanmean(v[:, fine], axis=0)
    reach = 1.96 * np.nanstd(v[:, fine], axis=0) / np.sqrt(n[fine])
    colour, style = (
        ("#000000", "-") if i == 0 else (SHADES[(i - 1) % len(SHADES)], STYLES[(i - 1) // len(SHADES) % len(STYLES)])
    )
    ax.plot(x[fine], mean, style, color=colour, label=name, lw=1.6)
    ax.fill_between(x[fine], mean - reach, mean + reach, color=colour, alpha=0.15, lw=0)
    _whole(ax)


def over_blocks(run: xr.DataTree, harmful: bool | None) -> Figure:
    """Projection on each of the first directions at every block, last prompt token, per condition."""
    read = _readouts(run, harmful)["projection"]
    directions = _two(read)
    made = Figure(figsize=(10.5, 4.2), layout="constrained", dpi=150)
    for ax, d in zip(np.atleast_1d(made.subplots(1, len(directions))), directions, strict=True):
        for i, name in enumerate(shown(run)):
            _line(ax, read["layer"].values, read.sel(condition=name, direction=d), i, name)
        ax.set_xlabel("block")
        ax.set_title(f"projection on {d}, last prompt token", fontsize="medium", loc="left")
    return _legend(made)


def by_harm(run: xr.DataTree) -> Figure:
    """Where harmful and harmless prompts lie on each direction at baseline: mean and one standard deviation by block."""
    read = analysis.group(run, "readouts")["projection"].sel(condition="baseline")
    flags = analysis.group(run, "prompts")["harmful"].values
    names = read["direction"].values.tolist()[:MOST]
    columns = min(4, len(names))
    made = Figure(figsize=(3.4 * columns, 3.0 * -(-len(names) // columns)), layout="constrained", dpi=150)
    axes = list(made.subplots(-(-len(names) // columns), columns, squeeze=False).flat)
    for ax in axes[len(names) :]:
        ax.set_visible(False)
    for name, ax in zip(names, axes, strict=False):
        for which_, colour, style in ((True, SHADES[0], "-"), (False, SHADES[1], "--")):
            v = read.sel(direction=name).transpose("prompt", "layer").values[flags == which_]
            mean, sd = np.nanmean(v, axis=0), np.nanstd(v, axis=0)
            ax.plot(read["layer"].values, mean, style, color=colour, label="harmful" if which_ else "harmless")
            ax.fill_between(read["layer"].values, mean - sd, mean + sd, color=colour, alpha=0.15, lw=0)
        ax.set_title(f"projection on {name}", fontsize="medium", loc="left")
        ax.set_xlabel("block")
        _whole(ax)
    return _legend(made)


def _whole(ax: Axes) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)


def _two(read: xr.DataArray) -> list[str]:
    """The first direction and refusal."""
    names = read["direction"].values.tolist()
    return list(dict.fromkeys([names[0], "refusal" if "refusal" in names else names[-1]]))


def over_tokens(run: xr.DataTree, harmful: bool | None) -> Figure:
    """Projection at each generated token, at a block two thirds up, per condition."""
    read = _readouts(run, harmful)["step_projection"]
    layer = int(read["layer"].values[int(0.7 * read.sizes["layer"])])
    directions = _two(read)
    made = Figure(figsize=(10.5, 4.2), layout="constrained", dpi=150)
    for ax, d in zip(np.atleast_1d(made.subplots(1, len(directions))), directions, strict=True):
        for i, name in enumerate(shown(run)):
            _line(ax, np.arange(read.sizes["step"]), read.sel(condition=name, direction=d, layer=layer), i, name)
        ax.set_xlabel("token (0 is the last of the prompt)")
        ax.set_title(f"projection on {d}, block {layer}", fontsize="medium", loc="left")
    return _legend(made)


def lens(run: xr.DataTree, harmful: bool | None) -> Figure:
    """The refusal score that the residual stream carries at each block (logit lens), per condition."""
    read = _readouts(run, harmful)["lens_score"]
    made = Figure(figsize=(7.5, 4.2), layout="constrained", dpi=150)
    ax = made.add_subplot()
    ax.axhline(0, color="#999999", lw=0.8)
    for i, name in enumerate(shown(run)):
        _line(ax, read["layer"].values, read.sel(condition=name), i, name)
    ax.set_xlabel("block")
    ax.set_ylabel("refusal log-odds, nats")
    return _legend(made)


def _legend(made: Figure) -> Figure:
    handles, names = made.axes[0].get_legend_handles_labels()
    made.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    return made


def strength(run: xr.DataTree) -> Figure:
    """How hard each condition pushes, in units that compare: the relative change at its blocks, and the first-token KL on
    harmless prompts (on all where none was asked)."""
    flags = analysis.group(run, "prompts")["harmful"].values
    harmless = None if flags.all() else False
    read = _readouts(run, harmless)
    about = analysis.group(run, "conditions")
    names = (
        about["condition"]
        .values[(about["kind"].values != "random") & (about["kind"].values != "baseline")]
        .tolist()[:40]
    )
    made = Figure(figsize=(9.5, 1.4 + 0.28 * len(names)), layout="constrained", dpi=150)
    left, right = made.subplots(1, 2, sharey=True)
    y = np.arange(len(names))
    change = read["relative_change"].max("layer").mean("prompt").sel(condition=names)
    left.barh(y, change, color=SHADES[1])
    left.set_xlabel("|added| / |h| at the last prompt token,\nlargest over blocks")
    right.barh(y, read["kl"].mean("prompt").sel(condition=names), color=SHADES[0], hatch="//", edgecolor="white")
    right.set_xlabel(f"first-token KL to baseline, nats\n({which(harmless)} prompts)")
    left.set_yticks(y, names)
    left.set_ylim(len(names) - 0.4, -0.6)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    return made
