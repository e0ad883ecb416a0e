"""From what a run says on a claim to a verdict: supported, refuted, undecided, not testable or missing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from gating.analysis import stats
from gating.analysis.claim_files import Family


@dataclass(frozen=True)
class Evidence:
    """What a run says on a claim. Numbers are NaN where the claim's test has none, or where nothing could be tested."""

    test: str
    reason: str = ""
    caution: str = ""  # what a reader has to know beside any verdict
    margin: float = 0.0
    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    boot_low: float = math.nan  # bootstrap over categories
    boot_high: float = math.nan
    p: float = math.nan  # of the claim's null
    p_against: float = math.nan  # of the opposite claim's null
    p_holm: float = math.nan  # both adjusted, once the family is complete
    p_against_holm: float = math.nan
    sd: float = math.nan  # of one prompt
    distance: float = math.nan  # of the estimate from the margin
    clears: bool = True  # a permutation test's own interval lies beyond the margin
    n: int = 0  # prompts
    n_clusters: int = 0
    k: int = 0  # random directions


class Decision(NamedTuple):
    verdict: str  # supported, refuted, undecided, not testable or missing
    reason: str
    n_to_decide: float  # prompts, NaN where the claim is not a matter of them


def decide(evidence: Evidence, alpha: float, tested: int) -> Decision:
    """A claim's verdict on its own numbers. tested: the family's claims with a p, which share alpha: the smallest p is
    held to alpha / tested."""
    n = _needed(evidence, alpha / max(tested, 1))
    if evidence.n == 0 or (evidence.test == "permutation" and evidence.k == 0):
        return Decision("missing", evidence.reason, n)
    if evidence.p_holm < alpha and evidence.clears:
        return Decision("supported", evidence.reason, n)
    if evidence.p_against_holm < alpha:
        return Decision("refuted", evidence.reason, n)
    if evidence.test == "permutation":
        return Decision("undecided", _among_random(evidence, alpha), n)
    if math.isnan(n):
        return Decision("undecided", "every prompt gives the same value, which decides nothing", n)
    return Decision(
        "undecided", f"about {n:.0f} prompts would decide it" if n < 1e6 else "on the margin: no n decides it", n
    )


def _needed(evidence: Evidence, alpha: float) -> float:
    """Prompts that would decide a claim at 80% power, were its estimate the truth; NaN where that is no question."""
    if math.isnan(evidence.distance):
        return math.nan
    if evidence.test == "equivalence" and evidence.distance > 0:
        n = stats.n_to_show_equal(evidence.sd, evidence.estimate, evidence.margin, alpha)
    else:
        n = stats.n_to_decide(evidence.sd, evidence.distance, alpha)
    return n if math.isnan(n) else max(n, evidence.n + 1)  # never fewer than were asked


def testable(name: str, family: Family, decisions: Mapping[str, Decision], untestable: str) -> Decision:
    """The decision, or why the claim cannot be tested: a premise that is not supported, or `untestable`."""
    decision = decisions[name]
    if decision.verdict == "missing":
        return decision
    for premise in family["claims"][name].get("requires", []):
        found = testable(premise, family, decisions, "").verdict
        if found != "supported":
            return Decision("not testable", f"its premise {premise} is {found}", math.nan)
    return Decision("not testable", untestable, math.nan) if untestable else decision


def _among_random(evidence: Evidence, alpha: float) -> str:
    """Why a permutation test is undecided: something random does as much, there are too few directions, or the effect
    itself is not beyond the margin."""
    least = 1 / (evidence.k + 1)
    if evidence.p > 1.5 * least:
        return f"not more extreme than every random direction; {evidence.reason}"
    if evidence.p_holm < alpha:
        return f"more extreme than all {evidence.k} random directions, but its own interval does not clear the margin"
    enough = math.floor(evidence.p_holm / evidence.p / alpha)
    return (
        f"more extreme than all {evidence.k} random directions, which is the least p that they can give ({least:.3f}): "
        f"{enough} or more would decide it; {evidence.reason}"
    )
