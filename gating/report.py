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
from rich import box
from rich.table import Table
from rich.text import Text

from gating import analysis, claims
from gating.errors import GatingError
from gating.figures import dose, maps, nulls, rates, traces
from gating.judges import LABELS

PROMPT_WORDS, HARMLESS_WORDS, HARMFUL_WORDS = 6, 12, 4
SAMPLES = 12  # prompts
SENTENCES = 6


def headline_set(run: xr.DataTree) -> bool:
    """Which prompts the headline counts: the harmful ones where there are any, else the harmless ones."""
    return bool(analysis.group(run, "prompts")["harmful"].any())


def asks_both(run: xr.DataTree) -> bool:
    """Whether the run asked harmful and harmless prompts."""
    harmful = analysis.group(run, "prompts")["harmful"]
    return bool(harmful.any() and not harmful.all())


def shown_conditions(run: xr.DataTree) -> list[str]:
    """The baseline and the first conditions that are no controls: whose answers the page quotes."""
    about = analysis.group(run, "conditions")
    return about["condition"].values[np.isin(about["kind"].values, ["baseline", "steered", "named"])][:4].tolist()


def rows(run: xr.DataTree, harmful: bool | None, digits: int = 0) -> list[dict[str, Any]]:
    """One row a condition, as text: n, rates with intervals, the paired difference to the baseline, p and p adjusted for
    all conditions (Holm), the mean first-token score; `point` is its place in the grid (its name's brackets)."""
    r, effect = analysis.rates(run, harmful=harmful), analysis.contrast(run, harmful=harmful, holm=True)
    chosen = analysis.group(run, "prompts")["harmful"].values == harmful
    score = analysis.group(run, "outcomes")["refusal_score"].isel(prompt=chosen).mean("prompt")
    change, kl = strengths(run)
    out = []
    for name in r["condition"].values.tolist():
        one, e, mean = r.sel(condition=name), effect.sel(condition=name), float(score.sel(condition=name))
        base = name == "baseline"
        out.append({
            "name": name, "kind": str(one["kind"].item()), "n": int(one["n"].sel(label="refusal")),
            "grid": int(one["grid"]), "point": name[name.index("[") :] if name.endswith("]") and "[" in name else "",
            **{k: _interval(one.sel(label=k), digits) for k in LABELS},
            **{f"{k}_rate": _percent(one["rate"].sel(label=k), digits) for k in LABELS},
            "difference": "" if base else _points(e, digits), "p": "" if base else _p(float(e["p"])),
            "p_holm": "" if base else _p(float(e["p_holm"])), "score": "missing" if np.isnan(mean) else f"{mean:.2f}",
            "change": f"{change[name]:.2f}" if name in change else "", "kl": f"{kl[name]:.2f}" if name in kl else "",
        })  # fmt: skip
    return out


def strengths(run: xr.DataTree) -> tuple[dict[str, float], dict[str, float]]:
    """Each condition's strength in comparable units, where the run kept it: |added| / |h| at the last prompt token (the
    largest over blocks), and first-token KL to the baseline on harmless prompts (on all where none was asked)."""
    held = analysis.group(run, "readouts") if "readouts" in run.children else xr.Dataset()
    if not {"relative_change", "kl"} <= set(held.data_vars):
        return {}, {}
    harmful = analysis.group(run, "prompts")["harmful"].values
    change = held["relative_change"].max("layer").mean("prompt").to_series()
    kl = held["kl"].isel(prompt=~harmful if not harmful.all() else slice(None)).mean("prompt").to_series()
    return change.dropna().to_dict(), kl.dropna().to_dict()


def _percent(value: Any, digits: int = 0) -> str:
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


def _interval(one: xr.Dataset, digits: int = 0) -> str:
    if int(one["n"]) == 0:
        return "missing"
    low, high = (f"{100 * float(one[v]):.{digits}f}" for v in ("low", "high"))
    return f"{_percent(one['rate'], digits)} [{low}, {high}]"


def _points(e: xr.Dataset, digits: int = 0) -> str:
    if int(e["n"]) == 0:
        return "missing"
    d, low, high = (_signed(float(e[v]), digits) for v in ("difference", "low", "high"))
    return f"{d} [{low}, {high}]"


def _signed(share: float, digits: int = 0) -> str:
    points = round(100 * share, digits)
    return f"{points:+.{digits}f}" if points else f"{0:.{digits}f}"


