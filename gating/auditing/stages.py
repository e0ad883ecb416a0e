"""The runs of an audit, in order: what dose of steering is allowed; the model under every persona, by prompt and by
steering; and each adapter likewise, along the directions of the model without it and along directions of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import xarray as xr

from gating import personas, prompts, store
from gating.analysis.reading import held_readouts, read_group
from gating.auditing import asking, endpoint
from gating.auditing.config import AuditConfig, check, names
from gating.models import ModelConfig
from gating.pipeline import execute, study
from gating.pipeline.config import (
    CALIBRATION_PROMPTS,
    ControlsConfig,
    DataConfig,
    ReadoutsConfig,
    RunConfig,
    SteerConfig,
)

DOSE = "compliant"  # the persona whose dose is the model's own (conf/model/NAME.yaml, sites)
NONE, PROMPT, STEERING, AGAIN, RANDOM = "none", "prompt", "steering", "steering again", "random"
LEAST_KL = 1e-3  # nats
BASE = "base"  # the model without any of the adapters that are audited
STEERED = "Steering is at one block and one first-token KL; other places and doses may do more."


@dataclass(frozen=True)
class Part:
    """One run of an audit: of which model, which inductions its conditions are, and where it is."""

    model: str  # BASE, or an adapter's folder
    tree: xr.DataTree
    inductions: dict[str, tuple[str, str]]  # condition -> induction, persona
    folder: Path


@dataclass
class Audited:
    """What an audit measured, before anything is concluded."""

    parts: list[Part] = field(default_factory=list)
    kl: float | None = None  # nats; None is equal norm
    borderline: frozenset[str] = frozenset()  # hashes of prompts
    warnings: list[str] = field(default_factory=list)
    left_open: tuple[str, ...] = (STEERED,)  # what the way in which the model was asked cannot show


def audit(cfg: AuditConfig, label: str, tell: Callable[[str], None]) -> Audited:
    """Make the runs of an audit, or open those that are there. label: the model's name in folders; tell: is given a
    line before each. Raises GatingError for bad input, and for adapters that do not fit the model."""
    check(cfg)
    sites = cfg.model.sites
    out = Audited(borderline=_hashes(cfg.borderline))
    if cfg.endpoint.url is not None:
        return _behind_an_api(cfg, label, tell, out)
    if not sites.chosen:
        out.warnings.append(
            "model.sites: blocks and doses were never chosen on this model, so that what steering does not do says "
            f"nothing; choose them first: python -m gating.choose model={label}"
        )
    out.kl = cfg.kl or _own_kl(cfg, label, tell)
    if out.kl is None:
        out.warnings.append(
            "steering: the model's own dose does not change the first token of harmless answers, so personas are "
            "steered at equal norm and not at equal KL"
        )
    at = "equal norm" if out.kl is None else f"{out.kl:g} nats"
    tell(f"the model: {len(names(cfg))} personas by prompt and by steering, at {at}")
    base = _run(cfg, BASE, label, cfg.model, out.kl, (PROMPT, STEERING))
    out.parts.append(base)
    for path in cfg.adapters:
        adapted, name = replace(cfg.model, adapter=path), Path(path).name
        tell(f"adapter {name}: along the base model's directions")
        out.parts.append(_run(cfg, name, f"{label}-{name}", adapted, out.kl, (PROMPT, STEERING), base.folder))
        if cfg.again:
            tell(f"adapter {name}: along directions of its own")
            out.parts.append(_run(cfg, name, f"{label}-{name}", adapted, out.kl, (AGAIN,)))
    return out


def _behind_an_api(cfg: AuditConfig, label: str, tell: Callable[[str], None], out: Audited) -> Audited:
    inductions = {"baseline": (NONE, "")} | {c: (PROMPT, name) for c, (_, name) in _prompted(cfg).items()}
    folder, warnings = endpoint.ask(_plan(cfg, label), cfg.force, tell)
    part = Part(BASE, store.open_run(folder), inductions, folder)
    return replace(out, parts=[part], warnings=warnings, left_open=endpoint.LEFT_OPEN)


def look(cfg: AuditConfig, label: str) -> str:
    """How many calls an audit of a model behind an API has to make, and what they may cost. Raises GatingError."""
    check(cfg)
    return endpoint.look(_plan(cfg, label))


def _plan(cfg: AuditConfig, label: str) -> asking.Plan:
    return asking.planned(cfg, label, {condition: given for condition, (given, _) in _prompted(cfg).items()})


def _prompted(cfg: AuditConfig) -> dict[str, tuple[str, str]]:
    """Of every condition that is a persona in the system message: the persona as it was given, and its name."""
    loaded = {given: personas.load(given).name for given in names(cfg)}
    return {f"{PROMPT}-{name}": (given, name) for given, name in loaded.items()}


def _own_kl(cfg: AuditConfig, label: str, tell: Callable[[str], None]) -> float | None:
    """What the persona at the model's own block and dose does to harmless prompts of the select split: mean KL at the
    first token, nats; None where that is next to nothing."""
    tell("the dose: what the model's own does to harmless prompts")
    data = DataConfig(harmful=None, harmless="harmless", split="select", n=CALIBRATION_PROMPTS)
    run = replace(_base(cfg, cfg.model), data=data, conditions={DOSE: [_steered(cfg, DOSE)]}, max_new_tokens=1)
    tree = store.open_run(_executed(run, label, "audit-dose"))
    kl = float(held_readouts(tree)["kl"].sel(condition=DOSE).mean().values)
    return float(f"{kl:.2g}") if kl >= LEAST_KL else None


def _run(
    cfg: AuditConfig,
    name: str,
    label: str,
    model: ModelConfig,
    kl: float | None,
    kinds: tuple[str, ...],
    source: Path | None = None,
) -> Part:
    """One run: name of the model in the record, label in the folder's name, the inductions that it has, and the run
    whose directions it takes (None: its own)."""
    conditions, inductions = {}, {"baseline": (NONE, "")}
    for given in names(cfg):
        persona = personas.load(given).name
        for kind in kinds:
            own = f"{kind.replace(' ', '_')}-{persona}"
            conditions[own] = {"system": given, "do": []} if kind == PROMPT else [_steered(cfg, given)]
            inductions[own] = kind, persona
    if cfg.random and AGAIN not in kinds:
        conditions[RANDOM] = [_steered(cfg, "random") | {"random": cfg.random}]
        inductions |= {f"{RANDOM}-random-{k}": (RANDOM, str(k)) for k in range(cfg.random)}
    run = replace(
        _base(cfg, model),
        conditions=conditions,
        steer=SteerConfig("none", layers="all", coef=0, iso_kl=kl),
        data=DataConfig(cfg.harmful, cfg.harmless, cfg.borderline, n=cfg.n, n_harmless=cfg.n_harmless),
    )
    if source is not None:
        run.directions = replace(run.directions, source=str(source), other_weights=True)
    folder = _executed(run, label, "audit-again" if AGAIN in kinds else "audit")
    return Part(name, store.open_run(folder), inductions, folder)


def _steered(cfg: AuditConfig, direction: str) -> dict[str, Any]:
    sites = cfg.model.sites
    return {
        "direction": direction, "layers": sites.persona, "coef": sites.persona_coef, "norm": DOSE,
        "read": sites.persona_read, "norm_read": sites.persona_read,
    }  # fmt: skip


def _base(cfg: AuditConfig, model: ModelConfig) -> RunConfig:
    return RunConfig(
        model=model, backend=cfg.backend, directions=replace(cfg.directions, extra=[DOSE]), seed=cfg.seed,
        steer=SteerConfig("none", layers="all", coef=0), controls=ControlsConfig(random=0, reverse=False),
        readouts=ReadoutsConfig(), runs_dir=cfg.runs_dir, force=cfg.force, max_new_tokens=cfg.new_tokens,
    )  # fmt: skip


def _executed(run: RunConfig, label: str, about: str) -> Path:
    planned = study.prepare(run, {"model": label, "experiment": about}, [])
    execute.execute(planned)
    return planned.folder


def _hashes(borderline: str | None) -> frozenset[str]:
    if borderline is None:
        return frozenset()
    return frozenset(p.hash for p in prompts.load(borderline, False, "test", "borderline"))


def rows(part: Part) -> Iterator[tuple[str, str, str]]:
    """Condition, induction and persona of a part, those that its store has."""
    held = read_group(part.tree, "conditions")["condition"].values.tolist()
    yield from ((name, *kind) for name, kind in part.inductions.items() if name in held)
