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

from gating import analysis, figures
from gating.errors import GatingError
from gating.judges import LABELS

PROMPT_WORDS, HARMLESS_WORDS, HARMFUL_WORDS = 6, 12, 4
SAMPLES = 12


def headline_set(run: xr.DataTree) -> bool | None:
    """Which prompts the headline counts: the harmful ones where there are any, else the harmless ones."""
    return bool(analysis.group(run, "prompts")["harmful"].any())


def asks_both(run: xr.DataTree) -> bool:
    """Whether the run asked harmful and harmless prompts."""
    harmful = analysis.group(run, "prompts")["harmful"]
    return bool(harmful.any() and not harmful.all())


def shown_conditions(run: xr.DataTree) -> list[str]:
    """The baseline and the first steered conditions: what a crowded picture has room for."""
    about = analysis.group(run, "conditions")
    return about["condition"].values[np.isin(about["kind"].values, ["baseline", "steered"])][:4].tolist()


def rows(run: xr.DataTree, harmful: bool | None) -> list[dict[str, Any]]:
    """One row a condition: n, rates with intervals, the paired difference to the baseline, p, the mean first-token score."""
    r, effect = analysis.rates(run, harmful=harmful), analysis.contrast(run, harmful=harmful)
    chosen = analysis.group(run, "prompts")["harmful"].values == harmful
    score = analysis.group(run, "outcomes")["refusal_score"].isel(prompt=chosen).mean("prompt")
    out = []
    for name in r["condition"].values.tolist():
        one, e = r.sel(condition=name), effect.sel(condition=name)
        out.append({
            "name": name, "kind": str(one["kind"].item()), "n": int(one["n"].sel(label="refusal")),
            **{k: _interval(one.sel(label=k)) for k in LABELS},
            **{f"{k}_rate": _percent(one["rate"].sel(label=k)) for k in LABELS},
            "difference": "" if name == "baseline" else _points(e), "p": "" if name == "baseline" else _p(float(e["p"])),
            "score": f"{float(score.sel(condition=name)):.2f}",
        })  # fmt: skip
    return out


def _percent(value: Any) -> str:
    return "missing" if np.isnan(float(value)) else f"{100 * float(value):.0f}%"


def _interval(one: xr.Dataset) -> str:
    if int(one["n"]) == 0:
        return "missing"
    return f"{100 * float(one['rate']):.0f}% [{100 * float(one['low']):.0f}, {100 * float(one['high']):.0f}]"


def _points(e: xr.Dataset) -> str:
    if int(e["n"]) == 0:
        return "missing"
    return f"{100 * float(e['difference']):+.0f} [{100 * float(e['low']):+.0f}, {100 * float(e['high']):+.0f}]"


def _p(p: float) -> str:
    return "" if np.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def table(run: xr.DataTree) -> Table:
    """The refusal table for a terminal; a last column for harmless prompts where the run asked both."""
    harmful = headline_set(run)
    other = {r["name"]: r["refusal"] for r in rows(run, False)} if asks_both(run) else {}
    out = Table(title=f"{'harmful' if harmful else 'harmless'} prompts", title_justify="left", box=box.SIMPLE_HEAD)
    out.add_column("condition", no_wrap=True, min_width=22)
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
        out.add_column(column, justify="right", no_wrap=True)
    for r in rows(run, harmful):
        cells = [str(r["n"]), r["refusal"], *(r[f"{k}_rate"] for k in LABELS[1:]), r["difference"], r["p"]]
        style = {"random": "dim", "steered": "bold"}.get(r["kind"])
        cells = [r["name"], *cells, *([other[r["name"]]] if other else [])]
        out.add_row(*map(Text, cells), style=style)  # Text: a condition's name may hold brackets, which rich would eat
    return out


def headline(run: xr.DataTree) -> list[str]:
    """One sentence for each steered condition: rates, difference, interval, n, and the random controls beside it."""
    harmful = headline_set(run)
    r, e = analysis.refusal_rate(run, harmful=harmful), analysis.contrast(run, harmful=harmful)
    null = analysis.random_null(run, harmful=harmful)
    base = r.sel(condition="baseline")
    out = []
    for name in null["condition"].values.tolist()[:6]:
        one, k = null.sel(condition=name), int(null["k"].sel(condition=name))
        controls = (
            f" Its {k} random controls moved it by {100 * float(one['null_low']):+.0f} to {100 * float(one['null_high']):+.0f} "
            f"points (permutation p = {float(one['p']):.2f}, at least {1 / (k + 1):.2f} with {k})." if k else ""
        )  # fmt: skip
        out.append(
            f"{name}: refusal {_interval(r.sel(condition=name))} against {_interval(base)} at baseline, a paired difference "
            f"of {_points(e.sel(condition=name))} points (n = {int(e['n'].sel(condition=name))}).{controls}"
        )
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


def pictures(run: xr.DataTree) -> dict[str, tuple[Figure, str]]:
    """Every picture by file name, with a text alternative."""
    harmful = headline_set(run)
    said = "; ".join(f"{r['name']} {r['refusal']}" for r in rows(run, harmful))
    shown = shown_conditions(run)
    out = {
        "rates": (figures.rates(run, harmful), f"Refusal rate of each condition with its interval: {said}."),
        "labels": (
            figures.labels(run, harmful),
            "Shares of refusal, compliance, evasive and degenerate answers per condition.",
        ),
        "categories": (figures.categories(run, harmful, shown), f"Refusal rate per category under {', '.join(shown)}."),
    }
    for axis in figures.varied(run):
        out[f"dose_{axis}"] = (figures.dose(run, axis, harmful), f"Refusal and degenerate rates against steer.{axis}.")
    return out


def write(run: xr.DataTree, folder: str | Path, full_text: bool = False) -> Path:
    """Write report.html and its pictures into `folder`; the page's path."""
    folder, drawn = Path(folder), []
    for name, (figure, alt) in pictures(run).items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        (folder / f"{name}.png").write_bytes(buffer.getvalue())
        drawn.append({"name": name, "alt": alt, "data": base64.b64encode(buffer.getvalue()).decode()})
    harmful = headline_set(run)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gating"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    done = analysis.group(run, "outcomes")["done"]
    page = environment.get_template("report.html.j2").render(
        attrs=run.attrs, headline=headline(run), rows=rows(run, harmful), harmless=rows(run, False) if asks_both(run) else [],
        pictures=drawn, samples=samples(run, full_text), full_text=full_text, harmful=harmful,
        warnings=json.loads(run.attrs.get("warnings", "[]")), versions=json.loads(run.attrs.get("versions", "{}")),
        done=int(done.sum()), total=done.size,
    )  # fmt: skip
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def main() -> None:
    """`python -m gating.report RUN...`: write each run's page again and print its table."""
    from rich.console import Console

    from gating import store

    parser = argparse.ArgumentParser(prog="python -m gating.report", description=main.__doc__)
    parser.add_argument("run", nargs="+", help="a run's folder or its store.zarr")
    parser.add_argument("--full-text", action="store_true", help="show whole prompts and answers")
    args = parser.parse_args()
    try:
        for path in args.run:
            tree = store.open_run(path)
            Console().print(table(tree))
            print(f"report: {write(tree, store.locate(path).parent, args.full_text)}")
    except GatingError as e:
        print(f"error: {e}")
        sys.exit(2)


if __name__ == "__main__":
    main()
