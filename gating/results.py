"""`python -m gating.results RUN... > docs/results.md`: what runs show, as a page of tables made from their stores alone."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from gating import analysis, store
from gating.analysis import claims
from gating.errors import GatingError
from gating.reporting import tables

INTRO = """# Results

Made by `python -m gating.results` from stores, never by hand. A rate is followed by its 95% Wilson interval, a contrast by
its interval and n. What a claim needs was written down before the run ({families}); a verdict is *supported*,
*refuted*, or *undecided* with the number of prompts that would decide it.
"""


def row(*cells: Any) -> str:
    return "| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |"


def rates_table(run: xr.DataTree) -> list[str]:
    """Refusal and degenerate rates of every condition on harmful prompts and on harmless ones; the random controls of a
    place in the grid as one line with their mean and range."""
    sets = [h for h in (True, False) if analysis.asked(run, h).any()]
    lines = {h: {r["name"]: r for r in tables.rows(run, h)} for h in sets}
    head = [f"{what}, {'harmful' if h else 'harmless'}" for h in sets for what in ("refusal", "degenerate")]
    out = [row("condition", "n", *head), row(*["---"] * (2 + len(head)))]
    for (_, stem), group in itertools.groupby(lines[sets[0]].values(), tables.place):
        names = [r["name"] for r in group]
        for some in [names] if stem else [[name] for name in names]:
            each = {h: [lines[h][name] for name in some] for h in sets}
            n = "+".join(str(each[h][0]["n"]) for h in sets)
            shown = f"`{stem}-random` ({len(some)} directions)" if stem else f"`{some[0]}`"
            cells = [
                spread([r["shares"][label] for r in each[h]]) if stem else each[h][0][label]
                for h in sets
                for label in ("refusal", "degenerate")
            ]
            out.append(row(shown, n, *cells))
    return out


def spread(shares: Sequence[float]) -> str:
    """Mean and range over random directions, in percent."""
    known = 100 * np.array([s for s in shares if not np.isnan(s)])
    return f"{known.mean():.0f}% ({known.min():.0f} to {known.max():.0f})" if known.size else "missing"


def claims_table(run: xr.DataTree, family: dict[str, Any]) -> list[str]:
    lines = [row("claim", "contrast, points", "margin", "p (Holm)", "n", "verdict"), row(*["---"] * 6)]
    for r in tables.verdict_rows(claims.evaluate(run, family), family):
        verdict = f"{r['verdict']}: {r['reason']}" if r["verdict"] == "undecided" else r["verdict"]
        lines.append(row(r["says"], r["contrast"], r["margin"], r["p"], r["n"], verdict))
    return lines


def section(run: xr.DataTree) -> list[str]:
    """One run: what it is, its claims, its rates."""
    attrs = run.attrs
    experiment = json.loads(attrs["choices"]).get("experiment") or "run"
    flags = analysis.group(run, "prompts")
    sources = sorted({str(s) for s in flags["source"].values})
    versions = ", ".join(f"{k} {v}" for k, v in json.loads(attrs["versions"]).items())
    n = {True: int(flags["harmful"].sum()), False: int((~flags["harmful"]).sum())}
    out = [
        f"## {attrs['model_id']}: {experiment} on {', '.join(sources)}",
        "",
        f"{n[True]} harmful and {n[False]} harmless prompts, {attrs['max_new_tokens']} new tokens, greedy, {attrs['dtype']} on "
        f"{attrs['device']}, seed {attrs['seed']}; weights `{attrs['model_fingerprint']}`, source `{attrs['git_revision']}`, key "
        f"`{attrs['key']}`; {versions}.",
        "",
    ]
    for warning in json.loads(attrs["warnings"]):
        out += [f"*Warning: {warning}.*", ""]
    family = json.loads(attrs.get("claims", "{}"))
    if family:
        out += ["### Claims", "", *claims_table(run, family), ""]
    return [*out, "### Rates", "", *rates_table(run), ""]


def page(runs: Sequence[xr.DataTree], note: str = "") -> str:
    """The whole page, in the order of the runs; a note, such as what has changed since, stands above them."""
    families = sorted({json.loads(r.attrs.get("claims", "{}")).get("family", "") for r in runs} - {""})
    named = ", ".join(f"conf/claims/{f}.yaml" for f in families) or "no claims here"
    lines = [line for run in runs for line in section(run)]
    return INTRO.format(families=named) + (f"\n{note}\n" if note else "") + "\n" + "\n".join(lines)


def main() -> None:
    """Print a page of results from runs' stores."""
    parser = argparse.ArgumentParser(prog="python -m gating.results", description=main.__doc__)
    parser.add_argument("run", nargs="+", help="a run's folder or its store.zarr")
    parser.add_argument("--note", default="", help="a paragraph above the tables, such as what has changed since")
    args = parser.parse_args()
    try:
        print(page([store.open_run(path) for path in args.run], args.note).rstrip())
    except GatingError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
