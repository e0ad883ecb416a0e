"""The command that makes a run again, from what its store keeps."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

import xarray as xr
import yaml

PLACES = ("runs_dir", "dry_run", "force", "full_text")  # say where and how, not what


def command(run: xr.DataTree) -> str:
    """`python -m gating.run KEY=VALUE ...` with the words that the run was begun with; empty where it does not say.
    What the defaults of this version are may differ: the configuration below it has every value."""
    chosen = json.loads(run.attrs.get("choices", "{}"))
    if "backend" not in chosen:  # a step of another command (gating.choose, gating.audit)
        return ""
    config = yaml.safe_load(run.attrs["config"])
    words = [
        f"{key}={chosen[key] if chosen.get(key) else _written(_value(config, key))}"
        for key in dict.fromkeys(json.loads(run.attrs["overrides"]))
        if key not in PLACES
    ]
    return shlex.join(["python", "-m", "gating.run", *words])


def _value(config: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key; None where nothing stands."""
    value: Any = config
    for part in key.split("."):
        if isinstance(value, list) and part.isdigit():
            value = value[int(part)] if int(part) < len(value) else None
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return value


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
