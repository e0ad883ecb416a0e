"""Where a result comes from: when, with which versions, from which commit."""

from __future__ import annotations

import importlib.metadata
import subprocess
from datetime import UTC, datetime
from pathlib import Path

PACKAGES = ("gating", "torch", "transformers", "nnsight", "xarray", "zarr", "numpy", "scikit-learn", "peft")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Installed versions of what determines a result."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def git_revision() -> str:
    """The source tree's commit, with `+dirty` where files differ from it; `unknown` outside a checkout."""
    here = Path(__file__).parent
    try:
        commit = _git(here, "rev-parse", "--short=12", "HEAD")
        return f"{commit}+dirty" if _git(here, "status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(folder: Path, *args: str) -> str:
    return subprocess.run(["git", *args], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
