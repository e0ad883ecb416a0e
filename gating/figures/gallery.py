"""Which pictures a run's data allow, each with a text alternative and a caption that says what is left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from gating import analysis
from gating.figures import dose, geometry, maps, nulls, prompts, rates, traces
from gating.figures.base import conditions, left_out

Picture = tuple[Figure, str, str]


def pictures(run: xr.DataTree, lines: list[dict[str, Any]], harmful: bool) -> dict[str, Picture]:
    """Every picture that the run's data allow, by file name. lines: from `tables.rows`, for the words."""
    said = "; ".join(f"{r['name']} {r['refusal']}" for r in lines if r["kind"] != "random")
    out: dict[str, Picture] = {
        "rates": (
            rates.rates(run, harmful),
            f"Refusal rate of each condition with its interval: {said}. Random controls are in the table.",
            "Refusal. The grey band is the baseline's interval; grey dots are random directions of the same norm, one a seed.",
        ),
        "labels": (
            rates.labels(run, harmful),
            "Shares of refusal, compliance, evasive and degenerate answers per condition; the numbers are in the table.",
            "What became of the answers. A degenerate answer (empty, looping, gibberish) is no compliance.",
        ),
        "categories": (
            rates.categories(run, harmful),
            "Refusal rate per category of prompt under every condition but the random controls.",
            "Refusal per category, without the random controls. Few prompts a category: wide intervals.",
        ),
    }
    for axis in dose.varied(run):
        out[f"dose_{axis}"] = (
            dose.dose(run, axis, harmful),
            f"Refusal and degenerate rates against steer.{axis}, with the baseline and the random controls; the numbers are in the table.",
            f"Dose response along steer.{axis}: a fall in refusal counts only where degenerate answers stay few."
            + left_out(len(dose.settings(run, axis)), dose.MOST, "settings"),
        )
    return out | _grids(run, harmful) | _inside(run, harmful)


def _grids(run: xr.DataTree, harmful: bool) -> dict[str, Picture]:
    out: dict[str, Picture] = {}
    if maps.has_grid(run):
        out["grid"] = (
            maps.grid(run, harmful),
            "Refusal and degenerate rates of every steered condition by block and coefficient, as numbers on a map; they are in the table too.",
            "Block by coefficient. Choose on the select split, where refusal falls and answers stay whole."
            + left_out(maps.panels(run), maps.MOST, "settings"),
        )
    if maps.has_pairs(run):
        out["pairs"] = (
            maps.pairs(run, harmful),
            f"Refusal rate by injection block and knock-out block: {maps.said(run, harmful)}.",
            "Injection block by knock-out block. A knock-out before the injection cannot undo it.",
        )
    null = analysis.controlled(run)
    if any(len(some) > 1 for _, some in null):
        out["null"] = (
            nulls.strip(run, harmful),
            f"Refusal rate of each condition beside all of its random controls: {nulls.said(run, harmful)}.",
            "Each condition against its whole random null: do random directions in its place do the same? p is for its distance, "
            "either way, from the mean of all; K directions cannot give less than 1/(K + 1)."
            + left_out(len(null), nulls.MOST),
        )
    if "directions" in run.children and run["directions"].sizes["direction"] > 1:
        out["cosines"] = (
            geometry.cosines(run),
            f"How the directions lie: {geometry.said(run)}.",
            "How the directions lie. The grey band is what isotropic vectors keep to; activations are far from isotropic, which "
            "is what directions with permuted labels (dotted, experiment=geometry) show.",
        )
    if geometry.has_traits(run):
        out["shared"] = (
            geometry.shared(run),
            f"The first principal component of the traits' directions by block: {geometry.shared_said(run)}.",
            "Do the traits share one axis? Uncentred PCA of their unit directions; refusal is not part of it.",
        )
    flags = analysis.group(run, "prompts")["harmful"].values
    if flags.any() and not flags.all() and "readouts" in run.children and "projection" in run["/readouts"].data_vars:
        out["harm"] = (
            geometry.by_harm(run),
            f"Mean projections on each direction at every block, without steering: {geometry.by_harm_said(run)}.",
            "Where harmful and harmless prompts lie on each direction at baseline; bands are one standard deviation."
            + left_out(run["/readouts"].sizes["direction"], geometry.MOST, "directions"),
        )
    return out


def _inside(run: xr.DataTree, harmful: bool) -> dict[str, Picture]:
    out: dict[str, Picture] = {}
    changed = len(conditions(run, ("steered", "named")))
    if not changed:
        return out
    if np.isfinite(analysis.group(run, "outcomes")["refusal_score"]).any():
        out["prompts"] = (
            prompts.per_prompt(run, harmful),
            f"First-token refusal score of each prompt at baseline and under a condition: {prompts.said(run, harmful)}.",
            "Prompt by prompt: above the line refusal is likelier than at baseline." + left_out(changed, prompts.MOST),
        )
    held = set(run["/readouts"].to_dataset().data_vars) if "readouts" in run.children else set()
    more = left_out(len(conditions(run, traces.KINDS)), traces.MOST)
    if {"projection", "step_projection"} & held:
        panels, many = traces.panelled(run), run["/readouts"].sizes["direction"]
        more_panels = more + left_out(many, traces.PANELS, "directions")
    if "projection" in held:
        out["blocks"] = (
            traces.over_blocks(run, harmful),
            f"Mean projection at every block, last prompt token; on {panels[-1]} at the last block: "
            f"{traces.ends(run, 'projection', harmful, panels[-1])}.",
            f"Projections over blocks: mean over prompts and its 95% band.{more_panels}",
        )
    if "step_projection" in held:
        out["tokens"] = (
            traces.over_tokens(run, harmful),
            f"Mean projection on {', '.join(panels)} at each generated token, per condition, at the last block that is written.",
            "Projections over the answer's tokens: mean over prompts and its 95% band; later ones come from the answers that are "
            f"that long.{more_panels}",
        )
    if "lens_score" in held:
        out["lens"] = (
            traces.lens(run, harmful),
            f"Refusal log-odds read off the residual stream at every block; at the last: {traces.ends(run, 'lens_score', harmful)}.",
            "Where refusal is decided: the score through the final norm and unembedding at every block (logit lens), mean over "
            f"prompts and its 95% band.{more}",
        )
    if {"kl", "relative_change"} <= held:
        out["strength"] = (
            traces.strength(run),
            f"Relative change and first-token KL of each condition: {traces.strengths_said(run)}.",
            "Strength in units that compare across blocks and directions."
            + left_out(len(conditions(run, traces.KINDS[1:])), traces.BARS),
        )
    return out
