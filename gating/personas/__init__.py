"""Persona files: paired system instructions for and against a trait, and the questions both sides are asked.

A file holds `name` (its own stem), `description`, `positive` and `negative` (paired by position) and `questions`; each
list may be another persona's instead: `questions_of: compliant`. Or it holds `name`, `description` and `reverse_of`,
another persona whose two sides it swaps. The shipped ones stand beside this
module; a user's file by path works the same. A persona's direction is positive minus negative over the same questions
(Chen et al. 2025, arXiv 2507.21509), so a difference in wording other than the trait does not enter.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gating import foreign
from gating.errors import GatingError, cause, choices
from gating.foreign import shown

LISTS = ("positive", "negative", "questions")
PLAIN = ("name", "description", *LISTS)
REVERSED = ("name", "description", "reverse_of")
ENDINGS = (".yaml", ".yml")
RESERVED = ("none", "refusal", "random", "baseline")  # mean something else where a direction or condition is named
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Persona:
    """A trait and its opposite. `digest` covers what determines a direction: both sides and the questions, in order."""

    name: str
    description: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    questions: tuple[str, ...]
    digest: str
    source: str


class Row(NamedTuple):
    """One question under one instruction. sign is 1 (positive side) or -1."""

    question_index: int
    pair_index: int
    sign: int
    system: str
    question: str


def available() -> tuple[str, ...]:
    """The shipped personas, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def load(name_or_path: str) -> Persona:
    """A shipped persona by name, or a file by path (it ends in .yaml or .yml, or has a path separator).

    Raises GatingError for anything that is wrong with the name or in the file.
    """
    return _load(_find(str(name_or_path)))


def paired_rows(persona: Persona) -> list[Row]:
    """Every question under every pair, question by question, the two sides of a pair adjacent, positive first."""
    return [
        Row(q, p, sign, system, question)
        for q, question in enumerate(persona.questions)
        for p, pair in enumerate(zip(persona.positive, persona.negative, strict=True))
        for sign, system in zip((1, -1), pair, strict=True)
    ]


def _load(path: Path, seen: tuple[Path, ...] = ()) -> Persona:
    content = _read(path)
    _check_keys(path, content)
    name, description = (_string(path, key, content[key]) for key in ("name", "description"))
    _check_name(path, name)
    if "reverse_of" in content:
        return _reverse(path, name, description, content, (*seen, path.resolve()))
    positive, negative, questions = (_list(path, key, content, (*seen, path.resolve())) for key in LISTS)
    _check_pairs(path, positive, negative)
    return _persona(name, description, positive, negative, questions, path)


def _list(path: Path, key: str, content: dict[str, Any], seen: tuple[Path, ...]) -> tuple[str, ...]:
    """A list of the file's own, or the same list of the persona that KEY_of names."""
    if key in content:
        return _strings(path, key, content[key])
    found: tuple[str, ...] = getattr(_other(path, f"{key}_of", content, seen), key)
    return found


def _persona(
    name: str,
    description: str,
    positive: tuple[str, ...],
    negative: tuple[str, ...],
    questions: tuple[str, ...],
    path: Path,
) -> Persona:
    content = json.dumps([positive, negative, questions], ensure_ascii=False)
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    return Persona(name, description, positive, negative, questions, digest, str(path))


def _reverse(path: Path, name: str, description: str, content: dict[str, Any], seen: tuple[Path, ...]) -> Persona:
    base = _other(path, "reverse_of", content, seen)
    return _persona(name, description, base.negative, base.positive, base.questions, path)


def _other(path: Path, key: str, content: dict[str, Any], seen: tuple[Path, ...]) -> Persona:
    """The persona that a key of a file names."""
    other = _string(path, key, content[key])
    target = _find(other, path, key)
    if target.resolve() in seen:
        raise _bad(path, key, f"is {other!r}, which leads back here", "name a persona with its own sides")
    return _load(target, seen)


def is_path(given: str) -> bool:
    separators = {"/", os.sep, os.altsep or os.sep}
    return given.lower().endswith(ENDINGS) or any(s in given for s in separators)


