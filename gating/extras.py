"""`pip install gating` reads, analyses and draws stores. What the rest needs comes with extras; this names the right one."""

from __future__ import annotations

PACKAGES = {  # extra -> what the code imports of it; pyproject.toml has the versions
    "run": ("torch", "transformers", "nnsight", "sklearn", "peft", "safetensors", "platformdirs"),
    "endpoint": ("httpx", "tenacity"),
    "ndif": ("httpx", "tenacity", "zstandard"),
    "gguf": ("gguf",),
    "hub": ("datasets",),
}


def remedy(error: ModuleNotFoundError) -> str | None:
    """One paragraph for a package that an extra brings: which, and the command that installs it. None for other packages."""
    package = (error.name or "").partition(".")[0]
    commands = [f"pip install 'gating[{extra}]'" for extra, packages in PACKAGES.items() if package in packages]
    return f"{package} is not installed, and this needs it: {' or '.join(commands)}." if commands else None
