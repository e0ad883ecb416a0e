"""What runs show as a document of tables (docs/results.md), made from their stores alone."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import numpy as np
import xarray as xr

from gating import analysis
from gating.analysis import claims
from gating.analysis.claims import Family
from gating.foreign import code, markdown
from gating.reporting import person
from gating.reporting.rows import Row, drawn, own_claims, place, registered, rows, shown, verdict_rows

INTRO = """# Results

Made by `python -m gating.results` from stores, never by hand. A rate is followed by its 95% Wilson interval, a contrast
by its interval and n. What a claim needs was written down before the run ({families}); a verdict is *supported*,
*refuted*, or *undecided* with the number of prompts that would decide it.
"""


def document(runs: Sequence[xr.DataTree], note: str = "") -> str:
    """The whole document, in the order of the runs; a note, such as what has changed since, stands above them."""
    families = sorted({family["family"] for family in map(own_claims, runs) if family})
    named = ", ".join(markdown(f"conf/claims/{f}.yaml") for f in families) or "no claims here"
    lines = [line for run in runs for line in section(run)]
    return INTRO.format(families=named) + (f"\n{note}\n" if note else "") + "\n" + "\n".join(lines)


def section(run: xr.DataTree) -> list[str]:
    """A run: what it is, its claims, its rates."""
    attrs = run.attrs
    experiment = json.loads(attrs["choices"]).get("experiment") or "run"
    prompts = analysis.read_group(run, "prompts")
    sources = sorted({str(s) for s in prompts["source"].values})
    versions = ", ".join(f"{k} {v}" for k, v in json.loads(attrs["versions"]).items())
    harmful, harmless = int(prompts["harmful"].sum()), int((~prompts["harmful"]).sum())
    ready = int(analysis.read_group(run, "outcomes")["done"].all("condition").sum())
    done = "" if ready == harmful + harmless else f" ({ready} of them done, the shortest first)"
    out = [
        f"## {markdown(attrs['model_id'])}: {markdown(experiment)} on {markdown(', '.join(sources))}",
        "",
        f"{harmful} harmful and {harmless} harmless prompts{done}, {attrs['max_new_tokens']} new tokens, greedy, "
        f"{attrs['dtype']} on {attrs['device']}, seed {attrs['seed']}; weights {code(attrs['model_fingerprint'])}, "
        f"source {code(attrs['git_revision'])}, key {code(attrs['key'])}; {markdown(versions)}.",
        "",
    ]
    for warning in json.loads(attrs["warnings"]):
        out += [f"*Warning: {markdown(warning)}.*", ""]
    family = own_claims(run)
    if family:
        decided = claims.evaluate(run, family)
        out += ["### Claims", "", f"{registered(decided)}.", "", *claims_table(decided, family), ""]
    return [*out, *corrected_rates(run), "### Rates", "", *rates_table(run), ""]


def corrected_rates(run: xr.DataTree) -> list[str]:
    """The rates corrected by a person's labels; that there are none, where nobody has labelled."""
    if not person.held(run):
        return [f"*{line}*\n" for line in person.sentences(run, [], True)]
    out = ["### Rates corrected by a person's labels", ""]
    for reading in person.readings(run):
        out += [f"{markdown(reading.title)}. {markdown(reading.caption)}", ""]
        out += [line(*person.COLUMNS), line(*["---"] * len(person.COLUMNS))]
        out += [line(*map(markdown, row)) for row in reading.rows] + [""]
    if lines := person.claim_lines(run):
        out += [person.VERDICTS, "", line(*person.CLAIM_COLUMNS), line(*["---"] * len(person.CLAIM_COLUMNS))]
        out += [line(*map(markdown, row)) for row in lines] + [""]
    return out


def line(*cells: object) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def claims_table(decided: xr.Dataset, family: Family) -> list[str]:
    """decided: from `claims.evaluate`."""
    out = [line("claim", "contrast, points", "margin", "p (Holm)", "n", "verdict"), line(*["---"] * 6)]
    for r in verdict_rows(decided, family):
        open_ = r["verdict"] in ("undecided", "not testable")
        verdict = f"{r['verdict']}: {markdown(r['reason'])}" if open_ else r["verdict"]
        verdict += f" ({markdown(r['caution'])})" if r["caution"] else ""
        out.append(line(markdown(r["says"]), r["contrast"], r["margin"], r["p"], r["n"], verdict))
    return out


def rates_table(run: xr.DataTree) -> list[str]:
    """Rates of refusal, of degenerate and, where there are any, of unsure answers of every condition, on harmful and on
    harmless prompts; a place's random controls on a single line with their mean and range."""
    sets = {harmful: rows(run, harmful) for harmful in (True, False) if analysis.asked(run, harmful).any()}
    lines = list(zip(*sets.values(), strict=True))  # a condition's row on each set of prompts
    paper = " (B*)" if any(same[0]["paper"] for same in lines) else ""
    named = {True: "harmful", False: f"harmless{paper}"}
    unsure = any(r["shares"]["unsure"] > 0 for same in lines for r in same)
    labels = ("refusal", "degenerate", *(["unsure"] if unsure else []))
    head = [f"{label}, {named[harmful]}" for harmful in sets for label in labels]
    out = [line("condition", "n", *head), line(*["---"] * (2 + len(head)))]
    for (_, stem), together in itertools.groupby(lines, lambda same: place(same[0])):
        members = list(together)
        out += (
            [_controls_line(list(zip(*members, strict=True)), labels)]
            if stem
            else [_condition_line(same, labels) for same in members]
        )
    return out


def _condition_line(same: Sequence[Row], labels: Sequence[str]) -> str:
    """A condition's row on each set of prompts."""
    rates = [r["refusal"] if label == "refusal" else r["rates"][label] for r in same for label in labels]
    return line(code(shown(same[0])), "+".join(str(r["n"]) for r in same), *rates)


def _controls_line(sets: Sequence[Sequence[Row]], labels: Sequence[str]) -> str:
    """The random controls of a place, their rows on each set of prompts."""
    first = sets[0][0]
    stem = f"{first['paper']} {first['family']}-{drawn(first)}".strip()
    rates = [spread([r["shares"][label] for r in rows]) for rows in sets for label in labels]
    return line(f"{code(stem)} ({len(sets[0])} directions)", "+".join(str(rows[0]["n"]) for rows in sets), *rates)


def spread(shares: Sequence[float]) -> str:
    """Mean and range over random directions, in percent."""
    known = 100 * np.array([s for s in shares if not np.isnan(s)])
    return f"{known.mean():.0f}% ({known.min():.0f} to {known.max():.0f})" if known.size else "missing"
