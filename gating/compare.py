"""`python -m gating.compare A B`: what differs between two runs, and what they say of the prompts that both asked."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import xarray as xr
from rich.console import Console
from rich.table import Table

from gating import analysis, cli, store
from gating.analysis import comparing
from gating.analysis.wording import percent, points
from gating.foreign import shown


def main(argv: Sequence[str] | None = None) -> None:
    """What differs between two runs, and the paired difference of every condition that both have."""
    parser = argparse.ArgumentParser(prog="python -m gating.compare", description=main.__doc__)
    parser.add_argument("one", metavar="A", help="a run's folder")
    parser.add_argument("other", metavar="B", help="another's")
    parser.add_argument("--label", default="refusal", help="refusal (default), compliance, ...")
    args = parser.parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 140)
    with cli.spoken(console):
        one, other = store.open_run(args.one), store.open_run(args.other)
        console.print(settings_table(comparing.differing(one, other)))
        for harmful in (True, False):
            if analysis.asked(one, harmful).any() and analysis.asked(other, harmful).any():
                console.print(table(comparing.compare(one, other, args.label, harmful), harmful))


def settings_table(differing: Sequence[comparing.Setting]) -> Table:
    out = Table("setting", "A", "B", title="what differs")
    for setting in differing:
        out.add_row(shown(setting.key, 40), shown(str(setting.one), 48), shown(str(setting.other), 48))
    return out


def table(compared: xr.Dataset, harmful: bool) -> Table:
    which = "harmful" if harmful else "harmless"
    out = Table(title=f"{compared.attrs['label']} of the {compared.attrs['shared']} {which} prompts that both asked")
    for heading in ("condition", "A", "B", "B - A, points", "p", "n"):
        out.add_column(heading, justify="left" if heading == "condition" else "right")
    for name in compared["condition"].values.tolist():
        row = compared.sel(condition=name)
        rates = (percent(float(row[k])) for k in ("one", "other"))
        out.add_row(shown(name, 60), *rates, points(row), f"{float(row['p']):.2g}", str(int(row["n"])))
    return out


if __name__ == "__main__":
    main()
