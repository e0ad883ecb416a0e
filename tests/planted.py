"""`python -m tests.planted [N] [FILE] [KIND,...]`: N models of each kind with a known truth; do the verdicts find it?

The shipped experiments run on each model as on any other, with smaller sets and answers of five tokens, without
conditions that no claim reads. FILE keeps what was found, a line a run, so that the command given again goes on. Exits
with 1 where a claim is right in under 95% of a kind's draws or the opposite in over 1%, or where the interval of the
share mediated covers the planted one less often than binomial noise about 95% allows.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import xarray as xr
from scipy.stats import binom

if TYPE_CHECKING:
    from gating.pipeline.study import Study

SUPPORTED, REFUTED, UNTESTABLE = "supported", "refuted", "not testable"
VERDICTS = {"s": SUPPORTED, "r": REFUTED, "n": UNTESTABLE}
CLAIMED = ("gated", "minus", "independent", "keyword")  # kinds with a true answer to the claims
KINDS = (*CLAIMED, "partial")
SIZES = {"mediation": (64, 48), "refute": (64, 64), "paper": (64, 48)}  # harmful, harmless prompts
SMALL = ("max_new_tokens=5", "directions.response_tokens=3", "readouts.last=false", "model.batch_rows=2048",
         "readouts.lens=false", "readouts.tokens=false")  # fmt: skip
# The true verdict under each of CLAIMED; a claim about a direction's part that it does not have has none.
TRUTH = {
    "mediation": {
        "persona_suppresses": "ssrr", "indirect": "ssnn", "holding_restores": "ssnn", "no_direct_effect": "ssnn",
        "holding_is_specific": "ssnn", "holding_spares_harmless": "ssss",
    },
    "refute": {
        "persona_suppresses": "ssrr", "knockout_alone_does_nothing": "ssss", "knockout_alone_spares_harmless": "ssss",
        "knockout_spares_harmless": "ssss", "knockout_restores": "ssnn", "not_minus_refusal": "srnn",
        "more_than_its_refusal_part": "srnn", "prompted_persona_suppresses": "ssrr",
        "knockout_undoes_a_prompted_persona": "ssnn", "other_traits_do_not": "ssnn", "i_thou_as_much": "ssnn",
        "user_persona_less": "ssnn", "late_over_early_matched": "srnn", "earlier_persona_suppresses": "ssrr",
        "early_after_an_earlier_persona": "srnn", "removing_the_injected_vector_is_enough": "ssnn",
        "knockout_is_specific": "ssnn",
    },
    # in `minus` a knock-out to zero takes the refusal direction's projection out, and refusal with it
    "paper": {
        "suppression": "ssrr", "uncompliant_does_not": "ssss", "random_does_not": "ssnn", "specific": "ssnn",
        "late_restores_partly": "ssnn", "early_does_not": "srnn", "late_over_early": "srnn",
        "knockout_spares_harmless": "ssss", "knockout_restores": "srnn", "knockout_restores_to_baseline": "srnn",
        "random_knockout_does_not": "srnn", "knockout_before_cannot": "ssnn", "answers_stay_fluent": "ssnn",
    },
}  # fmt: skip


class Found(NamedTuple):
    """What one run said: verdicts by claim, and of each measure the planted share with the interval found."""

    experiment: str
    kind: str
    draw: int
    verdicts: dict[str, str]
    shares: dict[str, tuple[float, ...]]  # planted, estimate, low, high


@cache
def _prepared(experiment: str, kind: str) -> Study:
    """An experiment on a kind of model, without the conditions that no claim reads; batches of one size."""
    from gating.pipeline import study
    from tests.conftest import compose

    n, n_harmless = SIZES[experiment]
    names = ("model=planted", f"model.architecture={kind}", f"experiment={experiment}")
    run, choices, keys = compose(*names, f"data.n={n}", f"data.n_harmless={n_harmless}", *SMALL)
    entries = [e for c in run.claims["claims"].values() for key in ("plus", "minus", "null") for e in c.get(key, [])]
    read = [e if isinstance(e, str) else re.sub(r"-(random|matched)-\*$", "", e["like"]) for e in entries]
    if kind not in CLAIMED:  # only the share is asked of it
        read, run.claims = ["persona", "held", "given"], {}
    run.conditions = {k: v for k, v in run.conditions.items() if any(fnmatchcase(k, pattern) for pattern in read)}
    planned = study.prepare(run, choices, keys)
    run.model.batch_rows = len(planned.conditions) * -(-len(planned.test) // 4)
    return planned


def find(experiment: str, kind: str, draw: int, folder: str) -> Found:
    """Run an experiment on a model, and read its verdicts and, of `partial`, the share mediated."""
    import gating
    from gating.analysis import claims
    from gating.pipeline import execute

    prepared = _prepared(experiment, kind)
    run = replace(prepared.run, model=replace(prepared.run.model, id=str(draw)))
    planned = replace(prepared, run=run, folder=Path(folder) / "run")  # what was prepared holds for every draw
    execute.execute(planned)
    tree = gating.open_run(planned.folder)
    verdicts = {}
    if planned.claims:
        verdict = claims.evaluate(tree, cast(claims.Family, planned.claims))["verdict"]
        verdicts = dict(zip(verdict["claim"].values.tolist(), verdict.values.tolist(), strict=True))
    return Found(experiment, kind, draw, verdicts, shares(tree, kind, draw) if experiment == "mediation" else {})


def shares(run: xr.DataTree, kind: str, draw: int) -> dict[str, tuple[float, ...]]:
    """The planted share of a `partial` model and the one found, at the first-token score and in the text.

    In the text an answer is a refusal where harm exceeds the threshold, and comes back, when refusal is held, where it
    exceeds threshold and assent: harm is uniform.
    """
    from gating import analysis
    from gating.models import circuits

    if kind != "partial":
        return {}
    fact, (least, most) = circuits.planted(kind, draw), circuits.HARM
    above = np.clip((most - circuits.THRESHOLD - np.array([0, fact.assent])) / (most - least), 0, 1)
    planted = {"refusal_score": fact.share, "refusal": above[1] / above[0]}
    out = {}
    for measure, truth in planted.items():
        found = analysis.mediation(run, "persona", "held", "given", measure).sel(effect="share_held")
        out[measure] = (float(truth), *(float(found[k]) for k in ("estimate", "low", "high")))
    return out


def wanted(n: int, kinds: tuple[str, ...]) -> Iterator[tuple[str, str, int]]:
    """Every run, so that all kinds and experiments get on alike."""
    for draw in range(n):
        for experiment in TRUTH:
            yield from ((experiment, kind, draw) for kind in kinds if experiment == "mediation" or kind in CLAIMED)


def judged(found: list[Found]) -> list[str]:
    """A line for each claim and kind, and for each measure's coverage; what misses the bar begins with `wrong`."""
    lines = []
    for experiment, claims in TRUTH.items():
        for name, truth in claims.items():
            for kind, letter in zip(CLAIMED, truth, strict=True):
                said = [f.verdicts[name] for f in found if (f.experiment, f.kind) == (experiment, kind)]
                if said:
                    lines.append(_judged(f"{kind:12} {experiment}.{name}", VERDICTS[letter], said))
    for measure in ("refusal_score", "refusal"):
        drawn = [f.shares[measure] for f in found if measure in f.shares]
        covered = sum(low <= truth <= high for truth, _, low, high in drawn)
        if drawn:
            least = int(binom.ppf(0.025, len(drawn), 0.95))
            bias = float(np.mean([estimate - truth for truth, estimate, *_ in drawn]))
            text = f"share_held of {measure} covers the planted one in {covered} of {len(drawn)}, bias {bias:+.4f}"
            lines.append(("" if covered >= least else "wrong: ") + text)
    return lines


