"""Put a finished file or folder in another's place: whoever looks, or kills this process, finds one of them in full."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from pathlib import Path

CURRENT_FOLDER, EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


def write(place: Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8) in full, or leave what stood there. Raises OSError."""
    descriptor, draft = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
    try:
        with os.fdopen(descriptor, "wb") as f:
            f.write(content.encode() if isinstance(content, str) else content)
        os.chmod(draft, 0o644)  # temporary files are born private
        os.replace(draft, place)
    except BaseException:
        os.unlink(draft)
        raise


def replace(built: Path, place: Path) -> None:
    """Move `built` to `place`, on the same file system, and delete what stood there. One step where the system can
    exchange two folders (Linux); elsewhere two, and a kill between them leaves the old one beside as NAME.before."""
    if not place.exists():
        os.replace(built, place)
    elif _exchange(built, place):
        shutil.rmtree(built)
    else:
        before = place.with_name(f"{place.name}.before")
        os.replace(place, before)
        os.replace(built, place)
        shutil.rmtree(before)


def _exchange(one: Path, other: Path) -> bool:
    """Whether the system exchanged the two."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(CURRENT_FOLDER, bytes(one), CURRENT_FOLDER, bytes(other), EXCHANGE) == 0