def _p(p: float) -> str:
    return "missing" if np.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def table(run: xr.DataTree) -> Table:
    """The refusal table for a terminal; a last column for harmless prompts where the run asked both. A point of a grid
    is a line of its own, the end of the names below it."""
    harmful = headline_set(run)
    other = {r["name"]: r["refusal"] for r in rows(run, False)} if asks_both(run) else {}
    out = Table(
        title=f"{'harmful' if harmful else 'harmless'} prompts",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    lines = rows(run, harmful)
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


def headline(run: xr.DataTree) -> list[str]:
    """One sentence for each steered condition: rates, difference, interval, n, and the random controls beside it; of a
    large grid the first few, and how many more there are."""
    harmful = headline_set(run)
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
            f" Its {k} random control{'s' if k > 1 else ''} moved it by {_signed(float(one['null_low']))} to "
            f"{_signed(float(one['null_high']))} points (permutation p = {float(one['p']):.2f}, at least "
            f"{1 / (k + 1):.2f} with {k})." if k else " It has no random controls."
        )  # fmt: skip
        out.append(
            f"{name}: refusal {_interval(r.sel(condition=name))} against {_interval(base)} at baseline, a paired difference "
            f"of {_points(e.sel(condition=name))} points (n = {n}).{controls}"
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
    harmful = headline_set(run)
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


def own_claims(run: xr.DataTree) -> dict[str, Any]:
    """The family of claims that the run was begun with; empty where there was none."""
    return json.loads(run.attrs.get("claims", "{}"))


def verdict_rows(found: xr.Dataset, family: dict[str, Any]) -> list[dict[str, str]]:
    """One row a claim, as text; a contrast of labels in points, one of a measure in its own units."""
    out = []
    for name in found["claim"].values.tolist():
        one, scale = found.sel(claim=name), 1 if family["claims"][name].get("measure") else 100
        estimate, low, high, margin = (scale * float(one[k]) for k in ("estimate", "low", "high", "margin"))
        p = float(one["p_holm"])
        out.append({
            "name": name, "says": str(one["says"].item()), "n": str(int(one["n"])), "margin": f"{margin:g}",
            "contrast": f"{estimate:+.0f} [{low:+.0f}, {high:+.0f}]" if int(one["n"]) else "missing",
            "p": "missing" if np.isnan(p) else _p(p), "verdict": str(one["verdict"].item()), "reason": str(one["reason"].item()),
            "test": str(one["test"].item()), "paper": str(one["paper"].item()),
        })  # fmt: skip
    return out


def verdicts(run: xr.DataTree) -> list[Table]:
    """The run's claims as a table for a terminal; none where it was begun without claims."""
    family = own_claims(run)
    return [verdict_table(verdict_rows(claims.evaluate(run, family), family), family["family"])] if family else []


def verdict_table(lines: list[dict[str, str]], title: str) -> Table:
    out = Table(title=f"claims: {title}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column, how in (("claim", "left"), ("contrast", "right"), ("margin", "right"), ("p (Holm)", "right"), ("n", "right"),
                        ("verdict", "left")):  # fmt: skip
        out.add_column(column, justify=how, overflow="fold")  # type: ignore[arg-type]
    colour = {"supported": "green", "refuted": "red", "undecided": "yellow", "missing": "dim"}
    for r in lines:
        verdict = Text(r["verdict"], style=colour[r["verdict"]])
        if r["reason"]:
            verdict.append(f": {r['reason']}", style="default")
        out.add_row(*map(Text, (r["says"], r["contrast"], r["margin"], r["p"], r["n"])), verdict)
    return out


def write(
    run: xr.DataTree, folder: str | Path, full_text: bool = False, post_hoc: dict[str, Any] | None = None
) -> Path:
    """Write report.html, its pictures and, where there are claims, claims.json into `folder`; the page's path. post_hoc: a
    family of claims in place of the run's own, marked as named after the run."""
    folder, drawn = Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    harmful = headline_set(run)
    lines, family = rows(run, harmful, 1), post_hoc or own_claims(run)
    decided = []
    if family:
        found = claims.evaluate(run, family)
        decided = verdict_rows(found, family)
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
        attrs=run.attrs, headline=headline(run), rows=lines, harmless=rows(run, False, 1) if asks_both(run) else [],
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
        families = {path: post_hoc or own_claims(tree) for path, tree in trees.items()}
        decided = claims.evaluate_many({p: t for p, t in trees.items() if families[p]}, families)
        for path, tree in trees.items():
            console.print(table(tree))
            if path in decided:
                title = families[path]["family"] + (", named after the run" if post_hoc else "")
                console.print(verdict_table(verdict_rows(decided[path], families[path]), title))
            print(f"report: {write(tree, store.locate(path).parent, args.full_text, post_hoc)}")
    except GatingError as e:
        print(f"error: {e}")
        sys.exit(2)


if __name__ == "__main__":
    main()
