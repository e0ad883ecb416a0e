"""A run computed again (force=true): a new store is made beside the old one, which stays until the new one is whole.

The new store stands in the folder `.again` of the run's folder; at the end it takes the old one's place.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from gating import swap
from gating.errors import GatingError
from gating.store.files import read_list
from gating.store.files import writing as writing_files
from gating.store.reading import read_group
from gating.store.schema import AGAIN, STORE

ANSWERS = ["token_ids", "completion"]
LABELLED = ("judgements", "labels")  # groups that others added: judges, and people


def place(folder: Path) -> Path:
    """The folder in which a run is computed again."""
    return folder / AGAIN


def cut(folder: Path) -> bool:
    """Whether a process was killed between the two steps of `take_place`."""
    return not (folder / STORE).exists() and (folder / AGAIN / STORE).exists()


def settle(folder: Path) -> None:
    """End what was cut."""
    if cut(folder):
        (folder / AGAIN / STORE).rename(folder / STORE)
        discard(folder)


def discard(folder: Path) -> None:
    """Remove what was begun again."""
    shutil.rmtree(folder / AGAIN, ignore_errors=True)


def take_place(folder: Path) -> str:
    """The new store instead of the old one; says in a few words what became of other judges' labels. They go over where
    the answers are the same; else the old store stays, in a folder of its own."""
    old, new = folder / STORE, folder / AGAIN / STORE
    judged = any((old / group).is_dir() for group in LABELLED)
    if not judged or _carried(old, new):
        swap.replace(new, old)
        discard(folder)
        return ""
    before = _free(folder)
    before.mkdir()
    old.rename(before / STORE)
    new.rename(old)
    discard(folder)
    return f"; other judges' labels are of the answers before, which are kept in {before}"


def _free(folder: Path) -> Path:
    n = 1
    while (folder / f"before-{n}").exists():
        n += 1
    return folder / f"before-{n}"


def _carried(old: Path, new: Path) -> bool:
    """Whether the new store has the same answers, and so now the old one's judgements. A damaged one gives none."""
    try:
        a, b = (read_group(path, "outcomes")[ANSWERS] for path in (old, new))
        if not a.equals(b):
            return False
        with writing_files(new) as files:
            for group in LABELLED:
                files.copy(old, read_list(old), group)
        return True
    except GatingError:
        return False
