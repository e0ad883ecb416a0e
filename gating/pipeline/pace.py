"""How fast a run went, kept with it, and how long another of the same model would take at that rate."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from gating import models, store
from gating.errors import GatingError
from gating.pipeline.study import Study

LOOKED_AT = 20  # of a folder's runs, the newest


def attribute(rows: int, seconds: float) -> dict[str, str]:
    """What a store keeps of the time that its rows took in the sitting that finished it, scores and labels included."""
    return {"pace": json.dumps({"rows": rows, "seconds": round(seconds, 3)})} if rows else {}


def line(study: Study) -> str:
    """The time that a run would take here, by the newest complete run of its folder that the same model gave."""
    for name, attrs in _complete(study):
        pace = json.loads(attrs["pace"])
        a_row = pace["seconds"] / pace["rows"] * study.max_new_tokens / int(attrs["max_new_tokens"])
        rows = len(study.test) * len(study.conditions) * (1 + study.run.sampling.n)
        time = timedelta(seconds=round(rows * a_row))
        return f"time: about {time} for the answers, at the rate of {name} ({1 / a_row:.2g} rows a second)"
    return f"time: not known before a first run of this model in {study.run.runs_dir}"


def _complete(study: Study) -> Iterator[tuple[str, Any]]:
    """Name and attributes of runs of this model, precision and kind of device, the newest first."""
    same = (
        study.run.model.id or study.run.model.name,
        models.dtype_name(study.run.model),
        models.device_type(study.run.model),
    )
    folders = sorted(Path(study.run.runs_dir).glob(f"*/{store.STORE}"), key=lambda p: p.stat().st_mtime, reverse=True)
    for path in folders[:LOOKED_AT]:
        try:
            attrs = store.read_attrs(path)
        except GatingError:
            continue
        found = (attrs.get("model_id"), attrs.get("dtype"), str(attrs.get("device")).partition(":")[0])
        if attrs.get("status") == "complete" and "pace" in attrs and found == same:
            yield path.parent.name, attrs
