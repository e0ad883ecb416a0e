"""What a direction is extracted from: its name read, and the chats of its two sides."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gating import personas
from gating.chat import check_position, needs_response
from gating.errors import GatingError, choices
from gating.foreign import shown
from gating.prompts import Prompt, digest
from gating.steering import variants

REFUSAL = "refusal"
ROLES = ("model", "user", "i_thou")
NOT_EXTRACTED = ("random", "none")
ALGEBRA = ("orthogonal_to", "along")


class Chat(NamedTuple):
    """One chat up to where its answer begins."""

    system: str | None
    user: str


@dataclass(frozen=True)
class DirectionSpec:
    """What a direction is extracted from: chats of its positive and its negative side, and whose text is read.

    role: `model` reads the chat itself (the model that was told to be so); `user` reads a chat whose *user* message is
    an answer given under the instruction (somebody else who is so); `i_thou` is their difference, model - user (the
    paper, section 2; arXiv 2606.26161); `refusal` reads requests. paired: row i of the two sides belongs
    together (the same question), so a row that is missing takes its partner with it.
    """

    name: str
    role: str
    position: str
    positive: tuple[Chat, ...]
    negative: tuple[Chat, ...]
    digest: str
    variant: str = ""  # boot-3, half-a: made of other rows than the direction before the # (variants.py)

    @property
    def texts(self) -> str:
        """12 hex digits of the very texts and the place that it is read at: what makes two directions comparable."""
        sides = (tuple(map(tuple, side)) for side in (self.positive, self.negative))
        content = repr((self.role, self.position, *sides))
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    @property
    def paired(self) -> bool:
        return self.role != REFUSAL

    def needs_answers(self, keep: str | None) -> bool:
        """Whether its chats must be answered first: for a response position, a user's part, or a filter `keep` of
        pairs."""
        filtered = keep is not None and self.paired
        return needs_response(self.position) or self.role in ("user", "i_thou") or filtered


def split_name(name: str, default_position: str) -> tuple[str, str, str]:
    """`persona:role@position` to its parts; the model's own role and the configured position where none is given. A
    variant, `#boot-3`, is left out."""
    key = f"steer.direction={shown(name)!r}"
    rest, at, position = variants.split(name)[0].partition("@")
    if "#" in rest + position and not personas.is_path(rest):
        raise GatingError(f"{key}: behind # stands boot-0 to boot-{variants.MOST - 1}, half-a or half-b.")
    base, colon, role = rest.partition(":") if not personas.is_path(rest) else _file_role(rest)
    if (at and not position) or (colon and not role):
        raise GatingError(f"{key}: nothing stands behind {'@' if at else ':'}; name a position or role, or drop it.")
    if role and (role not in ROLES or base == REFUSAL):
        raise GatingError(f"{key}: the part after the colon is a persona's role: use {choices(ROLES, role)}.")
    role = role or (REFUSAL if base == REFUSAL else "model")
    return base, role, check_position(position or default_position, key=f"{key}: the part after @")


def _file_role(rest: str) -> tuple[str, str, str]:
    """A persona file's path may hold colons; a role stands behind its ending."""
    base, colon, role = rest.rpartition(":")
    return (base, colon, role) if base.lower().endswith(personas.ENDINGS) else (rest, "", "")


def label(name: str) -> str:
    """What a direction is called in the results: its name, or a persona file's stem in place of its path."""
    whole, variant = variants.split(name)
    rest, at, position = whole.partition("@")
    base, colon, role = rest.partition(":") if not personas.is_path(rest) else _file_role(rest)
    short = Path(base).stem if personas.is_path(base) else base
    return f"{short}{colon}{role}{at}{position}{'#' if variant else ''}{variant}"


def direction_spec(
    name: str,
    default_position: str,
    system: str | None,
    extract: Sequence[Prompt],
    questions: int | None,
    seed: int = 0,
) -> DirectionSpec:
    """What a direction's name stands for: `refusal` (harmful - harmless requests of the extraction split, under the
    run's own system prompt; Arditi et al. 2024) or a persona (positive - negative system instructions over the same
    questions; Chen et al. 2025, arXiv 2507.21509); a variant is made of some of those rows (seed). Raises GatingError
    for an unknown name or an empty side."""
    base, role, position = split_name(name, default_position)
    variant = variants.split(name)[1]

    def of(side: tuple[Chat, ...], pairs: int = 1) -> tuple[Chat, ...]:
        """The side's rows, or those that the variant is made of."""
        if not variant:
            return side
        return tuple(side[i] for i in variants.rows(variant, len(side) // pairs, pairs, seed, name))

    if base == REFUSAL:
        sides = [tuple(Chat(system, p.text) for p in extract if p.harmful is flag) for flag in (True, False)]
        if not all(sides):
            raise GatingError(
                "directions.harmful and directions.harmless must both hold prompts of the extract split: the refusal "
                f"direction is their difference, and there are {len(sides[0])} and {len(sides[1])}."
            )
        return DirectionSpec(label(name), role, position, of(sides[0]), of(sides[1]), digest(extract), variant)
    persona = personas.load(base)
    pairs = personas.paired_rows(persona)
    kept = sorted({row.question_index for row in pairs})[:questions]
    rows = [row for row in pairs if row.question_index in kept]
    positive = tuple(Chat(row.system, row.question) for row in rows if row.sign > 0)
    negative = tuple(Chat(row.system, row.question) for row in rows if row.sign < 0)
    wordings = len(persona.positive)
    both = of(positive, wordings), of(negative, wordings)  # the same draw: rows stay pairs
    return DirectionSpec(label(name), role, position, *both, persona.digest, variant)


def check_derived(derived: Mapping[str, object]) -> None:
    """Raises GatingError for a derived direction that is not {of: A, orthogonal_to: B} or {of: A, along: B}."""
    for name, spec in derived.items():
        key = f"directions.derived.{name}"
        if not isinstance(spec, Mapping) or set(spec) not in ({"of", a} for a in ALGEBRA):
            raise GatingError(
                f"{key} must be {{of: A, orthogonal_to: B}} (A without its part along B) or {{of: A, along: B}} (that "
                "part), with A and B directions."
            )
        for part in spec.values():
            if not isinstance(part, str) or not part or part in (*derived, *NOT_EXTRACTED) or "+" in part:
                raise GatingError(
                    f"{key}: {part!r} is not an extracted direction; make it of {REFUSAL}, personas or persona files."
                )
        if not re.fullmatch(r"[\w-]{1,60}", name) or name in (REFUSAL, *NOT_EXTRACTED, *personas.available()):
            raise GatingError(f"{key}: choose a name of letters, digits, - and _ that no other direction has.")
