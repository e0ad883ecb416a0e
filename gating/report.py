"""A run's page: one self-contained HTML file with its pictures, and the same table for a terminal.

Prompts and answers are shown as short openings, harmful ones redacted, unless full text is asked for.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import xarray as xr

from gating import analysis
from gating.analysis import claims, stats
from gating.errors import GatingError
from gating.figures import gallery
from gating.figures.base import conditions
from gating.judging.labels import LABELS
from gating.reporting import tables

PROMPT_WORDS, HARMLESS_WORDS, HARMFUL_WORDS = 6, 12, 4
SAMPLES = 12  # prompts
SENTENCES = 6


def shown_conditions(run: xr.DataTree) -> list[str]:
    """The baseline and the first conditions that are no controls: whose answers the page quotes."""
    return conditions(run, ("baseline", "steered", "named"))[:4]


def headline(run: xr.DataTree) -> list[str]:
    """One sentence for each steered and named condition: rates, difference, interval, n, and the random controls beside it;
    of many the first few, and how many more there are."""
    harmful = tables.headline_set(run)
    r, e = analysis.refusal_rate(run, harmful=harmful), analysis.contrast(run, harmful=harmful)
    null = analysis.random_null(run, harmful=harmful)
    base, own = r.sel(condition="baseline"), dict(analysis.controlled(run))
    names = conditions(run, ("steered", "named"))
    out = []
    for name in names[:SENTENCES]:
        one, effect = r.sel(condition=name), e.sel(condition=name)
        if int(effect["n"]) == 0:
            out.append(f"{name}: no prompt has an answer both here and at baseline.")
            continue
        steered = str(one["kind"].item()) == "steered"
        controls = _moved(null.sel(condition=name)) if steered else _ended(one, r.sel(condition=own.get(name, [])))
        out.append(
            f"{name}: refusal {tables.interval(one)} against {tables.interval(base)} at baseline, a paired difference "
            f"of {tables.points(effect)} points (n = {int(effect['n'])}).{controls}"
        )
    if len(names) > SENTENCES:
        out.append(f"{len(names) - SENTENCES} more conditions stand in the table.")
    return out


def _moved(one: xr.Dataset) -> str:
    """How far a steered condition's controls moved refusal, beside it: one row of `analysis.random_null`."""
    k = int(one["k"])
    if not k:
        return " It has no random controls."
    return (
        f" Its {k} random control{'s' if k > 1 else ''} moved it by {tables.signed(float(one['null_low']))} to "
        f"{tables.signed(float(one['null_high']))} points (permutation p = {float(one['p']):.2f}, at least "
        f"{1 / (k + 1):.2f} with {k})."
    )


def _ended(one: xr.Dataset, controls: xr.Dataset) -> str:
    """Where a named condition's controls ended, beside it. They share its other interventions, so that a knock-out that
    does nothing leaves them far from the baseline: what counts is how far the condition is from them."""
    rates = controls["rate"].values
    p, k = stats.unusual(float(one["rate"]), rates)
    if not k:
        return " It has no random controls."
    ends = f"{tables.percent(np.nanmin(rates))} to {tables.percent(np.nanmax(rates))}"
    return (
        f" With {k} random direction{'s' if k > 1 else ''} in its place: {ends} (permutation p = {p:.2f} either way, at least "
        f"{1 / (k + 1):.2f} with {k})."
    )


def opening(text: str, words: int | None) -> str:
    """The first words of a text, `…` where more follows; None is all of it."""
    parts = text.split()
    return text if words is None or len(parts) <= words else " ".join(parts[:words]) + " …"


def samples(run: xr.DataTree, full_text: bool) -> list[dict[str, str]]:
    """Openings of answers: some prompts under the baseline and each steered condition; harmful ones cut to a few words."""
    out, about, shown = analysis.group(run, "outcomes"), analysis.group(run, "prompts"), shown_conditions(run)
    picked = np.unique(np.linspace(0, about.sizes["prompt"] - 1, SAMPLES).astype(int))
    lines = []
    for p in picked:
        prompt = about.isel(prompt=p)
        answer_words = HARMFUL_WORDS if bool(prompt["harmful"]) else HARMLESS_WORDS
        for name in shown:
            row = out.sel(condition=name).isel(prompt=p)
            label = int(row["label"])
            lines.append({
                "prompt": opening(prompt["text"].item(), None if full_text else PROMPT_WORDS),
                "hash": str(prompt["prompt"].item()), "category": str(prompt["category"].item()), "condition": str(name),
                "label": LABELS[label] if label >= 0 else "missing",
                "answer": opening(row["completion"].item(), None if full_text else answer_words),
            })  # fmt: skip
    return lines


