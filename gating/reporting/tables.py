"""Tables for a terminal: refusal by condition, verdicts on claims, candidates of a refusal direction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gating import analysis
from gating.analysis import claims
from gating.foreign import cell
from gating.judging.labels import TABLE
from gating.reporting import effects
from gating.reporting.rows import Verdict, folded, headline_set, own_claims, registered, rows, shown, verdict_rows

STACKED = 120  # columns
STYLES = {"random": "dim", "steered": "bold"}
LEAST = ("unsure", "evasive", "compliance", "degenerate")  # the first to go where a terminal has no room
COLOURS = {"supported": "green", "refuted": "red", "undecided": "yellow", "not testable": "yellow", "missing": "dim"}


def _table(title: str) -> Table:
    return Table(title=cell(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)


def table(run: xr.DataTree, width: int | None = None) -> Table:
    """The refusal table for a terminal of this many columns; a last column for harmless prompts where the run asked
    both. What does not fit is left out, and named below; None leaves nothing out. A point of a grid is a line of its
    own, the end of the names below it."""
    for count in range(len(LEAST) + 1):
        made = _rates(run, LEAST[:count])
        if width is None or _wide(made) <= width:
            break
    return made


def _wide(table: Table) -> int:
    """The columns of a terminal that a table takes by itself."""
    console = Console(width=1000)
    return console.measure(table).maximum


def _rates(run: xr.DataTree, without: Sequence[str]) -> Table:
    harmful = headline_set(run)
    lines = folded(rows(run, harmful))
    harmless = {r["name"]: r["refusal"] for r in folded(rows(run, False))} if analysis.asked_both(run) else {}
    stems = [shown(r).removesuffix(f"[{r['point']}]") for r in lines]
    out = _table(f"{'harmful' if harmful else 'harmless'} prompts")
    out.add_column("condition", overflow="fold", max_width=24 if without else None)
    paper = " (B*)" if any(r["paper"] for r in lines) else ""
    given = [label for label in TABLE if label.name != "unsure" or any(r["shares"]["unsure"] > 0 for r in lines)]
    columns = [label for label in given[1:] if label.name not in without]
    headings = ("n", *(label.heading for label in given[:1] + columns), "vs\nbaseline", "p\n(Holm)")
    for column in (*headings, *([f"harmless\nrefusal{paper}"] if harmless else [])):
        out.add_column(column, justify="right", overflow="fold")  # a narrow terminal wraps cells and cuts nothing
    if left := [label.heading for label in given[1:] if label not in columns]:
        out.caption = f"No room for {', '.join(left)}: in a wider terminal, and on the run's page."
        out.caption_justify = "left"
    last = ""
    for r, stem in zip(lines, stems, strict=True):
        if r["point"] and r["point"] != last:
            out.add_section()
            out.add_row(Text(r["point"], style="italic"))
        last = r["point"]
        shares = (r["rates"][label.name] for label in columns)
        cells = [stem, str(r["n"]), r["refusal"], *shares, r["difference"], r["p_holm"]]
        cells += [harmless[r["name"]]] if harmless else []
        # Text: a condition's name may hold brackets, which rich would take for markup
        out.add_row(*map(cell, cells), style=STYLES.get(r["kind"]))
    return out


def verdicts(run: xr.DataTree, width: int | None = None) -> list[Table]:
    """The run's claims as a table for a terminal of this width; none where it was begun without claims."""
    family = own_claims(run)
    if not family:
        return []
    decided = claims.evaluate(run, family)
    title = f"{family['family']} ({registered(decided)})"
    return [verdict_table([("", verdict_rows(decided, family))], title, width)]


def verdict_table(sections: Sequence[tuple[str, Sequence[Verdict]]], title: str, width: int | None = None) -> Table:
    """Claims for a terminal, a section with a heading for each run where there are several. sections: (heading, rows
    from `verdict_rows`). In a terminal under 120 columns what is said of a claim stands below its numbers."""
    out = _table(f"claims: {title}")
    stacked = width is not None and width < STACKED
    out.add_column("claim", overflow="fold", ratio=1 if stacked else None)
    out.expand = stacked
    for column in ("contrast", "margin", "p (Holm)", "n"):
        out.add_column(column, justify="right", overflow="fold")
    out.add_column("verdict", overflow="fold")
    for heading, lines in sections:
        if len(sections) > 1:
            out.add_section()
            out.add_row(Text(heading, style="italic"))
        for r in lines:
            unit = "" if r["unit"] == "points" else f" {r['unit']}"
            numbers = [cell(text) for text in (r["contrast"] + unit, r["margin"], r["p"], r["n"])]
            verdict, more = Text(r["verdict"], style=COLOURS[r["verdict"]]), _reason(r)
            if stacked:
                out.add_row(Text(r["name"].replace("_", " ")), *numbers, verdict)
                out.caption = Text.assemble(out.caption or "", f"{r['name'].replace('_', ' ')}: ", (r["says"], "bold"),
                                            more, "\n")  # fmt: skip
            else:
                out.add_row(cell(r["says"]), *numbers, verdict + more)
    out.caption_justify = "left"
    return out


