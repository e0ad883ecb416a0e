"""`pip install gating` reads, analyses and draws stores; what the rest needs comes with extras, and here is which."""

from __future__ import annotations

import importlib.util

from gating.errors import GatingError

PACKAGES = {  # extra -> what the code imports of it; pyproject.toml has the versions
    "run": ("torch", "transformers", "nnsight", "sklearn", "peft", "gguf", "safetensors", "platformdirs"),
    "quantized": ("bitsandbytes", "accelerate"),
    "endpoint": ("httpx", "tenacity"),
    "ndif": ("httpx", "tenacity", "zstandard"),
    "serve": ("fastapi", "uvicorn", "prometheus_client"),
    "hub": ("datasets",),
    "export": ("pyarrow", "h5netcdf"),
    "search": ("optuna",),
    "remote": ("httpx", "obstore"),
    "push": ("huggingface_hub", "safetensors"),
    "inspect": ("inspect_ai",),
    "joblib": ("hydra-joblib-launcher",),  # which Hydra finds by itself
    "slurm": ("hydra-submitit-launcher",),
}


def install(package: str) -> str:
    """The commands that bring a package, such as `pip install 'gating[run]'`; empty for one that no extra has."""
    extras = [extra for extra, packages in PACKAGES.items() if package in packages]
    return " or ".join(f"pip install 'gating[{extra}]'" for extra in extras)


def require(package: str, reason: str) -> None:
    """Raises GatingError naming the extra to install where an optional package is missing.

    reason: the key or thing that needs the package.
    """
    if importlib.util.find_spec(package) is None:
        raise GatingError(f"{reason} needs the package {package}, which is not installed: {install(package)}.")


def remedy(error: ModuleNotFoundError) -> str | None:
    """One paragraph for a package that an extra brings: which, and the command that installs it. None for others."""
    package = (error.name or "").partition(".")[0]
    commands = install(package)
    return f"{package} is not installed, and this needs it: {commands}." if commands else None


def launcher_remedy(message: str) -> str | None:
    """One paragraph for a launcher that Hydra does not find and an extra brings; None for other messages."""
    for launcher in ("joblib", "submitit"):
        if f"hydra/launcher/{launcher}" in message:
            return f"hydra/launcher={launcher} is not installed: {install(f'hydra-{launcher}-launcher')}."
    return None
