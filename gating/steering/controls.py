"""Random controls of a condition: how many, how each is drawn, and what it is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gating.errors import GatingError, choices
from gating.foreign import shown
from gating.steering.interventions import DRAWS, RANDOM, Condition, Intervention

Spec = Mapping[str, object]  # an intervention as a user wrote it
MOST_RANDOM = 999  # random controls of one intervention


def bracketed(point: str) -> str:
    """A place on the axes as it stands in a condition's name."""
    return f"[{point}]" if point else ""


def control(own: Condition, interventions: tuple[Intervention, ...], draw: str, k: int) -> Condition:
    """The k-th random control of a condition."""
    name = f"{own.family}-{DRAWS[draw]}-{k}{bracketed(own.point)}"
    return replace(own, name=name, kind="random", interventions=interventions, seed=k, controls=own.name)


def drawn(iv: Intervention, k: int, draw: str, key: str) -> Intervention:
    """An intervention with the k-th random direction of a kind in its place. Raises GatingError where it has none."""
    sides = iv.direction != RANDOM and len(iv.directions) == 1
    fits = {
        "isotropic": True,
        "covariance": iv.op == "add",
        "permuted": iv.op == "add" and sides,
        "matched": iv.op == "ablate" and iv.direction != RANDOM and not iv.gate and iv.scope != "generated",
    }
    if not fits[draw]:
        allowed = " or ".join(name for name, fit in fits.items() if fit)
        raise GatingError(f"{key}.draw={draw!r} with op={iv.op}, direction={shown(iv.direction, 60)}: use {allowed}.")
    return replace(iv, seed=k, draw=draw)


def check_draws(value: object, key: str) -> list[str]:
    """How random directions are drawn: a kind or several. Raises GatingError for one that is not there."""
    given = list(value) if isinstance(value, list | tuple) else [value]
    for draw in given:
        if not isinstance(draw, str) or draw not in DRAWS:
            raise GatingError(f"{key}={shown(repr(value), 80)}: use {choices(DRAWS, str(draw))}, or a list of them.")
    if not given or len(set(given)) < len(given):
        raise GatingError(f"{key}={shown(repr(value), 80)}: name each kind once, and at least one.")
    return [str(draw) for draw in given]


def kinds(items: Sequence[Spec], draws: Sequence[int], key: str) -> list[str]:
    """The kinds of random controls of a condition, which its random interventions share."""
    given = {i: check_draws(item.get("draw") or "isotropic", f"{key}[{i}].draw") for i, item in enumerate(items)}
    idle = next((i for i, item in enumerate(items) if item.get("draw") and not draws[i]), None)
    if idle is not None:
        raise GatingError(f"{key}[{idle}].draw says how random controls are drawn; give random=K beside it.")
    of_each = [given[i] for i, n in enumerate(draws) if n]
    if any(each != of_each[0] for each in of_each):
        raise GatingError(f"{key}: its random interventions are drawn together; give them the same draw.")
    return of_each[0] if of_each else []


def count(spec: Spec, key: str) -> int:
    n = spec.get("random") or 0
    if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n <= MOST_RANDOM:
        raise GatingError(f"{key}.random={n!r}: give how many random controls to draw, 0 to {MOST_RANDOM}.")
    return n