def _find(given: str, referrer: Path | None = None, key: str = "") -> Path:
    """The file that a name or a path means. What a file refers to is looked for beside it, then among the shipped."""
    asked = f"Persona file {referrer}: {key} {given!r}" if referrer else f"persona {given!r}"
    if not is_path(given):
        beside = [referrer.with_name(given + ending) for ending in ENDINGS] if referrer else []
        file = next((p for p in [*beside, FOLDER / f"{given}.yaml"] if p.is_file()), None)
        if file:
            return file
        raise GatingError(
            f"{asked}: there is no shipped persona of this name. Use {choices(available(), given)}, or the path of a "
            "persona file that ends in .yaml."
        )
    try:
        path = Path(given).expanduser()
        path = referrer.parent / path if referrer else path
        if path.is_file():
            return path
    except (OSError, RuntimeError) as e:  # too long a name; no such user
        raise GatingError(f"{asked}: this is no path ({cause(e)}); give another.") from None
    what = "is a folder, not a file" if path.is_dir() else "does not exist"
    raise GatingError(
        f"{asked}: {path.absolute()} {what}. Give the path of a persona file that ends in .yaml, or a shipped persona: "
        f"{choices(available(), path.stem)}."
    )


def _bad(path: Path, key: str, problem: str, remedy: str) -> GatingError:
    return GatingError(f"Persona file {path}: {f'{key} ' if key else ''}{problem}; {remedy}.")


def _read(path: Path) -> dict[str, Any]:
    content = foreign.parse_yaml(foreign.read_text(path, "Persona file", foreign.MEGABYTE), f"Persona file {path}")
    if not isinstance(content, dict):
        given = "is empty" if content is None else f"holds a {type(content).__name__}, not keys with values"
        raise _bad(path, "", given, f"write the keys {choices(PLAIN)}")
    return content


def _check_keys(path: Path, content: dict[str, Any]) -> None:
    allowed = REVERSED if "reverse_of" in content else tuple(f"{k}_of" if f"{k}_of" in content else k for k in PLAIN)
    for key in content:
        if key not in allowed:
            reason = " beside reverse_of" if "reverse_of" in content and key in LISTS else ""
            raise _bad(path, f"key {key!r}", f"is not allowed{reason}", f"the keys are {choices(allowed, key)}")
    for key in allowed:
        if key not in content:
            more = "" if "reverse_of" in content else " (or name, description and reverse_of)"
            raise _bad(path, key, "is missing", f"a persona has {', '.join(allowed)}{more}")


def _check_name(path: Path, name: str) -> None:
    if name != path.stem:
        raise _bad(path, "name", f"is {name!r} but the file is called {path.name}", "make them the same")
    if name in RESERVED:
        raise _bad(path, "name", f"{name!r} has a meaning of its own", f"choose another than {choices(RESERVED)}")
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise _bad(path, "name", f"{name!r} can't name a condition", "use lower-case letters, digits, - and _")


def _check_pairs(path: Path, positive: tuple[str, ...], negative: tuple[str, ...]) -> None:
    if len(positive) != len(negative):
        counts = f"have {len(positive)} and {len(negative)} items"
        raise _bad(path, "positive and negative", counts, "they are pairs, so give each as many")
    for i, pair in enumerate(zip(positive, negative, strict=True)):
        if _same(pair[0]) == _same(pair[1]):
            raise _bad(path, f"positive[{i}] and negative[{i}]", "are the same text", "a pair must differ in the trait")


def _string(path: Path, key: str, value: object) -> str:
    if not isinstance(value, str):
        given = f"is {shown(repr(value), 80)}, a {type(value).__name__}" if value is not None else "has no value"
        raise _bad(path, key, given, "write a text, in quotes if it holds a colon or is yes, no or a number")
    if not value.strip():
        raise _bad(path, key, "is blank", "write a text")
    return " ".join(value.split())


def _strings(path: Path, key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        given = "has no items" if value is None or value == [] else f"is {shown(repr(value), 80)}, not a list"
        raise _bad(path, key, given, "write a list of texts, each on a line that begins with '- '")
    items = tuple(_string(path, f"{key}[{i}]", item) for i, item in enumerate(value))
    seen: dict[str, int] = {}
    for i, item in enumerate(items):
        first = seen.setdefault(_same(item), i)
        if first != i:
            raise _bad(path, f"{key}[{i}]", f"repeats {key}[{first}] ({item!r})", "keep one of them")
    return items


def _same(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".?!")
