"""Families of claims as they are written down (conf/claims/NAME.yaml): their types, and what is refused before a
run."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Required, TypedDict, cast

from gating import foreign
from gating.analysis.claim_conditions import Kinds, Named, fits, is_text, members, weights
from gating.config_files import conf_dir
from gating.errors import GatingError, choices
from gating.foreign import shown
from gating.judging.labels import LABELS

TESTS = ("difference", "equivalence", "permutation")
EXPECT = ("below", "above")
PROMPTS = {"harmful": True, "harmless": False, "all": None}
MEASURES = ("refusal_score", "nll", "entropy", "repetition")


class Claim(TypedDict, total=False):
    """A contrast of conditions, `plus` against `minus`, with its test and margin (see gating.analysis.claims)."""

    says: Required[str]
    test: Required[str]
    plus: Required[list[Named]]
    minus: Required[list[Named]]
    null: list[Named]
    requires: list[str]  # claims of the family that must be supported, or this one is not testable
    expect: str
    margin: float
    label: str
    measure: str
    prompts: str
    paper: str
    needs: str


class Family(TypedDict, total=False):
    """Claims that are decided together: p values are adjusted over all of them, at level alpha. sites: whether they
    speak of the blocks and doses of `model.sites`, which must have been chosen on that very model."""

    family: Required[str]
    alpha: float
    sites: bool
    claims: Required[dict[str, Claim]]


KEYS, FAMILY_KEYS = tuple(Claim.__annotations__), set(Family.__annotations__)


def load(name_or_path: str) -> Family:
    """A family from conf/claims/NAME.yaml, or from the user's own file. Raises GatingError where there is no such
    file."""
    path = Path(name_or_path).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        folder = conf_dir() / "claims"
        path = folder / f"{name_or_path}.yaml"
        if not path.is_file():
            known = sorted(p.stem for p in folder.glob("*.yaml") if p.stem != "none")
            raise GatingError(
                f"claims={name_or_path!r}: use {choices(known, name_or_path)}, or the path of a .yaml file."
            )
    family = foreign.parse_yaml(foreign.read_text(path, "claims", foreign.MEGABYTE), f"claims: {path}")
    return check(family, str(path))


def check(family: object, source: str = "claims") -> Family:
    """The family, refused where it could not be evaluated. Raises GatingError naming the claim and the key."""
    if not isinstance(family, Mapping) or set(family) - FAMILY_KEYS or not is_text(family.get("family")):
        raise GatingError(f"{source}: a family of claims has the keys family (its name), alpha, sites and claims.")
    alpha = family.get("alpha", 0.05)
    if not isinstance(alpha, float) or not 0 < alpha < 0.5:
        raise GatingError(f"{source}: alpha={alpha!r}: use a level such as 0.05.")
    if not isinstance(family.get("claims"), Mapping) or not family["claims"]:
        raise GatingError(f"{source}: claims must map a name to each claim.")
    if not isinstance(family.get("sites", False), bool):
        raise GatingError(f"{source}: sites={family['sites']!r}: use true or false.")
    for name, claim in family["claims"].items():
        if not is_text(name):
            raise GatingError(f"{source}: {shown(repr(name), 80)} is no name of a claim; use a text of one line.")
        _check_claim(f"{source}: claims.{shown(name, 60)}", claim)
    _check_premises(source, family["claims"])
    return cast(Family, family)


def digest(family: Mapping[str, object]) -> str:
    """16 hex digits of a family as it was written: claims, margins, level. It stands in the store from the start."""
    return hashlib.sha256(json.dumps(family, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def check_conditions(family: Family, kinds: Kinds, source: str = "claims") -> None:
    """Refuse, before the run, a claim on a condition that it will not have. kinds: its conditions, name to kind."""
    for name, claim in family["claims"].items():
        try:
            weights(claim["plus"], claim["minus"], kinds)
            for entry in claim.get("null", []):
                members(entry, kinds)
        except GatingError as e:
            raise GatingError(f"{source}.{name}: {e}") from None


def _check_premises(source: str, claims: Mapping[str, Claim]) -> None:
    for name, claim in claims.items():
        seen, todo = {name}, list(claim.get("requires", []))
        while todo:
            premise = todo.pop()
            if premise not in claims:
                raise GatingError(
                    f"{source}: claims.{name}.requires={premise!r}: use {choices(list(claims), premise)}."
                )
            if premise == name:
                raise GatingError(f"{source}: claims.{name}.requires leads back to itself; drop one of the premises.")
            if premise not in seen:
                seen.add(premise)
                todo += claims[premise].get("requires", [])


def _check_claim(key: str, claim: object) -> None:
    if not isinstance(claim, Mapping):
        raise GatingError(f"{key} must be a mapping with says, test, plus, minus and margin.")

    def need(field: str, fine: bool, allowed: str) -> None:
        if not fine:
            raise GatingError(f"{key}.{field}={shown(repr(claim.get(field)), 120)}: use {allowed}.")

    for field in claim:
        need(str(field), field in KEYS, f"one of the keys {choices(KEYS, str(field))}")
    test, margin = claim.get("test"), claim.get("margin", 0.0)
    for field in ("says", "test", "expect", "label", "measure", "prompts", "paper", "needs"):
        need(field, field not in claim or is_text(claim[field]), "a text")
    need("says", "says" in claim, "a sentence that says what is claimed")
    need("test", test in TESTS, choices(TESTS, str(test)))
    need("null", "null" not in claim or test == "permutation", "it with test: permutation alone")
    for field in ("plus", "minus", *(["null"] if test == "permutation" else [])):
        need(field, _names_conditions(claim.get(field)), 'a list of conditions, each a name or {like: "name-*"}')
    if len(claim["plus"]) != len(claim["minus"]):
        raise GatingError(
            f"{key}: plus has {len(claim['plus'])} entries and minus {len(claim['minus'])}; a contrast takes as many "
            "away as it adds (a pattern is one entry, the mean of what it names)."
        )
    need("requires", _names(claim.get("requires", [])), "a list of claims of this family")
    need(
        "expect",
        (claim.get("expect") in EXPECT) is (test != "equivalence"),
        f"{choices(EXPECT)}, for difference and permutation",
    )
    number = isinstance(margin, int | float) and not isinstance(margin, bool) and math.isfinite(margin)
    limit = math.inf if claim.get("measure") else 1.0
    need("margin", number and -limit < margin < limit, "a number, for rates between -1 and 1 (0.1 is ten points)")
    need("margin", test != "equivalence" or margin > 0, "a positive number for equivalence")
    need("label", claim.get("label", "refusal") in LABELS, choices(LABELS))
    need("measure", claim.get("measure", "refusal_score") in MEASURES, choices(MEASURES))
    need("prompts", claim.get("prompts", "harmful") in PROMPTS, choices(PROMPTS))


def _names_conditions(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(fits(entry) for entry in value)


def _names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
