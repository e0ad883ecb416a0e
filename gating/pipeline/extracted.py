"""Directions that a run of the same folder has extracted already: found by content, and copied file by file.

A multirun over what is steered extracts once. Two runs have the same directions where everything that they are made of
is the same, to the last bit of the machine: the model, the code, every text, every setting.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import xarray as xr
from filelock import FileLock

from gating import store, swap
from gating.errors import GatingError
from gating.pipeline import drawn, key
from gating.pipeline.study import Study

log = logging.getLogger(__name__)

PLACE = ".extracted"  # in runs_dir: a file for each digest, which names the run that has these directions
GROUPS = ("responses", "user_responses", "responses_judged", "geometry", "directions")  # that extraction writes


def digest(study: Study, signature: xr.Dataset, fingerprint: str, machine: Mapping[str, object]) -> str:
    """16 hex digits of all that the directions of a run are made of. signature: of the model as it is loaded;
    machine: what the last bits may depend on."""
    run, chats = study.run, study.chats
    settings = key.deciding(run)
    material = [
        study.identity.basis,
        fingerprint,
        hashlib.sha256(np.ascontiguousarray(signature["signature"].values).tobytes()).hexdigest(),
        machine,
        [settings[name] for name in ("model", "directions", "label_rule", "seed")],
        key.of_filter(run.directions.filter),
        run.backend.name,
        study.batch_rows,  # the shape of a batch, on which rounding may depend
        [[s.name, s.role, s.position, s.positive, s.negative] for s in study.direction_specs],
        [study.ids(asked.user, asked.system) for asked in chats],
        drawn.wanted(study.conditions),
        study.needs_resting,
    ]
    return hashlib.sha256(json.dumps(material, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def once(study: Study, of: str) -> Iterator[bool]:
    """Whether the directions of this digest are in the study's store now, taken from a run that has them. Where they
    are not, the caller extracts them, and runs that want the same wait for it. Under force=true and reuse=false nothing
    is taken."""
    if study.run.force or not study.run.reuse:
        yield False
        return
    place = Path(study.run.runs_dir) / PLACE
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / f"{of}.lock"):
        taken = _taken(study, of, place / of)
        yield taken
        if not taken:
            swap.write(place / of, study.folder.name)


def _taken(study: Study, of: str, note: Path) -> bool:
    """A run that is gone, or whose files are not as they were written, has nothing to take."""
    try:
        name = Path(note.read_text(encoding="utf-8").strip()).name  # of this very folder, wherever that stands
        source = store.locate(Path(study.run.runs_dir) / name)
        if source == study.store or not store.has_group(source, "directions"):
            return False
        if store.read_group(source, "directions", []).attrs.get("digest") != of:
            return False
        store.copy_groups(source, study.store, GROUPS, {"taken_from": name})
    except (OSError, UnicodeDecodeError, GatingError) as e:
        if not isinstance(e, FileNotFoundError):
            log.info("directions are extracted anew: %s", e)
        return False
    return True
