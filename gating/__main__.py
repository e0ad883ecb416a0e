"""`gating`, `python -m gating`: which commands there are, and each of them by its name."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from gating import __version__
from gating.errors import choices

COMMANDS = {
    "run": "steer a model along a persona direction and report refusal rates",
    "choose": "where and how strongly a persona acts on a model, chosen on the select split",
    "worst": "the steering that lowers refusal most while answers stay in order",
    "rejudge": "show a run's answers to another judge and keep its labels beside them",
    "label": "label a blinded sample of a run's answers yourself; rates corrected for the judge's errors",
    "report": "write a run's page again; print its table and its claims' verdicts",
    "results": "a page of results from the stores of several runs",
    "runs": "every run of a folder: what it is, how far it is, what it says",
    "view": "a page in which people read answers side by side across conditions",
    "compare": "what differs between two runs, and the paired difference of what they share",
    "export": "a run's answers as a table (csv, parquet), its arrays (netcdf), or a log for Inspect",
    "push": "a run's directions, rates and card to a dataset repository of the Hugging Face hub",
    "audit": "how far personas move a model's refusal, against a policy that can gate a release",
    "guard": "calibrate a monitor over tokens on a run, and try it on another",
    "serve": "an OpenAI-compatible endpoint whose requests are steered and guarded one by one",
    "meta": "several models in one answer: effects, their mean, a forest plot",
    "verify": "read every file of a run's store; say which is not as it was written",
    "selection": "the candidates of a selection run and the refusal direction to use",
    "train": "give the embedded model a refusal habit, as a small adapter",
}


def main() -> None:
    """Which commands there are; each says more with --help. `gating NAME ...` is `python -m gating.NAME ...`."""
    name, *words = sys.argv[1:] or [""]
    if name in COMMANDS:
        sys.argv = [f"gating {name}", *words]
        import_module(f"gating.{name}").main()
        return
    parser = argparse.ArgumentParser(prog="gating", description=main.__doc__)
    _, rest = parser.parse_known_args()
    if rest:
        parser.error(f"{rest[0]!r}: write gating COMMAND, with {choices(COMMANDS, rest[0])}")
    print(f"gating {__version__}: does a persona gate a behaviour?\n")
    for name, purpose in COMMANDS.items():
        print(f"  python -m gating.{name:<10} {purpose}")
    print("\nEach takes --help. `gating run` is `python -m gating.run`.")
    print("`pip install gating` reads stores; gating[run] runs models.")


if __name__ == "__main__":
    main()
