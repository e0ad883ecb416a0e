"""The file that a choice is written to: the model's own settings, with the sites that were chosen for it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import xarray as xr
import yaml

from gating import swap
from gating.choosing.stages import Chosen
from gating.errors import GatingError, naming
from gating.models import ModelConfig

FIRST = "# Sites chosen by python -m gating.choose on the select split."
PATHS = ("id", "gguf_file", "adapter")  # of which a relative one would mean another file elsewhere


def sites(chosen: Chosen) -> dict[str, Any]:
    """`sites` of a choice: the persona's block and the refusal direction's, and blocks at the paper's distances from
    them (18, 20, 14, 22, 24 of 28; arXiv 2606.26161)."""
    n, block, late = chosen.n_layers, chosen.persona.block, chosen.refusal.block

    def before(share: float, least: int) -> int:
        return max(0, block - max(least, round(share * n)))

    early = before(6 / 28, 1)
    return {
        "chosen": f"select split, n = {chosen.n}, {chosen.key}",
        "before": before(2 / 28, 1),
        "persona": block,
        "persona_read": block,
        "persona_before": max(0, early - max(1, round(6 / 28 * n))),
        "early": early,
        "late": late,
        "after": f"{late}-{n - 1}",
        "last": min(n - 1, late + max(1, round(2 / 28 * n))),
        "window": f"{late}-{min(n - 1, late + round(4 / 28 * n))}",
        "refusal_read": chosen.refusal.read,
        "norm": "compliant",
        "persona_coef": chosen.persona.coef,
        "refusal_coef": chosen.refusal.coef,
        "relative": float(f"{chosen.refusal.dose:.2g}"),
    }


def settings(chosen: Chosen) -> dict[str, Any]:
    """The model's settings that are not defaults, `steer` and `sites`."""
    own, default = asdict(chosen.model), asdict(ModelConfig())
    kept = {key: value for key, value in own.items() if value != default[key] or key in ("name", "kind")}
    kept |= {key: _lasting(kept[key]) for key in PATHS if kept.get(key)}
    if "arch" in kept:
        kept["arch"] = {key: value for key, value in kept["arch"].items() if value is not None}
    persona = chosen.persona
    steer = {"layers": persona.block, "coef": persona.coef, "norm": "natural", "read": "same"}
    openings = {"first_token_openings": chosen.model.first_token_openings}
    return {**kept, **openings, "steer": steer, "sites": sites(chosen)}


def _lasting(path: str) -> str:
    there = Path(path).expanduser()
    return str(there.resolve()) if there.exists() else path


def write(chosen: Chosen, place: Path) -> None:
    """Write the file, with the candidates whose answers were read and the runs as comments. Raises GatingError where a
    file that is not one of these stands there."""
    check_place(place)
    said = [FIRST]
    said += [f"# {line}" for heading, table in chosen.tables if "refusal" in table for line in lines(heading, table)]
    said += [f"# warning: {warning}" for warning in chosen.warnings]
    said += [f"# runs: {', '.join(folder.name for folder in chosen.runs)}"]
    body = yaml.safe_dump(settings(chosen), sort_keys=False, allow_unicode=True)
    with naming(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        swap.write(place, "\n".join(said) + "\n" + body)


def check_place(place: Path) -> None:
    """Raises GatingError where something stands that was not written here."""
    if place.is_dir() or (place.exists() and not place.read_bytes().startswith(FIRST.encode())):
        raise GatingError(f"out={place}: another file stands there; give another name, or move it away.")


def lines(heading: str, table: xr.Dataset) -> list[str]:
    """Candidates whose answers were read, as text."""
    out = [f"{heading} ({table.attrs['n']} harmful and {table.attrs['n_harmless']} harmless select prompts)"]
    for i in range(table.sizes["condition"]):
        row = table.isel(condition=i)
        verdict = "chosen" if bool(row["chosen"]) else str(row["reason"].item()) or "kept"
        low, high = (100 * float(row[name]) for name in ("refusal_low", "refusal_high"))
        out.append(
            f"  {row['condition'].item()}: refusal {float(row['refusal']):.0%} [{low:.0f}, {high:.0f}], harmless "
            f"{float(row['harmless']):.0%}, degenerate {float(row['degenerate']):.0%}, KL {float(row['kl']):.2f}: "
            f"{verdict}"
        )
    return out
