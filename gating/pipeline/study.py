"""One run before it begins: what is asked, what is steered, what would overlap, and where the result belongs.

Needs no weights and no network, so that bad input of any kind fails here; gating/pipeline/execute.py does the rest.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import xarray as xr
import yaml
from omegaconf import OmegaConf

from gating import chat, models, prompts, store
from gating.analysis import claims
from gating.errors import GatingError
from gating.pipeline import conditions, config, fits
from gating.pipeline.config import RunConfig
from gating.pipeline.key import Key, Tokens, chats, encoded, key, matching_prompts
from gating.prompts import Prompt
from gating.steering.direction_specs import Chat, DirectionSpec, direction_spec
from gating.steering.interventions import Condition


@dataclass(frozen=True)
class Study:
    """A run that has been checked but not begun."""

    run: RunConfig
    test: list[Prompt]
    direction_specs: list[DirectionSpec]
    conditions: list[Condition]
    warnings: list[str]
    identity: Key
    folder: Path
    choices: dict[str, str]  # which file of each config group: {"model": "smollm", ...}
    overrides: list[str]  # keys given on the command line
    claims: dict[str, Any]  # the family of claims that this run is to decide; empty where there is none

    @property
    def key(self) -> str:
        return self.identity.name

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
    def needs_resting(self) -> bool:
        """Whether an intervention leads to what harmless prompts have at rest."""
        return any(iv.reference == "mean" for c in self.conditions for iv in c.interventions)

    @property
    def chats(self) -> list[Chat]:
        """What the directions are extracted from, each once."""
        return chats(self.direction_specs)

    @property
    def answered(self) -> list[Chat]:
        """Those of them that must be answered first."""
        return chats([spec for spec in self.direction_specs if spec.needs_answers(self.run.directions.filter)])

    def ids(self, user: str, system: str | None) -> list[int]:
        """Token ids of a chat that the key was made of: they are made once, so that no template changes them midway."""
        assert self.identity.tokens is not None
        return list(self.identity.tokens[Chat(system, user)])

    def tokens_of(self, asked: Collection[Chat], tokenizer: chat.Tokenizer) -> Tokens:
        """Token ids of chats of which some were not known before, such as answers that are quoted."""
        known = self.identity.tokens or {}
        unknown = encoded(tokenizer, (c for c in asked if c not in known), self.run.model.template)
        return {c: known.get(c) or unknown[c] for c in asked}

    @property
    def max_new_tokens(self) -> int:
        return self.run.max_new_tokens or self.run.model.max_new_tokens


def prepare(run: RunConfig, chosen: dict[str, str], overrides: list[str]) -> Study:
    """Everything that can be known without weights. Raises GatingError for bad input of any kind."""
    config.check(run)
    resolved = conditions.resolve(run)
    sizes = models.architecture(run.model)
    of_run = resolved.conditions(sizes["layers"])
    family = _claims(run)
    if family:
        claims.check_conditions(cast(claims.Family, family), {c.name: c.kind for c in of_run})
    extract = _extraction_prompts(run) if resolved.direction_names else []
    how = run.directions
    specs = [
        direction_spec(name, how.position, run.model.system, extract, how.questions, run.seed)
        for name in resolved.direction_names
    ]
    test, warnings = test_prompts(run)
    warnings += _overlaps(run, test, specs) + _matched_on(run, test, of_run)
    run_key = key(run, test, specs, of_run, family)
    fits.check(run, test, specs, run_key.tokens or {}, sizes.get("context"))
    if run_key.dated:
        warnings.append("model: its chat template writes today's date into every prompt; tomorrow this is another run")
    if run.model.trust_remote_code:
        warnings.append("model.trust_remote_code=true: Python files that came with the model run with your rights")
    if family.get("sites") and not run.model.sites.chosen:
        name = chosen.get("model", run.model.name)
        warnings.append(
            f"model.sites: blocks and doses were never chosen on {run.model.id or name}, so that no claim about them "
            f"can be tested; choose them first: python -m gating.choose model={name} (and its other settings)"
        )
    about = chosen.get("experiment") or conditions.steer_label(run)
    folder = Path(run.runs_dir) / f"{chosen.get('model', run.model.name)}-{about}-{run_key.name}"
    return Study(run, test, specs, of_run, warnings, run_key, folder, chosen, overrides, family)


def of_store(run: xr.DataTree) -> Study:
    """What a run was, from the configuration that its store keeps."""
    stored = yaml.safe_load(str(run.attrs["config"]))
    typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), OmegaConf.create(stored)))
    assert isinstance(typed, RunConfig)
    return prepare(typed, {}, [])


def _claims(run: RunConfig) -> dict[str, Any]:
    given = {key for key, value in run.claims.items() if value is not None}
    if "file" in given:
        if given != {"file"}:
            raise GatingError("claims: the file of a family is given and a family too; give claims=FILE alone.")
        return {**claims.load(str(run.claims["file"]))}
    if not given:
        return {}
    claims.check(run.claims)
    return run.claims


def _extraction_prompts(run: RunConfig) -> list[Prompt]:
    sides: list[Prompt] = []
    for name, harmful in (("harmful", True), ("harmless", False)):
        side = prompts.load(getattr(run.directions, name), harmful, "extract", f"directions.{name}")
        sides += prompts.sample(prompts.deduplicate(side)[0], run.directions.n, run.seed)
    return sides


def test_prompts(run: RunConfig) -> tuple[list[Prompt], list[str]]:
    """The prompts to ask, `data.n` of each set, and a warning for each duplicate that was left out."""
    asked: list[Prompt] = []
    warnings: list[str] = []
    for name in ("harmful", "harmless", "borderline"):
        source = getattr(run.data, name)
        if source is not None:
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
    used = {chat.user for chat in chats(specs)}
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


def _matched_on(run: RunConfig, test: list[Prompt], of_run: list[Condition]) -> list[str]:
    """A warning where matched controls were matched on the prompts asked: there they match by construction."""
    if not any(iv.draw == "matched" for condition in of_run for iv in condition.interventions):
        return []
    both = prompts.overlap([p.text for p in matching_prompts(run.seed)], test)
    return [f"{len(both)} of {len(test)} test prompts are also those that matched controls are matched on"] * bool(both)
