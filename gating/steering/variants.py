"""Variants of a direction: the same made again of other rows, to see how far its rows decide what it is and does.

`compliant#boot-3` is the fourth bootstrap: questions and pairs of instructions are drawn anew, with replacement, each
by itself, and every drawn question is asked under every drawn pair (Owen 2007, Ann. Appl. Stat. 1:386). Rows that share
a question or a wording are alike, so that to draw single rows would make a direction look surer than it is.
`compliant#half-a` and `compliant#half-b` share no question, and no wording where there are two or more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from gating.errors import GatingError
from gating.foreign import shown

BOOT = "boot"
HALVES = ("half-a", "half-b")
ENDING = re.compile(rf"(?P<whole>.+)#(?P<variant>{BOOT}-(?:0|[1-9][0-9]{{0,2}})|half-[ab])", re.DOTALL)
MOST = 1000  # bootstraps of a direction
KEYS = ("bootstrap", "halves")


def split(name: str) -> tuple[str, str]:
    """A direction's name without its variant, and that: `boot-3`, `half-a`, empty for the whole direction."""
    found = ENDING.fullmatch(name)
    return (found["whole"], found["variant"]) if found else (name, "")


def named(asked: Mapping[str, Mapping[str, int | bool]]) -> list[str]:
    """The variants that directions.variants asks for."""
    out: list[str] = []
    for whole, how in asked.items():
        out += [f"{whole}#{BOOT}-{i}" for i in range(how.get("bootstrap", 0))]
        out += [f"{whole}#{half}" for half in HALVES if how.get("halves")]
    return out


def check(asked: Mapping[str, object]) -> None:
    """Raises GatingError for an entry of directions.variants that is not {bootstrap: B, halves: true}."""
    for whole, how in asked.items():
        key = f"directions.variants.{shown(whole, 60)}"
        if not isinstance(how, Mapping) or not how or set(how) - set(KEYS):
            raise GatingError(f"{key}={shown(repr(how), 80)}: write {{bootstrap: 20, halves: true}}, or one of them.")
        n, halves = how.get("bootstrap", 0), how.get("halves", False)
        if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n <= MOST:
            raise GatingError(f"{key}.bootstrap={shown(repr(n), 40)}: give a whole number from 0 to {MOST:,}.")
        if not isinstance(halves, bool):
            raise GatingError(f"{key}.halves={shown(repr(halves), 40)}: use true or false.")
        if split(str(whole))[1] or "+" in str(whole):
            raise GatingError(f"{key}: variants are made of one whole direction; name it alone, without # and +.")


def rows(variant: str, questions: int, pairs: int, seed: int, name: str) -> np.ndarray:
    """Which rows a variant is made of, of `questions` x `pairs` (question by question): indices, some more than once in
    a bootstrap. Raises GatingError, naming the direction, for halves of a single question."""
    if variant in HALVES:
        if questions < 2:
            raise GatingError(
                f"steer.direction={name!r}: a single question has no halves; give directions more of them."
            )
        rng, half = np.random.default_rng([seed, 12]), HALVES.index(variant)
        of_questions, of_pairs = (np.array_split(rng.permutation(n), 2)[half] for n in (questions, pairs))
        if pairs < 2:
            of_pairs = np.arange(pairs)
    else:
        rng = np.random.default_rng([seed, 11, int(variant.removeprefix(f"{BOOT}-"))])
        of_questions, of_pairs = (rng.integers(n, size=n) for n in (questions, pairs))
    return np.add.outer(of_questions * pairs, of_pairs).ravel()
