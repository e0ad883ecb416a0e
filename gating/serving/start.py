"""From a configuration to a desk that serves: directions, model, guard, and whether the family can be served at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from gating import models, store
from gating.analysis.reading import read_group
from gating.errors import GatingError, cause
from gating.guarding import file, monitor
from gating.models import Loaded
from gating.models.padding import APART, TOKENS
from gating.pipeline import execute, study
from gating.pipeline.config import ControlsConfig, DataConfig, ReadoutsConfig, RunConfig, SteerConfig
from gating.pipeline.study import Study
from gating.serving import steering
from gating.serving.asked import Terms
from gating.serving.batch import Batch
from gating.serving.config import ServeConfig
from gating.serving.desk import Desk
from gating.serving.record import Decisions, Figures
from gating.serving.rows import Row
from gating.serving.steering import Steering
from gating.steering import decode

NORM = "compliant"  # the persona whose norm doses count, as everywhere in a model's sites


def desk(cfg: ServeConfig, label: str, tell: Callable[[str], None]) -> Desk:
    """Raises GatingError for bad input, for a guard of another model and for a family that cannot be served."""
    guard = None if cfg.guard is None else file.load(cfg.guard)
    figures = Figures()
    decisions = Decisions(cfg.log, figures)
    planned = _planned(cfg, label)
    steering.lower(planned.conditions, None, cfg.seed)  # refuses what no request's row can have
    steered = any(c.interventions for c in planned.conditions)
    if steered:
        tell(f"directions: {', '.join(spec.name for spec in planned.direction_specs)}")
    held = steering.lower(planned.conditions, _directions(planned) if steered else None, cfg.seed)
    loaded = models.load(cfg.model)
    if guard is not None:
        monitor.check(guard, loaded)
    check_family(loaded, held)
    batch = Batch(loaded, held, cfg.limits.rows, guard, cfg.cascade)
    terms = Terms(
        label, held, cfg.act if guard is not None else None, cfg.limits,
        models.architecture(cfg.model).get("context"), min(cfg.model.max_new_tokens, cfg.limits.new_tokens),
        cfg.model.template, cfg.model.system,
    )  # fmt: skip
    return Desk(batch, terms, loaded.tokenizer, decisions, figures)


def _planned(cfg: ServeConfig, label: str) -> Study:
    """The run whose conditions requests may name, and which keeps their directions."""
    sites = cfg.model.sites
    dose = {"layers": sites.persona, "coef": sites.persona_coef, "norm": NORM, "read": sites.persona_read,
            "norm_read": sites.persona_read}  # fmt: skip
    along = {Path(name).stem: [{"direction": name, **dose}] for name in cfg.personas}
    if twice := along.keys() & cfg.conditions.keys():
        raise GatingError(f"conditions.{min(twice)}: there is a persona of this name; choose another.")
    how = replace(cfg.directions, extra=[*cfg.directions.extra, NORM]) if along else cfg.directions
    run = RunConfig(
        model=cfg.model, directions=how, conditions={**along, **cfg.conditions}, seed=cfg.seed,
        steer=SteerConfig("none", layers="all", coef=0), controls=ControlsConfig(random=0, reverse=False),
        data=DataConfig(harmful=None, harmless="harmless", split="select", n=1), max_new_tokens=1,
        readouts=ReadoutsConfig(last=False), runs_dir=cfg.runs_dir,
    )  # fmt: skip
    return study.prepare(run, {"model": label, "experiment": "serve"}, [])


def _directions(planned: Study) -> xr.Dataset:
    execute.execute(planned)
    return read_group(store.open_run(planned.folder), "directions")


def check_family(loaded: Loaded, steering: Steering) -> None:
    """Raises GatingError where a row that joins another midway would get other tokens than alone: the family keeps more
    than keys and values by token, or counts pads."""
    try:
        beside, alone = (_heard(loaded, steering, others) for others in (True, False))
    except Exception as e:  # whatever a family does with a cache that is not its own
        raise _refused(loaded, f"its cache is another: {cause(e)}") from None
    if (beside - alone).abs().max() > APART * alone.std():
        raise _refused(loaded, "a row's tokens depend on the rows beside it")


def _heard(loaded: Loaded, steering: Steering, others: bool) -> torch.Tensor:
    """Logits [step, vocab] of a row that joins a longer one, or is alone."""
    heard: list[torch.Tensor] = []

    def listen(logits: torch.Tensor) -> int:
        heard.append(logits.clone())
        return TOKENS[0]

    batch = Batch(loaded, replace(steering, one={}, dose={}), 2)
    batch.end = frozenset()
    with decode.unwrapped(loaded.model):
        if others:
            batch.join(batch.read_in([Row([*TOKENS], 9, draw=lambda logits: TOKENS[-1])]))
            batch.step()
        batch.join(batch.read_in([Row([*TOKENS][5:12], 9, draw=listen)]))
        if not batch.by_row:
            raise ValueError("it keeps more than keys and values by token")
        batch.step()
        batch.step()
    return torch.stack(heard)


def _refused(loaded: Loaded, why: str) -> GatingError:
    family: Any = loaded.model.config.model_type
    return GatingError(
        f"model.id: the family {family} ({type(loaded.model).__name__}) cannot be served with rows that join and leave "
        f"({why}); use another model, or python -m gating.run."
    )