def _judged(what: str, truth: str, said: list[str]) -> str:
    right = said.count(truth)
    opposite = sum(v in (SUPPORTED, REFUTED) and v != truth for v in said)
    good = right >= 0.95 * len(said) and opposite <= 0.01 * len(said)
    others = {v: said.count(v) for v in sorted(set(said) - {truth})}
    start = "" if good else "wrong: "
    return f"{start}{what}: {truth} in {right} of {len(said)}, opposite in {opposite} {others or ''}".rstrip()


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    kept = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    kinds = tuple(sys.argv[3].split(",")) if len(sys.argv) > 3 else KINDS
    lines = kept.read_text().splitlines() if kept and kept.is_file() else []
    found = [Found(**json.loads(line)) for line in lines]
    known = {(f.experiment, f.kind, f.draw) for f in found}
    gc.disable()
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):  # progress bars
        for run in wanted(n, kinds):
            if run in known:
                continue
            with tempfile.TemporaryDirectory() as folder:
                found.append(find(*run, folder))
            gc.collect(0)
            if kept:
                with kept.open("a") as out:
                    out.write(json.dumps(found[-1]._asdict()) + "\n")
    lines = judged(found)
    print(*lines, sep="\n")
    sys.exit(any(line.startswith("wrong") for line in lines))


if __name__ == "__main__":
    main()
