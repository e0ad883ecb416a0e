"""What steering does inside: projections over blocks and over tokens, the refusal score by block, strength."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gating import analysis
from gating.figures.base import SHADES, blocks, conditions, legend, series, which

MOST = 12  # conditions in one picture
PANELS = 4  # directions in one picture
BARS = 40  # conditions in the picture of strengths
KINDS = ("baseline", "steered", "reversed", "named")


def shown(run: xr.DataTree) -> list[str]:
    """The baseline and the first conditions that are no controls."""
    return conditions(run, KINDS)[:MOST]


def readout(run: xr.DataTree, name: str, harmful: bool | None) -> xr.DataArray:
    """One readout of the prompts asked for, not loaded yet: step_projection of a large run is best cut first."""
    return run["/readouts"].to_dataset()[name].isel(prompt=analysis.asked(run, harmful))


def mean_band(values: xr.DataArray, along: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over prompts at each place of `along` and half of its 95% interval (1.96 standard errors; NaN below two
    prompts), with the places that any prompt reached."""
    v = values.transpose("prompt", along).values.astype("float64")
    n = np.isfinite(v).sum(0)
    reached = np.nonzero(n > 0)[0]
    v, n = v[:, reached], n[reached]
    mean = np.nansum(v, axis=0) / n
    spread = np.nansum((v - mean) ** 2, axis=0) / np.where(n > 1, n - 1, np.nan)
    return reached, mean, 1.96 * np.sqrt(spread / n)


def _line(ax: Axes, x: np.ndarray, values: xr.DataArray, along: str, i: int, name: str) -> None:
    reached, mean, reach = mean_band(values, along)
    every = max(1, len(x) // 6)
    look = {"color": "#000000", "ls": "-", "marker": "D"} if i == 0 else series(i - 1)
    ax.plot(x[reached], mean, **look, ms=4, markevery=(i % every, every), label=name, lw=1.4)
    ax.fill_between(x[reached], mean - reach, mean + reach, color=look["color"], alpha=0.15, lw=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)


def panelled(run: xr.DataTree) -> list[str]:
    """The directions that have a panel: refusal among the first few."""
    names = run["/readouts"].to_dataset()["direction"].values.tolist()
    first = [n for n in names if n != "refusal"][: PANELS - ("refusal" in names)]
    return [*first, *(["refusal"] if "refusal" in names else [])]


def _panels(directions: list[str]) -> tuple[Figure, list[Axes]]:
    columns = min(2, len(directions))
    rows = -(-len(directions) // columns)
    made = Figure(figsize=(5.3 * columns if columns > 1 else 7.5, 3.4 * rows + 1), layout="constrained", dpi=150)
    axes = list(made.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[len(directions) :]:
        ax.set_visible(False)
    return made, axes[: len(directions)]


def over_blocks(run: xr.DataTree, harmful: bool | None) -> Figure:
    """Projection on each of the first directions at every block, last prompt token, per condition."""
    read = readout(run, "projection", harmful).sel(condition=shown(run)).load()
    made, axes = _panels(panelled(run))
    for ax, d in zip(axes, panelled(run), strict=True):
        for i, name in enumerate(shown(run)):
            _line(ax, read["layer"].values, read.sel(condition=name, direction=d), "layer", i, name)
        ax.set_xlabel("block")
        ax.set_title(f"projection on {d}, last prompt token", fontsize="medium", loc="left")
    return legend(made)


def late_block(run: xr.DataTree, layers: np.ndarray) -> int:
    """The last block that a shown condition writes, so that every edit lies before it; where none is known, and where a
    condition writes all blocks, one seven tenths up."""
    about = analysis.group(run, "conditions").sel(condition=shown(run))
    written = [b for text in about["iv_layers"].values.flat for b in blocks(text)] if "iv_layers" in about else []
    last = max(written, default=-1)
    return last if 0 <= last < layers[-1] and last in layers else int(layers[int(0.7 * len(layers))])


def over_tokens(run: xr.DataTree, harmful: bool | None) -> Figure:
    """Projection at each generated token, at the last block that is written, per condition."""
    read = readout(run, "step_projection", harmful)
    layer = late_block(run, read["layer"].values)
    read = read.sel(condition=shown(run), layer=layer).load()
    made, axes = _panels(panelled(run))
    for ax, d in zip(axes, panelled(run), strict=True):
        for i, name in enumerate(shown(run)):
            _line(ax, np.arange(read.sizes["step"]), read.sel(condition=name, direction=d), "step", i, name)
        ax.set_xlabel("token (0 is the last of the prompt)")
        ax.set_title(f"projection on {d}, block {layer}", fontsize="medium", loc="left")
    return legend(made)


def lens(run: xr.DataTree, harmful: bool | None) -> Figure:
    """The refusal score that the residual stream carries at each block (logit lens), per condition."""
    read = readout(run, "lens_score", harmful).sel(condition=shown(run)).load()
    made = Figure(figsize=(7.5, 4.6), layout="constrained", dpi=150)
    ax = made.add_subplot()
    ax.axhline(0, color="#999999", lw=0.8)
    for i, name in enumerate(shown(run)):
        _line(ax, read["layer"].values, read.sel(condition=name), "layer", i, name)
    ax.set_xlabel("block")
    ax.set_ylabel("refusal log-odds, nats")
    return legend(made)


def ends(run: xr.DataTree, name: str, harmful: bool | None, direction: str | None = None) -> str:
    """A trace in words: each shown condition's mean at the last block."""
    read = readout(run, name, harmful).isel(layer=-1).sel(condition=shown(run))
    mean = (read.sel(direction=direction) if direction else read).load().mean("prompt")
    return "; ".join(f"{c} {float(mean.sel(condition=c)):.1f}" for c in shown(run))


def strength(run: xr.DataTree) -> Figure:
    """How hard each condition pushes, in units that compare."""
    harmless = analysis.undisturbed(run)
    found = analysis.strengths(run, harmless)
    names = conditions(run, KINDS[1:])[:BARS]
    found = found.sel(condition=names)
    width = max(9.5, 8 + 0.085 * max(map(len, names)))
    made = Figure(figsize=(width, 1.4 + 0.28 * len(names)), layout="constrained", dpi=150)
    left, right = made.subplots(1, 2, sharey=True)
    y = np.arange(len(names))
    left.barh(y, found["change"], color=SHADES[1])
    left.set_xlabel("|added| / |h| at the last prompt token,\nlargest over blocks")
    right.barh(y, found["kl"], color=SHADES[0], hatch="//", edgecolor="white")
    right.set_xlabel(f"first-token KL to baseline, nats\n({which(harmless)} prompts)")
    left.set_yticks(y, names)
    left.set_ylim(len(names) - 0.4, -0.6)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    return made


def strengths_said(run: xr.DataTree) -> str:
    """The picture of strengths in words."""
    one = analysis.strengths(run, analysis.undisturbed(run)).sel(condition=conditions(run, KINDS[1:])[:BARS])
    columns = (one[c].values.tolist() for c in ("condition", "change", "kl"))
    return "; ".join(f"{n} {a:.2f} and {b:.2f} nats" for n, a, b in zip(*columns, strict=True))
