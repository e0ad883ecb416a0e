"""`python -m gating.results RUN... > docs/results.md`: what runs show, as a page of tables made from their stores alone."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import xarray as xr

from gating import analysis, claims, store, tables
from gating.errors import GatingError

INTRO = """# Results

Made by `python -m gating.results` from stores, never by hand. A rate is followed by its 95% Wilson interval, a contrast by
its interval and n. What a claim needs was written down before the run ({families}); a verdict is *supported*,
*refuted*, or *undecided* with the number of prompts that would decide it.
"""


def percent(one: xr.Dataset) -> str:
    """`31% [24, 39]`, or missing."""
    if not int(one["n"]):
        return "missing"
    rate, low, high = (100 * float(one[k]) for k in ("rate", "low", "high"))
    return f"{rate:.0f}% [{low:.0f}, {high:.0f}]"


def row(*cells: Any) -> str:
    return "| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |"


def rates_table(run: xr.DataTree) -> list[str]:
    """Refusal and degenerate rates of every condition on harmful prompts, refusal on harmless ones; the random controls of
    a place in the grid as one line with their range."""
    flags = analysis.group(run, "prompts")["harmful"].values
    sets = [h for h in (True, False) if (flags == h).any()]
    refusal = {h: analysis.refusal_rate(run, harmful=h) for h in sets}
    degenerate = {h: analysis.refusal_rate(run, label="degenerate", harmful=h) for h in sets}
    head = [f"{what}, {'harmful' if h else 'harmless'}" for h in sets for what in ("refusal", "degenerate")]
    lines = [row("condition", "n", *head), row(*["---"] * (2 + len(head)))]
    about = analysis.group(run, "conditions")
    done: set[tuple[int, str]] = set()
    for name, kind, grid in zip(*(about[c].values.tolist() for c in ("condition", "kind", "grid")), strict=True):
        n = "+".join(str(int(refusal[h]["n"].sel(condition=name))) for h in sets)
        if kind != "random":
            cells = [f(h, name) for h in sets for f in (
                lambda h, c: percent(refusal[h].sel(condition=c)), lambda h, c: percent(degenerate[h].sel(condition=c)))]  # fmt: skip
            lines.append(row(f"`{name}`", n, *cells))
            continue
        stem = name.partition("-random-")[0]
        if (grid, stem) in done:
            continue
        done.add((grid, stem))
        seeds = [
            c
            for c, k, g in zip(*(about[v].values.tolist() for v in ("condition", "kind", "grid")), strict=True)
            if k == "random" and g == grid and c.startswith(f"{stem}-random-")
        ]
        cells = [spread(one.sel(condition=seeds)) for h in sets for one in (refusal[h], degenerate[h])]
        lines.append(row(f"`{stem}-random` ({len(seeds)} directions)", n, *cells))
    return lines


def spread(some: xr.Dataset) -> str:
    """Mean and range over random directions, in percent."""
    rate = 100 * some["rate"]
    return f"{float(rate.mean()):.0f}% ({float(rate.min()):.0f} to {float(rate.max()):.0f})"


def claims_table(run: xr.DataTree, family: dict[str, Any]) -> list[str]:
    found = claims.evaluate(run, family)
    lines = [row("claim", "contrast, points", "margin", "p (Holm)", "n", "verdict"), row(*["---"] * 6)]
    for name in found["claim"].values.tolist():
        one = found.sel(claim=name)
        scale = 100 if not str(family["claims"][name].get("measure", "")) else 1
        estimate, low, high = (scale * float(one[k]) for k in ("estimate", "low", "high"))
        contrast = f"{estimate:+.0f} [{low:+.0f}, {high:+.0f}]" if int(one["n"]) else "missing"
        margin = scale * float(one["margin"])
        verdict = str(one["verdict"].item())
        if verdict == "undecided":
            verdict += f": {one['reason'].item()}"
        cells = (
            one["says"].item(),
            contrast,
            f"{margin:g}",
            tables.p_value(float(one["p_holm"])),
            int(one["n"]),
            verdict,
        )
        lines.append(row(*cells))
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


def page(runs: Sequence[xr.DataTree]) -> str:
    """The whole page, in the order of the runs."""
    families = sorted({json.loads(r.attrs.get("claims", "{}")).get("family", "") for r in runs} - {""})
    named = ", ".join(f"conf/claims/{f}.yaml" for f in families) or "no claims here"
    lines = [line for run in runs for line in section(run)]
    return INTRO.format(families=named) + "\n" + "\n".join(lines)


def main() -> None:
    """Print a page of results from runs' stores."""
    parser = argparse.ArgumentParser(prog="python -m gating.results", description=main.__doc__)
    parser.add_argument("run", nargs="+", help="a run's folder or its store.zarr")
    args = parser.parse_args()
    try:
        print(page([store.open_run(path) for path in args.run]).rstrip())
    except GatingError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
