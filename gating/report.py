"""A run's page: one self-contained HTML file with its pictures, and the same table for a terminal.

Prompts and answers are shown as short openings, harmful ones redacted, unless full text is asked for.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from gating import analysis, claims, tables
from gating.errors import GatingError
from gating.figures import dose, maps, nulls, rates, traces
from gating.judges import LABELS

PROMPT_WORDS, HARMLESS_WORDS, HARMFUL_WORDS = 6, 12, 4
SAMPLES = 12  # prompts
SENTENCES = 6


def shown_conditions(run: xr.DataTree) -> list[str]:
    """The baseline and the first conditions that are no controls: whose answers the page quotes."""
    about = analysis.group(run, "conditions")
    return about["condition"].values[np.isin(about["kind"].values, ["baseline", "steered", "named"])][:4].tolist()


def headline(run: xr.DataTree) -> list[str]:
    """One sentence for each steered condition: rates, difference, interval, n, and the random controls beside it; of a
    large grid the first few, and how many more there are."""
    harmful = tables.headline_set(run)
    r, e = analysis.refusal_rate(run, harmful=harmful), analysis.contrast(run, harmful=harmful)
    null = analysis.random_null(run, harmful=harmful)
    base, names = r.sel(condition="baseline"), null["condition"].values.tolist()
    out = []
    for name in names[:SENTENCES]:
        one, k, n = null.sel(condition=name), int(null["k"].sel(condition=name)), int(e["n"].sel(condition=name))
        if n == 0:
            out.append(f"{name}: no prompt has an answer both here and at baseline.")
            continue
        controls = (
            f" Its {k} random control{'s' if k > 1 else ''} moved it by {tables.signed(float(one['null_low']))} to "
            f"{tables.signed(float(one['null_high']))} points (permutation p = {float(one['p']):.2f}, at least "
            f"{1 / (k + 1):.2f} with {k})." if k else " It has no random controls."
        )  # fmt: skip
        out.append(
            f"{name}: refusal {tables.interval(r.sel(condition=name))} against {tables.interval(base)} at baseline, a paired difference "
            f"of {tables.points(e.sel(condition=name))} points (n = {n}).{controls}"
        )
    if len(names) > SENTENCES:
        out.append(f"{len(names) - SENTENCES} more steered conditions stand in the table.")
    return out


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


def pictures(run: xr.DataTree, lines: list[dict[str, Any]]) -> dict[str, tuple[Figure, str, str]]:
    """Every picture that the run's data allow, by file name, with a text alternative and a caption. lines: from `rows`."""
    harmful = tables.headline_set(run)
    said = "; ".join(f"{r['name']} {r['refusal']}" for r in lines if r["kind"] != "random")
    out = {
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
            f"Refusal and degenerate rates against steer.{axis}, with the baseline and the random controls.",
            f"Dose response along steer.{axis}: a fall in refusal counts only where degenerate answers stay few.",
        )
    return out | _grids(run, harmful) | _inside(run, harmful)


def _grids(run: xr.DataTree, harmful: bool) -> dict[str, tuple[Figure, str, str]]:
    out = {}
    if maps.has_grid(run):
        out["grid"] = (
            maps.grid(run, harmful),
            "Refusal and degenerate rates of every steered condition by block and coefficient, as numbers on a map.",
            "Block by coefficient. Choose on the select split, where refusal falls and answers stay whole.",
        )
    if maps.has_pairs(run):
        out["pairs"] = (
            maps.pairs(run, harmful),
            "Refusal rate by injection block and knock-out block, as numbers on a map.",
            "Injection block by knock-out block. A knock-out before the injection cannot undo it.",
        )
    if any(len(null) > 1 for _, null in nulls.controlled(run)):
        out["null"] = (
            nulls.strip(run, harmful),
            "Refusal rate of each condition beside all of its random controls, one dot a direction, with a permutation p.",
            "Each condition against its whole random null. K directions cannot give a p below 1/(K + 1).",
        )
    if "directions" in run.children and run["directions"].sizes["direction"] > 1:
        out["cosines"] = (
            maps.cosines(run),
            "Cosines between all directions at one block, and of each with the refusal direction at every block, with nulls.",
            "How the directions lie. The band is what isotropic vectors keep to; activations are far from isotropic, which is "
            "what directions with permuted labels (dotted, experiment=geometry) show.",
        )
    if maps.has_traits(run):
        out["shared"] = (
            maps.shared(run),
            "The first principal component's share of the traits' directions by block, and each direction's cosine with it.",
            "Do the traits share one axis? Uncentred PCA of their unit directions; refusal is not part of it.",
        )
    if tables.asks_both(run) and "readouts" in run.children:
        out["harm"] = (
            traces.by_harm(run),
            "Mean projection of harmful and of harmless prompts on each direction at every block, without steering.",
            "Where harmful and harmless prompts lie on each direction at baseline; bands are one standard deviation.",
        )
    return out