def decided(run: xr.DataTree, post_hoc: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The run's own claims and those named after it, each family evaluated by itself: {family, post_hoc, found, rows}. The
    own ones always stand, so that a family chosen later cannot take the place of what was written down before."""
    families = [(tables.own_claims(run), False), (dict(post_hoc or {}), True)]
    out = []
    for family, later in families:
        if family:
            found = claims.evaluate(run, family)
            found.attrs["post_hoc"] = later
            out.append(
                {"family": family, "post_hoc": later, "found": found, "rows": tables.verdict_rows(found, family)}
            )
    return out


def write(
    run: xr.DataTree, folder: str | Path, full_text: bool = False, post_hoc: dict[str, Any] | None = None
) -> Path:
    """Write report.html, its pictures and the verdicts (claims.json, claims_post_hoc.json) into `folder`; the page's path.
    post_hoc: a further family of claims, marked as named after the run."""
    folder, drawn = Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    harmful = tables.headline_set(run)
    lines, verdicts = tables.rows(run, harmful, 1), decided(run, post_hoc)
    for one in verdicts:
        name = "claims_post_hoc.json" if one["post_hoc"] else "claims.json"
        (folder / name).write_text(claims.to_json(one["found"]) + "\n", encoding="utf-8")
    for name, (figure, alt, caption) in gallery.pictures(run, lines, harmful).items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        (folder / f"{name}.png").write_bytes(buffer.getvalue())
        drawn.append(
            {"name": name, "alt": alt, "caption": caption, "data": base64.b64encode(buffer.getvalue()).decode()}
        )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gating.reporting"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    done = analysis.group(run, "outcomes")["done"]
    harmless = tables.rows(run, False, 1) if tables.asks_both(run) else []
    page = environment.get_template("report.html.j2").render(
        attrs=run.attrs, headline=headline(run), outcomes=[_outcomes(lines, harmful), *([_outcomes(harmless, False)] if harmless else [])],
        pictures=drawn, samples=samples(run, full_text), shown=shown_conditions(run), full_text=full_text,
        warnings=json.loads(run.attrs.get("warnings", "[]")), versions=json.loads(run.attrs.get("versions", "{}")),
        done=int(done.sum()), total=done.size, claims=verdicts, finished=run.attrs.get("status") == "complete",
    )  # fmt: skip
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _outcomes(lines: list[dict[str, Any]], harmful: bool) -> dict[str, Any]:
    """A table of the page: its rows with many random controls as one, and those again one by one."""
    shown = tables.folded(lines, tables.FOLD)
    kept = {r["name"] for r in shown}
    return {"harmful": harmful, "rows": shown, "rest": [r for r in lines if r["name"] not in kept]}


def _title(families: list[Mapping[str, Any]], later: bool) -> str:
    names = ", ".join(dict.fromkeys(str(f["family"]) for f in families))
    many = f" (p adjusted over all {len(families)} runs)" if len(families) > 1 else ""
    return f"{names}{', post hoc: named after the run' if later else ''}{many}"


def main() -> None:
    """`python -m gating.report RUN...`: write each run's page again, print its table and its claims' verdicts."""
    from rich.console import Console

    from gating import store

    parser = argparse.ArgumentParser(prog="python -m gating.report", description=main.__doc__)
    parser.add_argument("run", nargs="+", help="a run's folder or its store.zarr")
    parser.add_argument(
        "--claims", help="decide these too (a name in conf/claims or a file), marked as named after the run"
    )
    parser.add_argument("--full-text", action="store_true", help="show whole prompts and answers")
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        post_hoc = claims.load(args.claims) if args.claims else None
        trees = {str(path): store.open_run(path) for path in args.run}
        for path, tree in trees.items():
            console.print(tables.table(tree))
            print(f"report: {write(tree, store.locate(path).parent, args.full_text, post_hoc)}")
        for later in (False, True):
            families = {path: (post_hoc or {}) if later else tables.own_claims(tree) for path, tree in trees.items()}
            families = {path: family for path, family in families.items() if family}
            found = claims.evaluate_many({path: trees[path] for path in families}, families)
            sections = [(path, tables.verdict_rows(found[path], families[path])) for path in families]
            if sections:
                console.print(tables.verdict_table(sections, _title(list(families.values()), later)))
    except GatingError as e:
        print(f"error: {e}")
        sys.exit(2)


if __name__ == "__main__":
    main()
