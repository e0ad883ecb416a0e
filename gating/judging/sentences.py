"""Text made ready for a rule that reads it: normalised, cut into sentences; and two helpers to write such rules."""

from __future__ import annotations

import re
import unicodedata
from functools import cached_property

_STRAIGHT = str.maketrans(
    {**dict.fromkeys("‘’‚‛ʼ`´′＇", "'"), **dict.fromkeys("“”„‟«»″＂", '"'), **dict.fromkeys("‐‑‒–—―−", "-")}
)
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufe00-\ufe0f\ufeff]")


def _clean(text: str) -> str:
    if text.isascii():  # most text is, and in it a backtick alone has another form
        return text.replace("`", "'").lower()
    # straightened on both sides of NFKC: it takes an acute accent that stands alone apart, and makes new dashes
    straight = unicodedata.normalize("NFKC", text.translate(_STRAIGHT)).translate(_STRAIGHT)
    return _INVISIBLE.sub("", straight).casefold()


def normalise(text: str) -> str:
    """NFKC, curly quotes and dashes to straight ones, zero-width characters removed, whitespace folded, casefolded."""
    return " ".join(_clean(text).split())


class Regex:
    """An expression, compiled when it is first asked: together they take half a second, and most commands ask none."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern

    @cached_property
    def compiled(self) -> re.Pattern[str]:
        return re.compile(self.pattern)

    def search(self, text: str) -> re.Match[str] | None:
        return self.compiled.search(text)

    def match(self, text: str) -> re.Match[str] | None:
        return self.compiled.match(text)


def regex(*patterns: str) -> Regex:
    """One expression that matches where any of the patterns does."""
    return Regex("|".join(f"(?:{p})" for p in patterns))


def any_of(*alternatives: str) -> str:
    """The part of a pattern that matches any of the alternatives, each of which may hold several separated by `|`."""
    return f"(?:{'|'.join(alternatives)})"


_SPEAKER = re.compile(r"^(?:assistant|ai|answer|response|bot|model)\s*:\s*")
SAYS = any_of("said|says|replied|replies|asked|answered|whispered|muttered|shouted")
_NARRATED = re.compile(rf'^"[^"]*"\s*(?:\w+\s+){{0,3}}?{SAYS}\b')
_END = re.compile(r"(?<=[.!?。！？])[\"')]*\s+|\n+|(?<=[.!])(?=[a-z]{2})")
LONGEST = 600  # characters; a longer "sentence" is no prose and is read in pieces, which keeps the rules linear


def sentences(text: str) -> list[str]:
    """The sentences, normalised, with quoted speech blanked and without marks, emoji or a speaker before each one."""
    cleaned = re.sub(r"[*_~#>]+", " ", _clean(text)).strip()
    if cleaned.startswith('"') and not _NARRATED.match(cleaned):
        cleaned = cleaned[1:].replace('"', "", 1)  # the whole answer stands in quotes
    cleaned = re.sub(r'"[^"]*(?:"|$)', ' "" ', cleaned)
    parts = (re.sub(r"^[^\w\"]+", "", " ".join(part.split())) for part in _END.split(cleaned))
    whole = (_SPEAKER.sub("", part) for part in parts)
    return [part[i : i + LONGEST] for part in whole for i in range(0, len(part), LONGEST)]
