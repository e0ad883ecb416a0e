"""The runs behind a choice: each an ordinary one, on the same directions and the first prompts of the same order."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import xarray as xr

from gating import store
from gating.choosing import candidates
from gating.choosing.config import ChooseConfig, WorstConfig
from gating.models import ModelConfig
from gating.pipeline import execute, study
from gating.pipeline.config import DataConfig, ReadoutsConfig, RunConfig, SteerConfig


@dataclass
class Runner:
    """Makes the runs of one choice."""

    cfg: ChooseConfig | WorstConfig
    label: str  # the model's, in the runs' folders
    model: ModelConfig
    what: str = "choose"  # the runs' experiment, before their own names
    personas: tuple[str, ...] = (candidates.PERSONA,)  # whose directions are read
    tokens: bool = False  # whether every generated token is read, as a guard does
    runs: list[Path] = field(default_factory=list)

    def __call__(
        self, name: str, conditions: dict[str, Any], n: int, n_harmless: int, new: int, split: str = "select"
    ) -> xr.DataTree:
        """A run with these conditions beside the baseline, from where it was left or as it was finished."""
        cfg = self.cfg
        source = str(self.runs[0]) if self.runs else cfg.directions.source
        run = RunConfig(
            model=self.model, backend=cfg.backend, steer=SteerConfig("none", layers="all", coef=0),
            conditions=conditions, max_new_tokens=new, seed=cfg.seed, runs_dir=cfg.runs_dir, force=cfg.force,
            data=DataConfig(harmless="harmless", split=split, n=n, n_harmless=n_harmless),
            readouts=ReadoutsConfig(tokens=self.tokens),
            directions=replace(cfg.directions, extra=list(self.personas), source=source),
        )  # fmt: skip
        planned = study.prepare(run, {"model": self.label, "experiment": f"{self.what}-{name}"}, [])
        execute.execute(planned)
        self.runs.append(planned.folder)
        return store.open_run(planned.folder)
