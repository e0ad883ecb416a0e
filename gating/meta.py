"""`python -m gating.meta RUN...`: several models in one answer, from a run of each."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Mapping
from pathlib import Path

import xarray as xr
from rich.console import Console

from gating import analysis, cli, store, swap, words
from gating.analysis import alike, claims, meta
from gating.analysis.claims import Family
from gating.errors import GatingError, naming
from gating.figures.forest import forest
from gating.reporting.meta_table import meta_table
from gating.reporting.rows import own_claims


def answer(runs: Mapping[str, xr.DataTree], named: str | None) -> xr.Dataset:
    """The runs' own claims over their models; those of `named` where given; contrasts where there are neither. runs: by
    path. Raises GatingError where the runs do not ask the same."""
    sites = alike.check_alike(runs)
    family = claims.load(named) if named is not None else _own(runs)
    by_model = _models(runs)
    if family:
        ds = meta.judged(meta.combine(by_model, family), family)
    else:
        both = all(analysis.asked(run, True).any() for run in runs.values())
        ds = meta.combine(by_model, meta.contrasts(by_model, "harmful" if both else "harmless"))
    return ds.assign_attrs(post_hoc=named is not None, sites="\n".join(sites))


def _own(runs: Mapping[str, xr.DataTree]) -> Family | None:
    (first, family), *others = ((path, own_claims(run)) for path, run in runs.items())
    for path, other in others:
        if other != family:
            raise GatingError(
                f"{first} and {path} were begun with different claims; name a family for both with --claims."
            )
    return family


def _models(runs: Mapping[str, xr.DataTree]) -> dict[str, xr.DataTree]:
    """The runs by their models' names; by their folders' too where two models share one."""
    ids = [str(run.attrs["model_id"]) for run in runs.values()]
    return {
        name if ids.count(name) == 1 else f"{name} ({store.locate(path).parent.name})": run
        for name, (path, run) in zip(ids, runs.items(), strict=True)
    }


def main() -> None:
    """Combine the effects of several models: a table, a forest plot and a file of every number."""
    parser = argparse.ArgumentParser(prog="python -m gating.meta", description=main.__doc__)
    parser.add_argument(
        "words", nargs="+", metavar="RUN | judge=NAME", help="runs, one a model, and whose labels to count"
    )
    parser.add_argument("--claims", help="combine these (a name in conf/claims or a file), named after the runs")
    parser.add_argument("--out", default="meta", help="the folder of meta.json and forest.png (default: meta)")
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    with cli.spoken(console):
        runs, values = words.parsed(args.words, ("judge",))
        trees = {path: analysis.with_judge(store.open_run(path), values.get("judge")) for path in runs}
        ds = answer(trees, args.claims)
        console.print(meta_table(ds))
        _write(ds, Path(args.out))


def _write(ds: xr.Dataset, folder: Path) -> None:
    picture = io.BytesIO()
    forest(ds).savefig(picture, format="png")
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        swap.write(folder / "meta.json", meta.to_json(ds) + "\n")
        swap.write(folder / "forest.png", picture.getvalue())
    print(f"table: {folder / 'meta.json'}\npicture: {folder / 'forest.png'}")


if __name__ == "__main__":
    main()
