"""One run before it begins: what is asked, what is steered, what would overlap, and where the result belongs.

Needs no weights and no network, so that bad input of any kind fails here; gating/pipeline/execute.py does the rest.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gating import models, prompts, store
from gating.analysis import claims
from gating.errors import GatingError
from gating.judging import labels
from gating.pipeline import conditions, config, reused_directions
from gating.pipeline.config import RunConfig
from gating.prompts import Prompt
from gating.remote import address
from gating.steering.direction_specs import Chat, DirectionSpec, direction_spec
from gating.steering.interventions import Condition

KEY_PACKAGES = ("gating", "torch", "transformers", "nnsight")


@dataclass(frozen=True)
class Study:
    """A run that has been checked but not begun."""

    run: RunConfig
    test: list[Prompt]
    direction_specs: list[DirectionSpec]
    conditions: list[Condition]
    warnings: list[str]
    key: str
    folder: Path
    choices: dict[str, str]  # which file of each config group: {"model": "smollm", ...}
    overrides: list[str]  # keys given on the command line
    claims: dict[str, Any]  # the family of claims that this run is to decide; empty where there is none

    @property
    def store(self) -> Path:
        return self.folder / store.STORE

    @property
    def batch_rows(self) -> int:
        return self.run.backend.batch_rows or self.run.model.batch_rows

    @property
    def prompt_batch(self) -> int:
        """Prompts a prompt batch: the unit of work, of writing and of resuming is one under every condition."""
        return max(1, min(len(self.test), self.batch_rows // len(self.conditions)))

    @property
    def chats(self) -> list[Chat]:
        """What the directions are extracted from, each once."""
        return _chats(self.direction_specs)

    @property
    def answered(self) -> list[Chat]:
        """Those of them that must be answered first."""
        return _chats([spec for spec in self.direction_specs if spec.needs_answers(self.run.directions.filter)])

    @property
    def max_new_tokens(self) -> int:
        return self.run.max_new_tokens or self.run.model.max_new_tokens


def _chats(specs: list[DirectionSpec]) -> list[Chat]:
    return list(dict.fromkeys(chat for spec in specs for chat in (*spec.positive, *spec.negative)))


def prepare(run: RunConfig, chosen: dict[str, str], overrides: list[str]) -> Study:
    """Everything that can be known without weights. Raises GatingError for bad input of any kind."""
    config.check(run)
    resolved = conditions.resolve(run)
    of_run = resolved.conditions(models.architecture(run.model)["layers"])
    family = _claims(run)
    extract = _extraction_prompts(run) if resolved.direction_names else []
    how = run.directions
    specs = [
        direction_spec(name, how.position, run.model.system, extract, how.questions)
        for name in resolved.direction_names
    ]
    test, warnings = _test_prompts(run)
    warnings += _overlaps(run, test, specs)
    key = _key(run, test, specs, family)
    about = chosen.get("experiment") or conditions.steer_label(run)
    folder = Path(run.runs_dir) / f"{chosen.get('model', run.model.name)}-{about}-{key}"
    return Study(run, test, specs, of_run, warnings, key, folder, chosen, overrides, family)


def _claims(run: RunConfig) -> dict[str, Any]:
    if "file" in run.claims:
        return claims.load(str(run.claims["file"]))
    if run.claims.get("family") is None:
        return {}
    claims.check(run.claims)
    return run.claims


def _extraction_prompts(run: RunConfig) -> list[Prompt]:
    sides: list[Prompt] = []
    for name, harmful in (("harmful", True), ("harmless", False)):
        side = prompts.load(getattr(run.directions, name), harmful, "extract", f"directions.{name}")
        sides += prompts.sample(prompts.deduplicate(side)[0], run.directions.n, run.seed)
    return sides


def _test_prompts(run: RunConfig) -> tuple[list[Prompt], list[str]]:
    """The prompts to ask, `data.n` of each set, and a warning for each duplicate that was left out."""
    asked: list[Prompt] = []
    warnings: list[str] = []
    for name in ("harmful", "harmless", "borderline"):
        source = getattr(run.data, name)
        if source:
            loaded = prompts.load(source, name == "harmful", run.data.split, f"data.{name}")
            if not loaded:
                raise GatingError(
                    f"data.{name}={source!r} has no prompts in the split data.split={run.data.split!r}; choose another."
                )
            unique, repeats = prompts.deduplicate(loaded)
            n = run.data.n if name == "harmful" else run.data.n_harmless or run.data.n
            asked += prompts.sample(unique, n, run.seed)
            warnings += repeats
    unique, repeats = prompts.deduplicate(asked)
    return unique, warnings + repeats


def _overlaps(run: RunConfig, test: list[Prompt], specs: list[DirectionSpec]) -> list[str]:
    """Test prompts that something was selected on: the directions' own prompts, or the adapter's training prompts."""
    used = {chat.user for chat in _chats(specs)}
    trained = models.training_prompts(run.model)
    overlaps = {"extraction": prompts.overlap(used, test), "adapter training": prompts.overlap(trained, test)}
    warnings = [
        f"{len(both)} of {len(test)} test prompts are also {kind} prompts (first: {both[0].source}:{both[0].hash})"
        for kind, both in overlaps.items()
        if both
    ]
    if warnings and not run.data.allow_overlap:
        raise GatingError(
            f"data: {'; '.join(warnings)}. A rate on prompts that were used for selection is not a test: choose other "
            "prompts, or say data.allow_overlap=true (the run then carries a warning)."
        )
    return warnings


def _deciding(run: RunConfig) -> dict[str, Any]:
    out = {k: v for k, v in asdict(run).items() if k not in config.NOT_IN_KEY}
    out["backend"] = {k: v for k, v in out["backend"].items() if k not in config.NOT_IN_KEY_OF_BACKEND}
    return out


def _device(run: RunConfig) -> str:
    """Where the model runs: this machine's device type, or the server's address."""
    if run.backend.name != "ndif":
        return models.device_type(run.model)
    return address.address(run.backend.host)


def _key(run: RunConfig, test: list[Prompt], specs: list[DirectionSpec], family: dict[str, Any]) -> str:
    """A hash of everything that determines the result: settings, contents of prompts and personas, the model's
    identity, the device type and the versions of what computes."""
    installed = store.versions()
    material: dict[str, Any] = {
        "schema": store.SCHEMA_VERSION,
        "config": _deciding(run),
        "source": reused_directions.digest(run.directions.source) if run.directions.source else None,
        "test": prompts.digest(test),
        "directions": [(s.name, s.role, s.position, s.positive, s.negative) for s in specs],
        "claims": family,
        "model": models.identity(run.model),
        "device": _device(run),
        "judge": labels.RULE_VERSION,
        "versions": {name: installed[name] for name in KEY_PACKAGES},
    }
    return hashlib.sha256(json.dumps(material, sort_keys=True).encode()).hexdigest()[:10]
