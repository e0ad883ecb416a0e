"""A policy: thresholds on the ends of intervals, and whether an audit keeps within them.

A rule is kept where the whole interval lies on the right side of its threshold, broken where the whole interval lies on
the wrong one, and undecided in between or where nothing was measured.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import xarray as xr

from gating.auditing.cells import SETS, places
from gating.auditing.stages import AGAIN, NONE, PROMPT, STEERING
from gating.errors import GatingError, choices
from gating.foreign import shown
from gating.judging.labels import LABELS

INDUCTIONS = (NONE, PROMPT, STEERING, AGAIN)
MEASURES = (*LABELS, "change", "against_base")
KEYS = ("says", "set", "measure", "inductions", "at_least", "at_most", "except", "models")
MODELS = ("base", "adapters", "all")
KEPT, BROKEN, UNDECIDED = "kept", "broken", "undecided"


class Decided(NamedTuple):
    """What a rule says of one cell."""

    rule: str
    says: str
    model: str
    induction: str
    persona: str
    value: float
    low: float
    high: float
    n: int
    threshold: str
    verdict: str


def check(policy: dict[str, Any]) -> None:
    """Raises GatingError for a policy that cannot be applied, naming the key."""
    if not policy:
        return
    if set(policy) - {"policy", "undecided", "level", "rules"} or not isinstance(policy.get("rules"), dict):
        raise GatingError("policy: write `policy`, `undecided` (broken or kept), `level` and `rules`, a mapping.")
    if policy.get("undecided", BROKEN) not in (BROKEN, KEPT):
        raise GatingError(f"policy.undecided={shown(policy['undecided'], 40)}: use broken or kept.")
    level = policy.get("level", 0.95)
    if isinstance(level, bool) or not isinstance(level, float) or not 0.5 <= level < 1:
        raise GatingError(f"policy.level={shown(level, 40)}: use a number from 0.5 to below 1, such as 0.95.")
    for name, rule in policy["rules"].items():
        _check_rule(f"policy.rules.{shown(name, 60)}", rule)


def check_by_prompt(policy: dict[str, Any]) -> None:
    """Raises GatingError for a rule on steering, where a model can be asked by prompt alone: it could not be decided,
    and a policy is not kept by what nobody tried."""
    for name, rule in policy.get("rules", {}).items():
        if rule.get("models", "all") != "adapters" and {STEERING, AGAIN} & set(rule["inductions"]):
            raise GatingError(
                f"policy.rules.{shown(name, 60)} speaks of steering, which an API does not allow; use "
                "policy=release, or a policy whose rules are of none and prompt."
            )


def _check_rule(key: str, rule: Any) -> None:
    if not isinstance(rule, dict):
        raise GatingError(f"{key} is {shown(repr(rule), 60)}: write says, set, measure, inductions and a threshold.")
    for field in rule:
        if field not in KEYS:
            raise GatingError(f"{key}.{shown(field, 60)} is no part of a rule: use {choices(KEYS, str(field))}.")
    for field, allowed in (("set", SETS), ("measure", MEASURES)):
        if rule.get(field) not in allowed:
            raise GatingError(f"{key}.{field}={shown(repr(rule.get(field)), 60)}: use {choices(allowed, '')}.")
    given = rule.get("inductions")
    if not isinstance(given, list) or not given or not set(given) <= set(INDUCTIONS):
        raise GatingError(f"{key}.inductions={shown(repr(given), 80)}: give a list of {choices(INDUCTIONS, '')}.")
    spared = rule.get("except", [])
    if not isinstance(spared, list) or not all(isinstance(name, str) for name in spared):
        raise GatingError(f"{key}.except={shown(repr(spared), 80)}: give a list of personas' names.")
    if rule.get("models", "all") not in MODELS:
        raise GatingError(f"{key}.models={shown(repr(rule['models']), 60)}: use {choices(MODELS, '')}.")
    bounds = [rule[b] for b in ("at_least", "at_most") if rule.get(b) is not None]
    if len(bounds) != 1 or isinstance(bounds[0], bool) or not isinstance(bounds[0], int | float):
        raise GatingError(f"{key}: give a number as at_least or as at_most, one of the two.")


def decide(policy: dict[str, Any], found: xr.Dataset) -> list[Decided]:
    """Every rule on every cell that it speaks of. found: from cells.findings."""
    out = []
    for name, rule in policy.get("rules", {}).items():
        spared, which = rule.get("except", []), rule.get("models", "all")
        for c, (model, induction, persona) in enumerate(places(found)):
            if induction not in rule["inductions"] or persona in spared:
                continue
            if which != "all" and (which == "base") != (model == "base"):
                continue
            if rule["measure"] == "against_base" and model == "base":
                continue
            row = found.isel(cell=c).sel(set=rule["set"])
            out.append(_decided(name, rule, (model, induction, persona), row))
    return out


def _decided(name: str, rule: dict[str, Any], place: tuple[str, str, str], row: xr.Dataset) -> Decided:
    measure = rule["measure"]
    value, low, high = (float(row[f"{measure}{end}"]) for end in ("", "_low", "_high"))
    n = int(row["n"] if measure in LABELS else row[f"{measure}_n"])
    least, most = (cast("float | None", rule.get(bound)) for bound in ("at_least", "at_most"))
    if not np.isfinite([low, high]).all():
        verdict = UNDECIDED
    elif least is not None:
        verdict = KEPT if low >= least else BROKEN if high < least else UNDECIDED
    else:
        assert most is not None
        verdict = KEPT if high <= most else BROKEN if low > most else UNDECIDED
    threshold = f"at least {least:g}" if least is not None else f"at most {most:g}"
    return Decided(name, str(rule.get("says", name)), *place, value, low, high, n, threshold, verdict)


def verdict(policy: dict[str, Any], decided: list[Decided]) -> str:
    """Of the whole policy: broken where a rule is, or where one is undecided and the policy counts that as broken."""
    if not decided:
        return UNDECIDED
    counts = {d.verdict for d in decided}
    if BROKEN in counts:
        return BROKEN
    return str(policy.get("undecided", BROKEN)) if UNDECIDED in counts else KEPT
