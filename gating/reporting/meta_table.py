"""Several models in one table for a terminal: each claim's mean over models, its heterogeneity, and every model."""

from __future__ import annotations

import math

import xarray as xr
from rich import box
from rich.table import Table
from rich.text import Text

from gating.analysis.wording import MISSING, p_value, percent, plus_minus
from gating.foreign import cell
from gating.reporting.tables import COLOURS

UNTOLD = "no verdict over models"


def meta_table(ds: xr.Dataset) -> Table:
    """ds: of gating.analysis.meta.combine, judged or not."""
    said = f"{ds.attrs['family']}{', post hoc: named after the runs' if ds.attrs.get('post_hoc') else ''}"
    out = Table(title=cell(f"{ds.sizes['model']} models: {said}"), title_justify="left", box=box.SIMPLE_HEAD)
    out.add_column("claim, model", overflow="fold")
    for column in ("contrast", "next model", "sd between", "I²", "p (Holm)", "n"):
        out.add_column(column, justify="right", overflow="fold")
    out.add_column("verdict", overflow="fold")
    for name in ds["claim"].values.tolist():
        claim = ds.sel(claim=name)
        out.add_section()
        out.add_row(*_over_models(claim))
        for model in ds["model"].values.tolist():
            out.add_row(*_of_model(claim.sel(model=model), model), style="dim")
    if ds.attrs.get("sites"):
        out.caption = cell(f"The models' own sites: {'; '.join(str(ds.attrs['sites']).splitlines())}")
    return out


def _over_models(claim: xr.Dataset) -> list[Text]:
    scale, digits = _scale(claim)
    sd = math.sqrt(float(claim["tau2"])) if claim["k"] > 1 else math.nan
    judged = "verdict" in claim
    verdict = str(claim["verdict"].item()) or UNTOLD if judged else ""
    margin = f", margin {scale * float(claim['margin']):g}" if judged else ""
    words = (
        str(claim["says"].item()) + margin, _range(claim, "estimate", "low", "high"),
        _ends(claim, "predict_low", "predict_high"), MISSING if math.isnan(sd) else f"{scale * sd:.{digits}f}",
        MISSING if math.isnan(sd) else percent(claim["i2"]), p_value(float(claim["p_holm"])) if judged else "",
        f"{int(claim['k'])} models",
    )  # fmt: skip
    return [*map(cell, words), Text(verdict, style=COLOURS.get(verdict, "dim"))]


def _of_model(of: xr.Dataset, model: str) -> list[Text]:
    counted = math.isfinite(float(of["effect_se"]))
    left_out = "" if counted else f"left out: {of['reason'].item() or 'its values do not vary'}"
    words = (f"  {model}", _range(of, "effect", "effect_low", "effect_high"), "", "", "", "", str(int(of["n"])))
    return [*map(cell, words), cell(left_out or (str(of["found"].item()) if "verdict" in of else ""))]


def _scale(of: xr.Dataset) -> tuple[int, int]:
    return (100, 0) if of["unit"].item() == "points" else (1, 2)


def _range(of: xr.Dataset, middle: str, low: str, high: str) -> str:
    if math.isnan(float(of[middle])):
        return MISSING
    scale, digits = _scale(of)
    return f"{plus_minus(scale * float(of[middle]), digits)} {_ends(of, low, high)}"


def _ends(of: xr.Dataset, low: str, high: str) -> str:
    if math.isnan(float(of[low])):
        return ""
    scale, digits = _scale(of)
    return "[{}, {}]".format(*(plus_minus(scale * float(of[end]), digits) for end in (low, high)))
