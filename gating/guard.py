"""`python -m gating.guard RUN [test=RUN]`: calibrate a monitor over tokens on one run, try it on another."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gating import cli, extras, store, words
from gating.errors import GatingError, choices
from gating.foreign import cell
from gating.guarding import calibrate as calibrating
from gating.guarding import evaluate, file
from gating.guarding.calibrate import calibrate
from gating.guarding.rows import Roles

__all__ = ["calibrate", "main"]
KEYS = ("test", "guard", "fpr", "window", "attack", "benign", "out", "act", "cascade")
ACTIONS = ("note", "restore", "reopen", "cap", "header", "stop")


def main(argv: list[str] | None = None) -> None:
    """Calibrate a monitor on RUN (experiment=guard, data.split=select) and write guard.json beside it; with test=RUN2
    try it there. guard=FILE tries a guard on RUN instead."""
    parser = argparse.ArgumentParser(prog="python -m gating.guard", description=main.__doc__)
    parser.add_argument(
        "words", nargs="+", metavar="RUN | key=value",
        help="fpr=0.01 window=4 out=guard.json test=RUN2; attack=NAME,... benign=NAME,... are conditions "
        "(attack_* and benign_* by default); act=note|restore|reopen|cap|header|stop answers again what is flagged, "
        "with the guard acting; cascade=true asks the learned judge before a flag counts (with act=)",
    )  # fmt: skip
    args = parser.parse_intermixed_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 140)
    with cli.spoken(console):
        runs, values = words.parsed(args.words, KEYS)
        _check(runs, values)
        if "guard" in values:
            guard, tested = file.load(values["guard"]), runs[0]
        else:
            guard, tested = _calibrated(console, runs[0], values), values.get("test", "")
        if tested:
            _tried(console, guard, tested, values)


def _check(runs: list[str], values: dict[str, str]) -> None:
    if len(runs) != 1:
        raise GatingError(f"{len(runs)} runs are given: give one to calibrate on, and test=RUN to try the guard on.")
    if "guard" in values and (clash := {"test", "fpr", "window", "attack", "benign", "out"} & set(values)):
        raise GatingError(f"{min(clash)} with guard=FILE: a guard is tried on RUN as it stands; leave it out.")
    if values.get("act", "note") not in ACTIONS:
        raise GatingError(f"act={values['act']!r}: use {choices(ACTIONS, values['act'])}.")
    if "act" in values and not {"guard", "test"} & set(values):
        raise GatingError("act: there is no run to act on; give test=RUN or guard=FILE.")
    if values.get("cascade", "false") not in ("true", "false") or ("cascade" in values and "act" not in values):
        raise GatingError(f"cascade={values['cascade']!r}: use true or false, together with act=.")


def _calibrated(console: Console, path: str, values: dict[str, str]) -> file.Guard:
    text = values.get("fpr", str(calibrating.FPR))
    if not re.fullmatch(r"0?\.[0-9]{1,6}", text) or not 0 < float(text) <= 0.5:
        raise GatingError(f"fpr={text!r}: give a share above 0 and at most 0.5, such as 0.01.")
    window = words.number(values, "window", 1, 10_000) or calibrating.WINDOW
    roles = Roles(**{key: tuple(values[key].split(",")) for key in ("attack", "benign") if key in values})
    guard = calibrate(store.open_run(path), float(text), window, roles=roles)
    out = Path(values.get("out") or store.locate(path).parent / "guard.json").expanduser()
    digest = file.save(guard, out)
    found = guard.calibration
    dealt = found["auroc_random_labels"]
    console.print(
        f"blocks {', '.join(map(str, guard.layers))}, window {guard.window}; on held-out folds "
        f"(by {found['grouped_by']}): TPR {_rate(found['tpr'])}, FPR {_rate(found['fpr'])}, AUROC "
        f"{_number(found['auroc'])}; with labels dealt out anew {_number(dealt['mean'])} "
        f"({_number(dealt['low'])} to {_number(dealt['high'])}, {dealt['draws']} draws)",
        soft_wrap=True, highlight=False, markup=False,
    )  # fmt: skip
    if unknown := ", ".join(f"{name} {_rate(of, n=False)}" for name, of in found["unknown"].items()):
        console.print(
            f"found of an attack when the others alone are calibrated on: {unknown}",
            soft_wrap=True, highlight=False, markup=False,
        )  # fmt: skip
    alone = ", ".join(f"{name} {_number(area)}" for name, area in found["auroc_alone"].items())
    console.print(f"AUROC of one direction by itself: {alone}", soft_wrap=True, highlight=False, markup=False)
    print(f"guard: {out} (sha256 {digest[:12]})", flush=True)
    return guard


def _tried(console: Console, guard: file.Guard, path: str, values: dict[str, str]) -> None:
    run = store.open_run(path)
    found = evaluate.evaluate(guard, run)
    table = Table("condition", "answers", "flagged", "n", "median delay", title=f"flags on {found['run']}")
    for row in found["conditions"]:
        table.add_row(
            cell(row["condition"]), row["answers"], _rate(row, n=False), str(row["n"]), _number(row["delay"], 0)
        )
    console.print(table)
    console.print(
        f"TPR {_rate(found['tpr'])}, FPR {_rate(found['fpr'])}, with answers that evade a harmless request "
        f"{_rate(found['fpr_with_evasions'])}, AUROC {_number(found['auroc'])}, median delay "
        f"{_number(found['delay'], 0)} tokens",
        soft_wrap=True, highlight=False, markup=False,
    )  # fmt: skip
    if "act" in values:
        extras.require("torch", "gating.guard act=")
        from gating.guarding.trial import trial

        console.print(_acted(trial(guard, run, values["act"], values.get("cascade") == "true"), values["act"]))


def _acted(found: list[dict[str, Any]], action: str) -> Table:
    columns = ("condition", "requests", "flagged", "counted", "same token", "before", "after", "median delay")
    table = Table(*columns, title=f"flagged answers made again, action {action}")
    for row in found:
        before, after = (", ".join(f"{k} {n}" for k, n in sorted(row[w].items())) for w in ("before", "after"))
        numbers = [str(row[k]) for k in ("flagged", "counted", "same_token")]
        table.add_row(cell(row["condition"]), row["requests"], *numbers, before, after, _number(row["delay"], 0))
    return table


def _rate(found: dict[str, Any], n: bool = True) -> str:
    """A rate with its interval, and the more cautious one where prompts come more than once."""
    if found["rate"] is None:
        return "-"
    ends = f"{found['low']:.0%} to {found['high']:.0%}"
    if found["prompts"] < found["n"]:
        ends += f"; by prompt {found['low_by_prompt']:.0%} to {found['high_by_prompt']:.0%}"
    counted = f", n = {found['n']} of {found['prompts']} prompts" if n else ""
    return f"{found['rate']:.1%} ({ends}{counted})"


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    main()
