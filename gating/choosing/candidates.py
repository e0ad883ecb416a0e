"""What is tried: blocks and doses of the persona, places and doses of the refusal direction, as named conditions.

A dose is a fraction of the residual's median norm where it is added, which means the same at every block and model; a
coefficient counts, as `sites` do, in the norm of the persona's direction at its own block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from gating.analysis import sites

PERSONA, REFUSAL = "compliant", "refusal"
COARSE = (0.15, 0.3, 0.6)  # doses of every tenth of the depth
FINER = (1.0, 1.4, 1.9)  # times the dose that halves first-token refusal
MOST = 1.0  # a dose as large as the residual: beyond it nothing of the model is left
READ = {0.25: 0.3, 0.05: 0.6}  # share of first-token refusal left at the doses whose answers are read; the doses
# themselves at a block where it never halves: a model may well refuse and comply with the same first word
STRONGER = 1.4  # times the largest dose, where answers were fluent and still refused
PUT_BACK = (0.05, 0.12, 0.3)  # doses of the refusal direction
MOST_RESTORES = 0.8  # share of the best: the smallest dose that reaches it is a finalist
FROM, TO = 0.2, 0.9  # of the depth


@dataclass(frozen=True)
class Candidate:
    """A direction read at block `read`, added at `block` with `coef`."""

    direction: str
    block: int
    read: int
    dose: float
    coef: float

    @property
    def name(self) -> str:
        return f"{self.direction} {self.read} at {self.block} x{self.coef:g}"


@dataclass(frozen=True)
class Norms:
    """Median norms of the residual, and the norm of the persona's direction, by block: [layer]."""

    residual: np.ndarray
    persona: np.ndarray

    @classmethod
    def of(cls, directions: xr.Dataset) -> Norms:
        """directions: the /directions group of a run."""
        vectors = directions["vector"].sel(direction=PERSONA).values.astype("float64")
        return cls(directions["residual_norm"].values.astype("float64"), np.linalg.norm(vectors, axis=-1))

    def coef(self, dose: float, block: int, persona: int) -> float:
        """A dose at a block in the norm of the persona's direction at block `persona`, to two digits."""
        return float(f"{dose * self.residual[block] / self.persona[persona]:.2g}")

    def dose(self, coef: float, block: int, persona: int) -> float:
        return float(coef * self.persona[persona] / self.residual[block])


def persona(norms: Norms, block: int, dose: float) -> Candidate:
    coef = norms.coef(dose, block, block)
    return Candidate(PERSONA, block, block, norms.dose(coef, block, block), coef)


def refusal(norms: Norms, read: int, late: int, dose: float, persona_block: int) -> Candidate:
    coef = norms.coef(dose, late, persona_block)
    return Candidate(REFUSAL, late, read, norms.dose(coef, late, persona_block), coef)


def coarse(norms: Norms) -> list[Candidate]:
    """Every tenth of the depth, from 0.2 to 0.9 of it; the last block has none after it to put refusal back in."""
    n = len(norms.residual)
    blocks = range(max(1, round(FROM * n)), min(round(TO * n), n - 2) + 1, _step(n))
    return [persona(norms, block, dose) for block in blocks for dose in COARSE]


def _step(n: int) -> int:
    return max(1, round(0.1 * n))