def _reason(r: Verdict) -> Text:
    """What stands behind a verdict."""
    more = Text(f": {r['reason']}" if r["reason"] else "", style="default")
    if r["caution"]:
        more.append(f"; but {r['caution']}", style="yellow")
    if r["needs"] and r["verdict"] != "supported":
        more.append(f". {r['needs']}", style="dim")
    return more


def mediation_tables(run: xr.DataTree) -> list[Table]:
    """What each of the run's personas acts through, as tables for a terminal; none where nothing was interchanged."""
    out = []
    for mediation in effects.mediations(run):
        table = _table(f"mediation: {mediation.title}, estimate [95%]")
        table.caption, table.caption_justify = effects.UNDEFINED, "left"
        table.add_column("effect", overflow="fold")
        for column in mediation.columns:
            table.add_column(cell(column), justify="right", overflow="fold")
        for name, texts in mediation.rows:
            table.add_row(name, *map(cell, texts))
        out.append(table)
    return out


def candidates_table(candidates: xr.Dataset) -> Table:
    """Every candidate of a refusal direction, best bypass first, with the reason why it was rejected. candidates: from
    gating.analysis.candidates."""
    out = Table("direction", "block", "bypass", "induce", "KL", "verdict", title="candidates (select split)")
    frame = candidates.to_dataframe().reset_index()
    frame["kept"] = frame["reason"] == ""
    ranked = frame.sort_values(["chosen", "kept", "bypass_score"], ascending=[False, False, True], kind="stable")
    for r in ranked.itertuples():
        verdict = "chosen" if r.chosen else r.reason or "kept, not the lowest"
        numbers = (f"{v:.2f}" for v in (r.bypass_score, r.induce_score, r.kl))
        out.add_row(cell(r.direction), str(r.layer), *numbers, verdict)
    if not candidates["chosen"].any():
        out.caption = "no candidate passes: the refusal direction of this model is not one that the rule accepts"
    return out


SITE_COLUMNS = {  # of what gating.analysis.sites measured: heading, and how a value is shown
    "first": ("begins to refuse", "{:.0%}"),
    "random": ("random directions", "{:.0%}"),
    "kl": ("KL", "{:.2f}"),
    "share": ("restored", "{:.0%}"),
    "refusal": ("refusal", "{:.0%}"),
    "random_refusal": ("random refusal", "{:.0%}"),
    "harmless": ("harmless refusal", "{:.0%}"),
    "degenerate": ("degenerate", "{:.0%}"),
}


def sites_table(title: str, candidates: xr.Dataset) -> Table:
    """Candidates of a model's sites, one a line: a direction read at a block and added at one, its dose (of the
    residual's norm) and coefficient, what was measured, and where answers decided the verdict."""
    n, n_harmless = candidates.attrs["n"], candidates.attrs["n_harmless"]
    out = _table(f"{title} (select split: {n} harmful prompts, KL on {n_harmless} harmless ones)")
    shown = {
        name: column
        for name, column in SITE_COLUMNS.items()
        if name in candidates and np.isfinite(candidates[name].values).any()
    }
    for heading in ("block", "read", "dose", "coef", *(heading for heading, _ in shown.values())):
        out.add_column(heading, justify="right")
    decided = "chosen" in candidates
    if decided:
        out.add_column("verdict", overflow="fold")
    for i in range(candidates.sizes["condition"]):
        row = candidates.isel(condition=i)
        cells = [str(int(row["block"])), str(int(row["read"])), f"{float(row['dose']):.0%}", f"{float(row['coef']):g}"]
        cells += [_site_cell(row, name, form) for name, (_, form) in shown.items()]
        cells += ["chosen" if bool(row["chosen"]) else str(row["reason"].item()) or "kept"] if decided else []
        out.add_row(*cells, style="bold" if decided and bool(row["chosen"]) else None)
    return out


def _site_cell(row: xr.Dataset, name: str, form: str) -> str:
    value = float(row[name])
    if not np.isfinite(value):
        return ""
    if name != "refusal":
        return form.format(value)
    return f"{form.format(value)} [{100 * float(row['refusal_low']):.0f}, {100 * float(row['refusal_high']):.0f}]"
