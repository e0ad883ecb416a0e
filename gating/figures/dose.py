"""Dose response: rates against one axis of the grid, and which axes are worth a picture."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from gating import analysis
from gating.figures.base import SHADES, STYLES, which
from gating.interventions import AXES


def varied(run: xr.DataTree) -> list[str]:
    """Settings of which the steered conditions have more than two values: the axes worth a dose-response picture."""
    about = analysis.group(run, "conditions")
    steered = about.isel(condition=(about["kind"] == "steered").values)
    return [a for a in AXES if len(set(steered[a].values.tolist())) > 2]


def dose(run: xr.DataTree, axis: str, harmful: bool | None) -> Figure:
    """Refusal and degenerate rates against one axis: a line for each setting of the other axes, the random controls in
    grey, the baseline as a dashed line."""
    r = analysis.rates(run, harmful=harmful)
    kinds = r["kind"].values
    figure = Figure(figsize=(7.5, 6.2), layout="constrained", dpi=150)
    numeric = r[axis].dtype.kind in "fi"
    values = sorted(set(r[axis].values[kinds == "steered"].tolist()), key=lambda v: v if numeric else _window(v))
    place = {v: v if numeric else i for i, v in enumerate(values)}
    others = [a for a in AXES if a != axis and len(set(r[a].values[kinds == "steered"].tolist())) > 1]
    for ax, label in zip(
        figure.subplots(2, 1, sharex=True, height_ratios=[3, 2]), ("refusal", "degenerate"), strict=True
    ):
        one = r.sel(label=label)
        ax.axhline(100 * float(one["rate"].sel(condition="baseline")), color="#000000", ls="--", lw=1, label="baseline")
        rand = one.isel(condition=kinds == "random")
        ax.plot(
            [place[v] for v in rand[axis].values.tolist()],
            100 * rand["rate"].values,
            ".",
            color="#8C8C8C",
            label="random directions",
            zorder=4,
        )
        steered = one.isel(condition=kinds == "steered")
        groups = list(dict.fromkeys(zip(*(steered[a].values.tolist() for a in others), strict=True))) or [()]
        for i, group in enumerate(groups):
            keep = np.ones(steered.sizes["condition"], dtype=bool)
            for a, v in zip(others, group, strict=True):
                keep &= steered[a].values == v
            line = steered.isel(condition=keep)
            x, colour = np.array([place[v] for v in line[axis].values.tolist()]), SHADES[i % len(SHADES)]
            order = np.argsort(x)
            name = (
                ", ".join(
                    f"{a} {v:g}" if isinstance(v, float) else f"{a} {v}" for a, v in zip(others, group, strict=True)
                )
                or "steered"
            )
            ax.plot(
                x[order],
                100 * line["rate"].values[order],
                STYLES[i // len(SHADES) % len(STYLES)],
                marker="o",
                color=colour,
                label=name,
            )
            ax.fill_between(
                x[order],
                100 * line["low"].values[order],
                100 * line["high"].values[order],
                color=colour,
                alpha=0.15,
                lw=0,
            )
        ax.set_ylim(-3, 103)
        ax.set_ylabel(f"{label}, %")
        ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlabel(f"steer.{axis} ({which(harmful)} prompts; bands are 95% Wilson intervals)")
    ax.set_xticks([place[v] for v in values], [f"{v:g}" if numeric else str(v) for v in values])
    handles, names = ax.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False, fontsize="small")
    return figure


def _window(text: str) -> tuple[float, str]:
    head = text.replace("+", "-").split("-")[0]
    return (float(head) if head.replace(".", "", 1).isdigit() else np.inf, text)
