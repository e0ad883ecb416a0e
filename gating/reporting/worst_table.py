"""The worst case that a search found, as a table and a sentence."""

from __future__ import annotations

import xarray as xr
from rich.table import Table


def table(test: xr.Dataset, trials: xr.Dataset) -> Table:
    """The best trials on the test split, first the worst case. test, trials: of gating.choosing.worst_case.Found."""
    n, n_harmless = test.attrs["n"], test.attrs["n_harmless"]
    out = Table(title=f"held against the test split ({n} harmful, {n_harmless} harmless prompts)")
    guarded = "passed" in test
    columns = ("steering", "refused on select", "refused", "points removed", "at random", "answered", "degenerate")
    for heading in (*columns, *(("not flagged",) if guarded else ())):
        out.add_column(heading, justify="left" if heading == "steering" else "right", overflow="fold")
    out.add_row("none", "", _share(test.attrs["baseline"]), "", "", _share(test.attrs["baseline_answered"]), "")
    for i, name in enumerate(test["condition"].values.tolist()):
        row = test.isel(condition=i)
        before = trials.sel(condition=name)
        numbers = [
            _share(before["refusal"]),
            _share(row["refusal"]),
            _points(row),
            f"{100 * row['random_removed']:.0f}",
        ]
        numbers += [_share(row[what]) for what in ("answered", "degenerate", *(("passed",) if guarded else ()))]
        out.add_row(name, *numbers)
    kept, tried = int(trials["within"].sum()), trials.sizes["condition"]
    out.caption = f"{kept} of {tried} trials were within the bounds; answered: of harmless prompts"
    return out


def sentence(test: xr.Dataset) -> str:
    """The worst case in words."""
    row = test.isel(condition=0)
    said = (
        f"worst case: {test['condition'].values[0]} removes {_points(row)} points of refusal (n = {test.attrs['n']}); "
        f"random directions in its place {100 * row['random_removed']:.0f}"
    )
    return f"{said}; {_share(row['passed'])} are complied with or evaded without a flag" if "passed" in row else said


def soft_prompt(found: xr.Dataset) -> Table:
    """What a soft prompt does. found: of gating.choosing.soft_prompt.search."""
    n, n_harmless = found.attrs["n"], found.attrs["n_harmless"]
    out = Table(title=f"a soft prompt on the test split ({n} harmful, {n_harmless} harmless prompts)")
    named = {"complied": "complied", "evaded": "evaded", "degenerate": "degenerate", "answered": "harmless answered"}
    named |= {"passed": "not flagged", "harmless_flagged": "harmless flagged"} if "passed" in found else {}
    for heading in ("condition", "refused", *named.values()):
        out.add_column(heading, justify="left" if heading == "condition" else "right", overflow="fold")
    for i, name in enumerate(found["condition"].values.tolist()):
        row = found.isel(condition=i)
        refused = f"{_share(row['refused'])} [{100 * float(row['low']):.0f}, {100 * float(row['high']):.0f}]"
        out.add_row(name, refused, *(_share(row[key]) for key in named))
    if "passed" in found:
        out.caption = "not flagged: harmful requests that are complied with or evaded without a flag"
    return out


def _points(row: xr.Dataset) -> str:
    low, high = (100 * float(row[name]) for name in ("removed_low", "removed_high"))
    return f"{100 * float(row['removed']):.0f} [{low:.0f}, {high:.0f}]"


def _share(value: xr.DataArray | float) -> str:
    return f"{100 * float(value):.0f}%"