def _inside(run: xr.DataTree, harmful: bool) -> dict[str, tuple[Figure, str, str]]:
    out: dict[str, tuple[Figure, str, str]] = {}
    if len(shown_conditions(run)) < 2:
        return out
    if np.isfinite(analysis.group(run, "outcomes")["refusal_score"]).any():
        out["prompts"] = (
            nulls.per_prompt(run, harmful),
            "First-token refusal score of each prompt at baseline against each of the first conditions.",
            "Prompt by prompt: above the line refusal is likelier than at baseline.",
        )
    held = set(run["readouts"].data_vars) if "readouts" in run.children else set()
    if "projection" in held:
        out["blocks"] = (
            traces.over_blocks(run, harmful),
            "Mean projection on the persona and refusal directions at every block, last prompt token, per condition.",
            f"Projections over blocks, mean and 95% band over prompts (at most {traces.MOST} conditions are drawn).",
        )
    if "step_projection" in held:
        out["tokens"] = (
            traces.over_tokens(run, harmful),
            "Mean projection on the persona and refusal directions at each generated token, per condition.",
            "Projections over the answer's tokens; later ones come from the answers that are that long.",
        )
    if "lens_score" in held:
        out["lens"] = (
            traces.lens(run, harmful),
            "Refusal log-odds read off the residual stream at every block, per condition.",
            "Where the refusal is decided: the score through the final norm and unembedding at every block (logit lens).",
        )
    if {"kl", "relative_change"} <= held:
        out["strength"] = (
            traces.strength(run),
            "Relative change and first-token KL of each condition.",
            "Strength in units that compare across blocks and directions.",
        )
    return out


def write(
    run: xr.DataTree, folder: str | Path, full_text: bool = False, post_hoc: dict[str, Any] | None = None
) -> Path:
    """Write report.html, its pictures and, where there are claims, claims.json into `folder`; the page's path. post_hoc: a
    family of claims in place of the run's own, marked as named after the run."""
    folder, drawn = Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    harmful = tables.headline_set(run)
    lines, family = tables.rows(run, harmful, 1), post_hoc or tables.own_claims(run)
    decided = []
    if family:
        found = claims.evaluate(run, family)
        decided = tables.verdict_rows(found, family)
        (folder / "claims.json").write_text(claims.to_json(found) + "\n", encoding="utf-8")
    for name, (figure, alt, caption) in pictures(run, lines).items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        (folder / f"{name}.png").write_bytes(buffer.getvalue())
        drawn.append(
            {"name": name, "alt": alt, "caption": caption, "data": base64.b64encode(buffer.getvalue()).decode()}
        )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gating"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    done = analysis.group(run, "outcomes")["done"]
    page = environment.get_template("report.html.j2").render(
        attrs=run.attrs, headline=headline(run), rows=lines, harmless=tables.rows(run, False, 1) if tables.asks_both(run) else [],
        pictures=drawn, samples=samples(run, full_text), shown=shown_conditions(run), full_text=full_text, harmful=harmful,
        warnings=json.loads(run.attrs.get("warnings", "[]")), versions=json.loads(run.attrs.get("versions", "{}")),
        done=int(done.sum()), total=done.size, claims=decided, post_hoc=post_hoc is not None, alpha=family.get("alpha", 0.05),
    )  # fmt: skip
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def main() -> None:
    """`python -m gating.report RUN...`: write each run's page again, print its table and its claims' verdicts."""
    from rich.console import Console

    from gating import store

    parser = argparse.ArgumentParser(prog="python -m gating.report", description=main.__doc__)
    parser.add_argument("run", nargs="+", help="a run's folder or its store.zarr")
    parser.add_argument(
        "--claims", help="decide these (a name in conf/claims or a file), marked as named after the run"
    )
    parser.add_argument("--full-text", action="store_true", help="show whole prompts and answers")
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        post_hoc = claims.load(args.claims) if args.claims else None
        trees = {str(path): store.open_run(path) for path in args.run}
        families = {path: post_hoc or tables.own_claims(tree) for path, tree in trees.items()}
        decided = claims.evaluate_many({p: t for p, t in trees.items() if families[p]}, families)
        for path, tree in trees.items():
            console.print(tables.table(tree))
            if path in decided:
                title = families[path]["family"] + (", named after the run" if post_hoc else "")
                console.print(tables.verdict_table(tables.verdict_rows(decided[path], families[path]), title))
            print(f"report: {write(tree, store.locate(path).parent, args.full_text, post_hoc)}")
    except GatingError as e:
        print(f"error: {e}")
        sys.exit(2)


if __name__ == "__main__":
    main()
