"""The command that makes a run again, from what its store keeps."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

import xarray as xr
import yaml

FREE = ("conditions", "parts", "claims", "directions.derived", "directions.variants", "model.template")
PLACES = ("runs_dir", "dry_run", "force", "full_text")  # say where and how, not what


def command(run: xr.DataTree) -> str:
    """`python -m gating.run KEY=VALUE ...` with the words that the run was begun with; empty where it does not say.
    What the defaults of this version are may differ: the configuration below it has every value."""
    chosen = json.loads(run.attrs.get("choices", "{}"))
    if "backend" not in chosen:  # a step of another command (gating.choose, gating.audit)
        return ""
    config = yaml.safe_load(run.attrs["config"])
    given = (key for key in dict.fromkeys(json.loads(run.attrs["overrides"])) if key not in PLACES)
    try:
        words = [f"{key}={chosen[key]}" if chosen.get(key) else _word(config, key) for key in given]
    except (LookupError, TypeError, ValueError):  # a place that the configuration does not have (any more)
        return ""
    return shlex.join(["python", "-m", "gating.run", *words])


def _word(config: Mapping[str, Any], key: str) -> str:
    """The word that gives a dotted key the value that the run had."""
    *path, last = key.split(".")
    value: Any = config
    for part in path:
        value = value[int(part)] if isinstance(value, list) else value[part]
    if isinstance(value, list):
        return f"{key}={_written(value[int(last)])}"
    if last not in value:  # the run was begun without it
        return f"~{key}"
    # a mapping that takes any key: the word may add one, or change one
    return f"{'++' if '.'.join(path) in FREE else ''}{key}={_written(value[last])}"


def _written(value: Any) -> str:
    """A value as Hydra reads it."""
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, str):
        return value if value and all(c.isalnum() or c in "-_./+@" for c in value) else json.dumps(value)
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return str(value)
