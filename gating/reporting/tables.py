"""A run's numbers as text: rates, differences and verdicts, as rows for a page and as tables for a terminal."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from rich import box
from rich.table import Table
from rich.text import Text

from gating import analysis
from gating.analysis import claims
from gating.judging.labels import LABELS

FOLD = 5  # random controls of a place: more of them share a line


def headline_set(run: xr.DataTree) -> bool:
    """Which prompts the headline counts: the harmful ones where there are any, else the harmless ones."""
    return bool(analysis.group(run, "prompts")["harmful"].any())


def asks_both(run: xr.DataTree) -> bool:
    """Whether the run asked harmful and harmless prompts."""
    harmful = analysis.group(run, "prompts")["harmful"]
    return bool(harmful.any() and not harmful.all())


def rows(run: xr.DataTree, harmful: bool | None, digits: int = 0) -> list[dict[str, Any]]:
    """One row a condition, as text: n, rates with intervals, the paired difference to the baseline, p and p adjusted for
    all conditions (Holm), the mean first-token score; `point` is its place in the grid (its name's brackets)."""
    r, effect = analysis.rates(run, harmful=harmful), analysis.contrast(run, harmful=harmful, holm=True)
    score = analysis.group(run, "outcomes")["refusal_score"].isel(prompt=analysis.asked(run, harmful)).mean("prompt")
    change, kl = _known(run, "change", None), _known(run, "kl", analysis.undisturbed(run))
    out = []
    for name in r["condition"].values.tolist():
        one, e, mean = r.sel(condition=name), effect.sel(condition=name), float(score.sel(condition=name))
        base = name == "baseline"
        out.append({
            "name": name, "kind": str(one["kind"].item()), "n": int(one["n"].sel(label="refusal")),
            "grid": int(one["grid"]), "point": name[name.index("[") :] if name.endswith("]") and "[" in name else "",
            **{k: interval(one.sel(label=k), digits) for k in LABELS},
            "shares": {k: float(one["rate"].sel(label=k)) for k in LABELS},
            **{f"{k}_rate": percent(one["rate"].sel(label=k), digits) for k in LABELS},
            "difference": "" if base else points(e, digits), "p": "" if base else p_value(float(e["p"])),
            "p_holm": "" if base else p_value(float(e["p_holm"])), "score": "missing" if np.isnan(mean) else f"{mean:.2f}",
            "change": f"{change[name]:.2f}" if name in change else "", "kl": f"{kl[name]:.2f}" if name in kl else "",
        })  # fmt: skip
    return out


def _known(run: xr.DataTree, strength: str, harmful: bool | None) -> dict[str, float]:
    """One strength of each condition that has it."""
    held = analysis.strengths(run, harmful)
    return held[strength].to_series().dropna().to_dict() if strength in held else {}


def folded(lines: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """The rows with the random controls of a place as one, where they are more than `most`: how many, and the range of
    their rates. lines: from `rows`."""
    out: list[dict[str, Any]] = []
    for (grid, stem), group in itertools.groupby(lines, place):
        some = list(group)
        if some[0]["kind"] != "random" or len(some) <= most:
            out += some
            continue
        both = {k: _range([r["shares"][k] for r in some]) for k in LABELS}
        out.append({
            **dict.fromkeys(some[0], ""), "name": f"{stem}-random ({len(some)} directions){some[0]['point']}", "kind": "random",
            "grid": grid, "point": some[0]["point"], "n": some[0]["n"], **both, **{f"{k}_rate": both[k] for k in LABELS},
        })  # fmt: skip
    return out


def place(row: dict[str, Any]) -> tuple[int, str]:
    """A row's place in the grid, and the name that the random controls there share (empty for other conditions)."""
    return row["grid"], row["name"].partition("-random-")[0] if row["kind"] == "random" else ""


def _range(shares: list[float]) -> str:
    known = [s for s in shares if not np.isnan(s)]
    if not known:
        return "missing"
    low, high = percent(min(known)), percent(max(known))
    return low if low == high else f"{low} to {high}"


def percent(value: Any, digits: int = 0) -> str:
    """A share as text; one that is not quite 0 or 1 is never rounded to 0% or 100%."""
    share = float(value)
    if np.isnan(share):
        return "missing"
    least = 10.0**-digits
    if share > 0 and round(100 * share, digits) == 0:
        return f"<{least:.{digits}f}%"
    if share < 1 and round(100 * share, digits) == 100:
        return f">{100 - least:.{digits}f}%"
    return f"{100 * share:.{digits}f}%"


def interval(one: xr.Dataset, digits: int = 0) -> str:
    if int(one["n"]) == 0:
        return "missing"
    low, high = (f"{100 * float(one[v]):.{digits}f}" for v in ("low", "high"))
    return f"{percent(one['rate'], digits)} [{low}, {high}]"


def points(e: xr.Dataset, digits: int = 0) -> str:
    if int(e["n"]) == 0:
        return "missing"
    d, low, high = (signed(float(e[v]), digits) for v in ("difference", "low", "high"))
    return f"{d} [{low}, {high}]"


def signed(share: float, digits: int = 0) -> str:
    return _plain(100 * share, digits)


def p_value(p: float) -> str:
    return "missing" if np.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def table(run: xr.DataTree) -> Table:
    """The refusal table for a terminal; a last column for harmless prompts where the run asked both. A point of a grid
    is a line of its own, the end of the names below it."""
    harmful = headline_set(run)
    other = {r["name"]: r["refusal"] for r in folded(rows(run, False), FOLD)} if asks_both(run) else {}
    out = Table(
        title=f"{'harmful' if harmful else 'harmless'} prompts",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    lines = folded(rows(run, harmful), FOLD)
    names = max(len(r["name"]) - len(r["point"]) for r in lines)
    out.add_column("condition", overflow="fold", no_wrap=names <= 24)
    for column in (
        "n",
        "refusal",
        "complied",
        "evasive",
        "degen.",
        "vs baseline",
        "p",
        *(["harmless refusal"] if other else []),
    ):
        out.add_column(column, justify="right", overflow="fold")  # a narrow terminal wraps cells and cuts nothing
    last = ""
    for r in lines:
        if r["point"] and r["point"] != last:
            out.add_section()
            out.add_row(Text(r["point"][1:-1], style="italic"))
        last = r["point"]
        cells = [str(r["n"]), r["refusal"], *(r[f"{k}_rate"] for k in LABELS[1:]), r["difference"], r["p"]]
        style = {"random": "dim", "steered": "bold"}.get(r["kind"])
        cells = [r["name"].removesuffix(r["point"]), *cells, *([other[r["name"]]] if other else [])]
        out.add_row(*map(Text, cells), style=style)  # Text: a condition's name may hold brackets, which rich would eat
    return out


def own_claims(run: xr.DataTree) -> dict[str, Any]:
    """The family of claims that the run was begun with; empty where there was none."""
    return json.loads(run.attrs.get("claims", "{}"))


def verdict_rows(found: xr.Dataset, family: dict[str, Any]) -> list[dict[str, str]]:
    """One row a claim, as text; a contrast of labels in points, one of a measure in its own units."""
    out = []
    for name in found["claim"].values.tolist():
        one, measure = found.sel(claim=name), family["claims"][name].get("measure")
        scale, digits = (1, 2) if measure else (100, 0)
        estimate, low, high, least, most = (
            _plain(scale * float(one[k]), digits) for k in ("estimate", "low", "high", "boot_low", "boot_high")
        )
        p, n = float(one["p_holm"]), int(one["n"])
        out.append({
            "name": name, "says": str(one["says"].item()), "n": str(n), "margin": f"{scale * float(one['margin']):g}",
            "unit": str(measure or "points"), "contrast": f"{estimate} [{low}, {high}]" if n else "missing",
            "bootstrap": f"[{least}, {most}]" if np.isfinite(float(one["boot_low"])) else "",
            "p": p_value(p), "verdict": str(one["verdict"].item()), "reason": str(one["reason"].item()),
            "test": str(one["test"].item()), "paper": str(one["paper"].item()), "k": str(int(one["k"]) or ""),
        })  # fmt: skip
    return out


def _plain(value: float, digits: int) -> str:
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"


def verdicts(run: xr.DataTree) -> list[Table]:
    """The run's claims as a table for a terminal; none where it was begun without claims."""
    family = own_claims(run)
    if not family:
        return []
    return [verdict_table([("", verdict_rows(claims.evaluate(run, family), family))], family["family"])]


def verdict_table(sections: Sequence[tuple[str, list[dict[str, str]]]], title: str) -> Table:
    """Claims for a terminal, a section with a heading for each run where there are several. sections: (heading, rows from
    `verdict_rows`)."""
    out = Table(title=f"claims: {title}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column, how in (("claim", "left"), ("contrast", "right"), ("margin", "right"), ("p (Holm)", "right"), ("n", "right"),
                        ("verdict", "left")):  # fmt: skip
        out.add_column(column, justify=how, overflow="fold")  # type: ignore[arg-type]
    colour = {"supported": "green", "refuted": "red", "undecided": "yellow", "missing": "dim"}
    for heading, lines in sections:
        if len(sections) > 1:
            out.add_section()
            out.add_row(Text(heading, style="italic"))
        for r in lines:
            verdict = Text(r["verdict"], style=colour[r["verdict"]])
            if r["reason"]:
                verdict.append(f": {r['reason']}", style="default")
            unit = "" if r["unit"] == "points" else f" {r['unit']}"
            out.add_row(*map(Text, (r["says"], r["contrast"] + unit, r["margin"], r["p"], r["n"])), verdict)
    return out
