"""Which conditions a claim names, and their weights in its contrast.

A condition stands under its name, letter by letter: names may hold brackets and stars. `{like: "a-random-*"}` asks for
all whose name fits, `*` for any characters; `kind` beside it keeps to one kind. What fits is a mean, so that it must be
of one kind: a pattern that took in a direction's reversal or its controls would average what is to be contrasted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from gating.errors import GatingError, choices
from gating.foreign import shown

Named = str | Mapping[str, str]
Kinds = Mapping[str, str]  # of every condition by its name, in the run's order
KEYS = ("like", "kind")


def members(named: Named, kinds: Kinds) -> list[str]:
    """The conditions that an entry of a claim names. Raises GatingError for none, and for several kinds."""
    if isinstance(named, str):
        if named not in kinds:
            raise GatingError(f"the run has no condition {named!r}{_hint(named, kinds)}")
        return [named]
    pattern = ".*".join(re.escape(part) for part in named["like"].split("*"))
    fits = [n for n in kinds if re.fullmatch(pattern, n) and named.get("kind") in (None, kinds[n])]
    if not fits:
        raise GatingError(f"the run has no condition like {named['like']!r}")
    found = list(dict.fromkeys(kinds[n] for n in fits))
    if len(found) > 1:
        first = [next(n for n in fits if kinds[n] == k) for k in found]
        raise GatingError(
            f"{{like: {named['like']!r}}} names conditions of several kinds ({first[0]}: {found[0]}, {first[1]}: "
            f"{found[1]}); add kind: {found[0]}, or write the names out."
        )
    return fits


def _hint(named: str, kinds: Kinds) -> str:
    if "*" in named:
        return f"; for all whose name fits write {{like: {named!r}}}"
    return f"; it has {choices(list(kinds), named)}"


def weights(plus: Sequence[Named], minus: Sequence[Named], kinds: Kinds) -> dict[str, float]:
    """Each condition's weight in the contrast: +1 an entry of `plus`, -1 one of `minus`, shared by what it names.
    Raises GatingError for a condition that is not there, or that stands on both sides."""
    out: dict[str, float] = {}
    for entries, sign in ((plus, 1.0), (minus, -1.0)):
        for entry in entries:
            fits = members(entry, kinds)
            for name in fits:
                if out.get(name, 0.0) * sign < 0:
                    raise GatingError(f"{name!r} stands in plus and in minus, so that it is contrasted with itself")
                out[name] = out.get(name, 0.0) + sign / len(fits)
    return out


def fits(named: object) -> bool:
    """Whether an entry of a claim is a name or a pattern."""
    if not isinstance(named, Mapping):
        return is_text(named)
    return "like" in named and set(named) <= set(KEYS) and all(is_text(value) for value in named.values())


def is_text(value: object) -> bool:
    """A text with something on it, and no control characters."""
    return isinstance(value, str) and bool(shown(value)) and "\0" not in value
