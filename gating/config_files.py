"""Where the configurations are, and which choices each of their groups has."""

from __future__ import annotations

from pathlib import Path


def conf_dir() -> Path:
    """The folder of configurations: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    return next(p for p in (package / "conf", package.parent / "conf") if p.is_dir())


def group_choices(group: str) -> list[str]:
    return sorted(p.stem for p in (conf_dir() / group).glob("*.yaml"))


def groups() -> list[str]:
    return sorted(p.name for p in conf_dir().iterdir() if p.is_dir())
