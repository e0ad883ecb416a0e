"""What a command that reads stores takes: runs, and words `key=value`."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from gating.errors import GatingError, choices

KEY = re.compile(r"[a-z_][a-z_.]*=")


def is_setting(word: str) -> bool:
    """Whether a word is `key=value`, and no file's path."""
    return bool(KEY.match(word)) and not Path(word).exists()


def parsed(words: Sequence[str], keys: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """The runs, and the value of each key that is given. Raises GatingError for a key that the command does not take,
    one given twice or without a value, and where there is no run."""
    values: dict[str, str] = {}
    for word in filter(is_setting, words):
        key, _, value = word.partition("=")
        if key not in keys:
            raise GatingError(f"{key}={value!r} is not a word of this command: use {choices(keys, key)}.")
        if key in values or not value:
            raise GatingError(f"{key} has {'two values' if value else 'no value'}: write {key}=VALUE once.")
        values[key] = value
    runs = [word for word in words if not is_setting(word)]
    if not runs:
        raise GatingError("no run given: name a run's folder.")
    return runs, values


def number(values: dict[str, str], key: str, least: int, most: int) -> int | None:
    """A whole number among the values, None where it was not given. Raises GatingError for one out of its range."""
    if key not in values:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", values[key]) or not least <= int(values[key]) <= most:
        raise GatingError(f"{key}={values[key]!r}: give a whole number from {least} to {most}.")
    return int(values[key])
