"""`python -m gating.export RUN --to csv|parquet|netcdf|inspect`: a run's outcomes, a row an answer; its arrays;
or a log that `inspect view` opens."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from gating import cli, extras, store
from gating.errors import GatingError, naming
from gating.reporting.frame import TEXTS, frame

FORMATS = {"csv": ".csv", "parquet": ".parquet", "netcdf": ".nc", "inspect": ".eval"}


def export(run: str | Path, to: str, out: str | Path | None = None, full_text: bool = False) -> Path:
    """Write a run as a file; its path. Never takes another file's place. Raises GatingError for one that is there."""
    path = store.locate(run)
    tree, place = store.open_run(path), Path(out) if out else path.parent / f"outcomes{FORMATS[to]}"
    if place.exists():
        raise GatingError(f"--out={place} exists; give another place, or remove it.")
    if to == "inspect" and place.suffix != FORMATS[to]:
        raise GatingError(f"--out={place}: Inspect lists logs that end in {FORMATS[to]}; name it so.")
    with naming(place):
        if to == "netcdf":
            extras.require("h5netcdf", "gating.export --to netcdf")
            _written(tree if full_text else _without_texts(tree), place)
        elif to == "inspect":
            extras.require("inspect_ai", "gating.export --to inspect")
            from gating.reporting import inspect_log

            inspect_log.write(tree, place, full_text)
        else:
            table = frame(tree, full_text)
            if to == "parquet":
                extras.require("pyarrow", "gating.export --to parquet")
                table.to_parquet(place, index=False)
            else:
                table.to_csv(place, index=False)
    return place


def _without_texts(tree: xr.DataTree) -> xr.DataTree:
    groups = {path: node.to_dataset().drop_vars([t for t in TEXTS if t in node.data_vars]) for path, node in
              tree.subtree_with_keys}  # fmt: skip
    out = xr.DataTree.from_dict({f"/{path}".replace("/.", "/"): ds for path, ds in groups.items()})
    out.attrs = tree.attrs
    return out


def _written(tree: xr.DataTree, place: Path) -> None:
    for node in tree.subtree:
        node.attrs = {k: v for k, v in node.attrs.items() if v is not None and not isinstance(v, dict)}
    tree.load().to_netcdf(place, engine="h5netcdf")


def main(argv: Sequence[str] | None = None) -> None:
    """Write runs' outcomes as a table (csv, parquet), or all of their arrays (netcdf), or a log for Inspect."""
    parser = argparse.ArgumentParser(prog="python -m gating.export", description=main.__doc__)
    parser.add_argument("run", nargs="+", help="a run's folder")
    parser.add_argument("--to", choices=FORMATS, required=True)
    parser.add_argument("--out", help="the file to write (of a single run); else outcomes.* in the run's folder")
    parser.add_argument("--full-text", action="store_true", help="prompts and answers too")
    args = parser.parse_args(argv)
    from rich.console import Console

    with cli.spoken(Console()):
        if args.out and len(args.run) > 1:
            raise GatingError("--out names one file, and there are several runs; leave it out.")
        for run in args.run:
            print(f"file: {export(run, args.to, args.out, args.full_text)}", flush=True)


if __name__ == "__main__":
    main()