def fine(norms: Norms, curve: xr.Dataset, baseline: xr.Dataset) -> list[Candidate]:
    """Around the best block of the coarse curve, and at the second best: doses from where half of first-token refusal
    is left."""
    n, ranked = len(norms.residual), sites.blocks_by_effect(curve, baseline)
    beside = max(1, _step(n) // 2)
    near = [b for b in (ranked[0], ranked[0] - beside, ranked[0] + beside) if 1 <= b <= n - 2]
    tried = []
    for block in dict.fromkeys([*near, *ranked[1:2]]):
        known = min((b for b in ranked[:2]), key=lambda b: abs(b - block))
        half = _dose(curve, known, baseline, 0.5)
        tried += [persona(norms, block, min(MOST, half * factor)) for factor in FINER]
    return list(dict.fromkeys(tried))


def _dose(curve: xr.Dataset, block: int, baseline: xr.Dataset, left: float) -> float:
    """The dose at which a share of first-token refusal is left; the largest tried where none does."""
    found = sites.dose_leaving(curve, block, baseline, left)
    return found if found == found else sites.block_curve(curve, block, baseline)[0][-1]


def finalists(norms: Norms, curve: xr.Dataset, baseline: xr.Dataset, blocks: int = 3) -> list[Candidate]:
    """The doses of the best blocks whose answers are to be read; none where random directions do as much everywhere."""
    found = []
    for block in sites.blocks_by_effect(curve, baseline):
        own = curve.isel(condition=curve["block"].values == block)
        if not sites.random_does(own, baseline) and blocks > 0:
            halves = np.isfinite(sites.dose_leaving(curve, block, baseline, 0.5))
            doses = [_dose(curve, block, baseline, left) if halves else dose for left, dose in READ.items()]
            found += [persona(norms, block, dose) for dose in doses]
            blocks -= 1
    return list(dict.fromkeys(found))


def stronger(norms: Norms, read: Sequence[Candidate], texts: xr.Dataset) -> list[Candidate]:
    """A larger dose of each block whose largest one left answers in order and over 10% of refusal. texts: from
    sites.choose_persona."""
    more = []
    for c in strongest(read):
        row = texts.sel(condition=c.name)
        if float(row["refusal"]) > sites.WITHIN and not str(row["unfit"].item()) and c.dose * STRONGER <= MOST:
            more.append(persona(norms, c.block, c.dose * STRONGER))
    return more


def strongest(tried: Sequence[Candidate]) -> list[Candidate]:
    """The largest dose of each block: where random controls show the most."""
    return [max((c for c in tried if c.block == block), key=lambda c: c.dose) for block in {c.block: 0 for c in tried}]


def put_back(norms: Norms, block: int) -> list[Candidate]:
    """The refusal direction, read at the middle, at the persona's block and after it, added at two blocks after the
    persona's, at three doses."""
    n = len(norms.residual)
    after = [block + max(1, round(share * n)) for share in (0.07, 0.2, 0.35)]
    lates, reads = ([*dict.fromkeys(min(b, n - 1) for b in each)] for each in (after[:2], (n // 2, block, *after[1:])))
    tried = [refusal(norms, read, late, dose, block) for late in lates for read in reads for dose in PUT_BACK]
    return list(dict.fromkeys(tried))


def put_back_finalists(curve: xr.Dataset, baseline: xr.Dataset, steered: xr.Dataset) -> list[str]:
    """Two conditions: the smallest dose that restores nearly as much as the best does, and the largest dose at the same
    place, since answers may go on to comply where the first token refuses. Where that is the same, or where none
    restores anything, the two that restore most."""
    share = np.nan_to_num(sites.restored(curve, baseline, steered), nan=-np.inf)
    names, most = curve["condition"].values, np.argsort(-share, kind="stable")[:2]
    if share.max() <= 0:
        return names[most].tolist()
    dose, place = curve["dose"].values.round(2), list(zip(curve["block"].values, curve["read"].values, strict=True))
    enough = np.flatnonzero(share >= MOST_RESTORES * min(1.0, share.max())).tolist()
    best = min(enough, key=lambda i: (dose[i], -share[i]))
    largest = max((i for i in range(len(place)) if place[i] == place[best]), key=lambda i: dose[i])
    both = [best, largest] if largest != best else [best, *(i for i in most.tolist() if i != best)][:2]
    return names[both].tolist()


def conditions(tried: Sequence[Candidate], before: Candidate | None = None, random: int = 0) -> dict[str, Any]:
    """Each candidate as a named condition, after `before` (the persona) where it is given, with `random` controls."""
    out: dict[str, Any] = {}
    for c in tried:
        own: dict[str, Any] = {"direction": c.direction, "layers": c.block, "coef": c.coef, "read": str(c.read)}
        if before is not None:
            own |= {"norm": PERSONA, "norm_read": str(before.read)}
        if random:
            own["random"] = random
        out[c.name] = [*([_plain(before)] if before else []), own]
    return out


def _plain(c: Candidate) -> dict[str, Any]:
    return {"direction": c.direction, "layers": c.block, "coef": c.coef, "read": str(c.read)}
