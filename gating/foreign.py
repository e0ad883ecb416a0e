"""What comes from outside, in one place: files and answers are bounded and parsed here, and texts made fit to show.

Outside is whatever this package did not write: a user's files, a server's answers, a model's folder.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from rich.text import Text

from gating.errors import GatingError, cause

MEGABYTE = 1_000_000
SHOWN = 300  # characters of a foreign text, on a screen or in an error
DEPTH = 60  # lists or mappings inside each other
VALUES = 5_000_000  # in a document, those of a YAML alias counted each time
UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})  # control, format (bidirectional too), surrogate, private, none


def shown(text: object, limit: int = SHOWN) -> str:
    """A foreign text for a screen, a log or an error: one line, no control or escape characters, at most `limit`
    characters ("..." says that there were more)."""
    whole = str(text)
    kept = "".join(" " if c.isspace() else "" if unicodedata.category(c) in UNSAFE else c for c in whole[: 8 * limit])
    line = " ".join(kept.split())
    return line if len(line) <= limit and len(whole) <= 8 * limit else f"{line[: limit - 3]}..."


def plain(text: str) -> str:
    """A foreign text for a screen with its lines kept, and no control or escape characters in them."""
    return "".join(c for c in text.expandtabs() if c == "\n" or unicodedata.category(c) not in UNSAFE)


def cell(text: object) -> Text:
    """A foreign text for a table of rich: its brackets are no markup."""
    return Text(shown(text))


def markdown(text: object) -> str:
    """A foreign text for Markdown: one line, in which nothing is a table's bar, code, emphasis, a link or HTML."""
    plain = re.sub(r"([\\`*_\[\]<>|~&])", r"\\\1", shown(text, 4000))
    return re.sub(r"(?i)(?<=:)(?=//)|(?<=www)(?=\.)", r"\\", plain)  # an address is no link


def code(text: object) -> str:
    """A foreign text as Markdown's code, in a table too; with a backtick in it, as plain text."""
    return markdown(text) if "`" in str(text) else f"`{shown(text)}`".replace("|", "\\|")


def read_text(path: Path, key: str, limit: int = 100 * MEGABYTE) -> str:
    """A user's UTF-8 text file of at most `limit` bytes. Raises GatingError with the key, the file and the remedy."""
    try:
        if not path.is_file():
            raise GatingError(f"{key}: there is no file {shown(path)}; give the path of an existing file.")
        size = path.stat().st_size
        if size > limit:
            raise GatingError(
                f"{key}: {shown(path)} has {size / MEGABYTE:.0f} MB; at most {limit / MEGABYTE:.0f} MB are read. "
                "Split it."
            )
        with path.open("rb") as file:
            content = file.read(limit + 1).decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise GatingError(f"{key}: {shown(path)} is not UTF-8 text (byte {e.start}); save it as UTF-8.") from None
    except (OSError, ValueError) as e:  # ValueError: a null byte in the path
        raise GatingError(f"{key}: {shown(path)!r} cannot be read ({cause(e)}); give a readable file.") from None
    if "\0" in content:  # UTF-16 without its mark reads as UTF-8 with these in it
        raise GatingError(f"{key}: {shown(path)} is not text (it holds null bytes); save it as UTF-8.")
    return content.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str | bytes, where: str) -> Any:
    """A JSON document of plain, finite values. Raises GatingError, led by `where`, for anything else: an entry given
    twice, NaN, half a surrogate pair, more than DEPTH levels."""
    try:
        document = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise GatingError(f"{where}: the JSON has more than {DEPTH} levels; write it flatter.") from None
    except ValueError as e:  # not JSON, not UTF-8, a number of thousands of digits, an entry twice
        raise GatingError(f"{where}: this is not valid JSON ({shown(e)}); mend it.") from None
    check_plain(document, where)
    return document


def parse_yaml(text: str, where: str) -> Any:
    """A YAML document of plain, finite values; what looks like a date stays a text. Raises GatingError as parse_json
    does."""
    try:
        document = yaml.load(text, Loader=_Plain)
    except RecursionError:
        raise GatingError(f"{where}: the YAML has more than {DEPTH} levels; write it flatter.") from None
    except (yaml.YAMLError, ValueError, TypeError) as e:  # TypeError: a list as a key
        raise GatingError(f"{where}: this is not valid YAML{_problem(e)}.") from None
    check_plain(document, where)
    return document


def _problem(error: Exception) -> str:
    """Where a reader of YAML stopped, why, and the remedy."""
    mark = getattr(error, "problem_mark", None)
    why = shown(getattr(error, "problem", None) or error)
    tab = " (a tab: YAML wants spaces)" if "\\t" in why else ""
    remedy = "mend that line; a text with a colon, a quote or a leading sign needs quotes around it"
    return f"{f' in line {mark.line + 1}' if mark else ''}: {why}{tab}; {remedy}"


def check_plain(document: object, where: str) -> None:
    """Raises GatingError where a document holds what JSON cannot, half a surrogate pair, or too much (also itself)."""
    level: list[object] = [document]
    for _ in range(DEPTH):
        below: list[object] = []
        for value in level:
            _check_value(value, where)
            if isinstance(value, dict):
                below += [*value, *value.values()]
            elif isinstance(value, list):
                below += value
            if len(below) > VALUES:
                raise GatingError(f"{where}: it holds more than {VALUES:,} values; split it.")
        if not below:
            return
        level = below
    raise GatingError(f"{where}: it has more than {DEPTH} levels; write it flatter.")


def _check_value(value: object, where: str) -> None:
    if isinstance(value, str):
        if not value.isascii() and any(0xD800 <= ord(c) <= 0xDFFF for c in value):
            raise GatingError(f"{where}: {shown(value, 60)!r} holds half a surrogate pair; save the text as UTF-8.")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise GatingError(f"{where}: {value} is not a finite number; write another.")
    elif not isinstance(value, int | dict | list | None):
        raise GatingError(f"{where}: {shown(value, 60)!r} is a {type(value).__name__}; write a text, number or list.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError(f"{_twice([k for k, _ in pairs])!r} is given twice")
    return entries


def _twice(names: list[str]) -> str | None:
    """The first name that is there twice; in one pass, since it is a stranger who says how many there are."""
    counts = Counter(names)
    return next((n for n in names if counts[n] > 1), None)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a finite number")


class _Plain(yaml.SafeLoader):
    """YAML without dates, and without a key that is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [k.value for k, _ in node.value if isinstance(k, yaml.ScalarNode) and k.value != "<<"]
        twice = _twice(names)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Plain.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
