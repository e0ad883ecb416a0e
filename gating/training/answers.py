"""Labelled answers that a judge learns from: patterns written by hand, expanded over prompts, cut off as answers are.

gating/data/answers/patterns.jsonl holds one pattern a line: its label, its kind, its language, and *voices*, which are
texts with places to fill. {prompt}, {do}, {doing}, {it}, {harm}, {safe} and {content} come from a line of prompts.jsonl
(a capital in the place's name gives a capital letter), {list} and {bullets} are the content sentence by sentence, and
{other...} is taken from another prompt, for answers that are off the topic. A voice with `|||` brings its own prompt.
A single `|` is where the label becomes certain: a text is cut off only behind it, or inside the content.

What is harmful is asked for and never given: contents of harmful prompts are left out or vague.

Patterns are split: each is for learning or for testing, never both, and so are English prompts with their contents.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent.parent / "data"
EACH = {"en": 2}  # expansions of a voice; other languages have fewer prompts
EACH_OTHER = 2
CUT = 0.5  # share of texts that are cut off where they may be
LONGEST = 260  # characters: what 48 to 64 tokens hold
CONTENT_SEEN = 30  # characters of content from which a cut text shows what it is
ANY_PROMPT = 0.2  # of the harmless prompts that a refusal may be drawn for
PLAIN = 0.6  # of the expansions that need no content: those of the shipped training prompts
_ASKED = {
    "do": re.compile(r"(?:How (?:do|can|could|should) I|(?:Explain|Tell me|Show me|Describe) how to) ([^.?!]+)[.?!]"),
    "it": re.compile(r"(?:Write|Give me|Create|Draft|Compose|Make|Develop|Produce|Design) (an? [^.?!]+)[.?!]"),
}
_PLACE = re.compile(r"\{([A-Za-z_]+)\}")
_SENTENCE = re.compile(r"(?<=[.!?。।])\s*(?=\S)")


@dataclass(frozen=True)
class Answer:
    """One labelled answer. split: `learn` or `test`; whole: whether it is not cut off."""

    prompt: str
    answer: str
    label: str
    pattern: str
    kind: str
    language: str
    split: str
    whole: bool


def answers(seed: int = 0) -> list[Answer]:
    """Every voice of every pattern on a few prompts, without what comes out twice. The same for the same seed."""
    rows, seen = [], set()
    prompts, draw = _prompts(), random.Random(seed)
    for pattern in _read("answers/patterns"):
        for voice in pattern["voices"]:
            for row in _expanded(pattern, voice, prompts, draw):
                if (row.prompt, row.answer) not in seen:
                    seen.add((row.prompt, row.answer))
                    rows.append(row)
    return rows


def split_of(name: str) -> str:
    """A fifth of the names is for testing, chosen by their hash."""
    return "test" if int(hashlib.sha256(name.encode()).hexdigest(), 16) % 5 == 0 else "learn"


def _read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text("utf-8").splitlines()]


def _prompts() -> list[dict[str, Any]]:
    """The prompts with their places, and the shipped training prompts with those that can be read off them."""
    rows = (row for name in ("train_harmful", "train_harmless") for row in _read(f"prompts/{name}"))
    return [*_read("answers/prompts"), *(row | {"language": "en"} | _read_off(row["prompt"]) for row in rows)]


def _read_off(prompt: str) -> dict[str, str]:
    """{do} of "How do I do it?", {it} of "Write it."; else nothing."""
    for name, pattern in _ASKED.items():
        if found := pattern.fullmatch(prompt):
            return {name: re.sub(r"\bmy\b", "your", found[1])}
    return {}


def _expanded(
    pattern: dict[str, Any], voice: str, prompts: Sequence[dict[str, Any]], draw: random.Random
) -> Iterator[Answer]:
    language, split = pattern["language"], split_of(pattern["pattern"])

    def row(prompt: str, text: str, whole: bool) -> Answer:
        return Answer(prompt, text, pattern["label"], pattern["pattern"], pattern["kind"], language, split, whole)

    if "|||" in voice:
        own, text = (part.strip() for part in voice.split("|||"))
        yield row(own, text, True)
        cut = draw.randint(min(len(text) - 1, 2 * CONTENT_SEEN), len(text) - 1)
        if len(text) > 3 * CONTENT_SEEN:
            yield row(own, text[:cut], False)
        return
    fitting = [p for p in prompts if p["language"] == language and (language != "en" or split_of(p["prompt"]) == split)]
    needed = {"content" if n in ("list", "bullets") else n for n in map(str.lower, _PLACE.findall(voice))}
    places = {n for n in needed if not n.startswith("other")}
    full, plain = ([p for p in fitting if ("content" in p) == has and places <= p.keys()] for has in (True, False))
    for _ in range(EACH.get(language, EACH_OTHER)):
        asked = plain if plain and draw.random() < PLAIN else full
        prompt = draw.choice([p for p in asked if _suits(p, pattern, draw)])
        other = draw.choice([p for p in fitting if "content" in p and p is not prompt])
        text, certain = _filled(voice, prompt, other)
        whole = certain is None or certain >= len(text) or draw.random() > CUT
        if not whole and certain is not None:
            text = text[: draw.randint(certain, max(certain, min(len(text), LONGEST)))]
        yield row(prompt["prompt"], text, whole)


def _suits(prompt: dict[str, Any], pattern: dict[str, Any], draw: random.Random) -> bool:
    asked = pattern["asked"]
    if asked == "harmful" and pattern["label"] == "refusal":
        return bool(prompt["harmful"]) or draw.random() < ANY_PROMPT
    return asked == "any" or bool(prompt["harmful"]) == (asked == "harmful")


def _filled(voice: str, prompt: dict[str, Any], other: dict[str, Any]) -> tuple[str, int | None]:
    """A voice with its places filled, and from which character on it may be cut off; None where it may not."""
    text, certain = "", None
    for i, part in enumerate(re.split(r"(\{[A-Za-z_]+\}|\|)", voice)):
        if i % 2 == 0:
            text += part
        elif part == "|":
            certain = len(text)
        else:
            name = part[1:-1]
            if certain is None and name.removeprefix("other_") in ("content", "list", "bullets", "other"):
                certain = len(text) + CONTENT_SEEN
            text += _value(name, prompt, other)
    return text, certain


def _value(name: str, prompt: dict[str, Any], other: dict[str, Any]) -> str:
    source = other if name.lower().startswith("other") else prompt
    key = re.sub(r"^other_?", "", name.lower()) or "content"
    if key in ("list", "bullets"):
        parts = [source["content"]] if "\n" in source["content"] else _SENTENCE.split(source["content"])
        marks = (f"{i}. " for i in range(1, 99)) if key == "list" else ("- " for _ in range(99))
        return "\n".join(f"{mark}{part}" for mark, part in zip(marks, parts, strict=False))
    value = str(source[key])
    return value[:1].upper() + value[1:] if name[0].isupper() else value
