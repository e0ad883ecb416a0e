"""The runs of a choice, in order: unsteered answers; the persona's first tokens, coarse and fine; answers of its
finalists; first tokens of refusal put back in; answers of those finalists, with random directions as a control."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import xarray as xr

from gating.analysis import sites, stats
from gating.analysis.label_rates import refusal_rate
from gating.analysis.reading import read_group
from gating.choosing import candidates
from gating.choosing.candidates import Candidate, Norms
from gating.choosing.config import ChooseConfig, check
from gating.choosing.runner import Runner
from gating.errors import GatingError
from gating.models import ModelConfig

LEAST_REFUSAL = 0.5  # of harmful prompts, and more than of harmless ones: else there is nothing to suppress
RANDOM_DRAWS = 2  # of first tokens, at the strongest dose of each block
RANDOM_TEXTS = 2  # of the chosen persona's answers
Show = Callable[[str, xr.Dataset], None]  # a heading, and candidates with what was measured of them


@dataclass(frozen=True)
class Chosen:
    """A choice: the persona's site and the refusal direction's, how refusals begin, the tables that show why, and the
    runs behind them."""

    model: ModelConfig
    n_layers: int
    persona: Candidate
    refusal: Candidate
    n: int  # harmful prompts of the last run
    key: str  # of the last run
    tables: list[tuple[str, xr.Dataset]] = field(default_factory=list)
    runs: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def choose(cfg: ChooseConfig, label: str, show: Show) -> Chosen:
    """Choose a model's sites. Raises GatingError where the model does not refuse, or the persona does not suppress it.

    label: the model's name in folders; show: is given every table as it is there.
    """
    check(cfg)
    tables: list[tuple[str, xr.Dataset]] = []

    def tell(heading: str, table: xr.Dataset) -> None:
        tables.append((heading, table))
        show(heading, table)

    run = Runner(cfg, label, cfg.model)
    unsteered = run("baseline", {}, cfg.n, max(2, cfg.n // 2), cfg.new_tokens)
    check_refuses(unsteered)
    run.model = replace(cfg.model, first_token_openings=sites.openings(unsteered))
    norms = Norms.of(unsteered["directions"].to_dataset().load())
    curve, baseline = _curve(run, norms)
    tell("persona: first tokens", curve)
    persona = _persona(run, norms, curve, baseline, cfg.drop, tell)
    tried = _put_back(run, norms, persona, tell)
    conditions = candidates.conditions([persona], random=RANDOM_TEXTS) | candidates.conditions(tried, persona)
    last = run("texts", conditions, cfg.n, max(2, cfg.n // 3), cfg.new_tokens)
    restored, baseline, steered = _with_persona(last, persona, tried)
    restored = sites.choose_refusal(restored, baseline, steered)
    tell("the persona, and refusal put back in: answers", _final(last, persona, restored))
    refusal = _chosen(tried, restored, "no place restores refusal")
    return Chosen(
        run.model, len(norms.residual), persona, refusal, int(restored.attrs["n"]), str(last.attrs["key"]), tables,
        run.runs, _warnings(baseline, steered, restored),
    )  # fmt: skip


def check_refuses(run: xr.DataTree) -> None:
    """Raises GatingError for a model that does not refuse harmful prompts, refuses harmless ones nearly as often, or
    thinks before it answers, so that no first token tells what it will say."""
    said = check_refuses_harmful(run)
    harmful, harmless = (refusal_rate(run, harmful=h).sel(condition="baseline") for h in (True, False))
    if float(harmful["rate"] - harmless["rate"]) < LEAST_REFUSAL / 2:
        raise GatingError(
            f"{said}, and {int(harmless['k'])} of {int(harmless['n'])} harmless ones: it refuses whatever it is asked. "
            "Choose another model."
        )


def check_refuses_harmful(run: xr.DataTree) -> str:
    """What the model refuses, in words. Raises GatingError for too little, and for a model that thinks first."""
    if (read_group(run, "outcomes")["n_thought"] > 0).any():
        raise GatingError(
            "model: it thinks before it answers, so that its first token does not tell what it will say; switch that "
            "off (such as model.template.enable_thinking=false)."
        )
    harmful = refusal_rate(run, harmful=True).sel(condition="baseline")
    k, n = int(harmful["k"]), int(harmful["n"])
    said = f"model: it refuses {k} of {n} harmful select prompts (95% interval {_interval(k, n)})"
    if float(harmful["rate"]) < LEAST_REFUSAL:
        raise GatingError(
            f"{said}; at least {LEAST_REFUSAL:.0%} are needed for a persona to suppress. Choose a model that refuses, "
            "or a system message under which it does (model.system=...)."
        )
    return said


def _interval(k: int, n: int) -> str:
    low, high = stats.wilson(np.array(k), np.array(n), 0.95)
    return f"{float(low):.0%} to {float(high):.0%}"


def _curve(run: Runner, norms: Norms) -> tuple[xr.Dataset, xr.Dataset]:
    """First tokens by block and dose, coarse and fine together, and of the baseline."""
    n, n_harmless = max(2, run.cfg.n // 3), max(2, run.cfg.n // 4)
    tried = candidates.coarse(norms)
    coarse, baseline = _rows(run("coarse", candidates.conditions(tried), n, n_harmless, 1), tried)
    finer = candidates.fine(norms, coarse, baseline)
    strongest = candidates.strongest(finer)
    conditions = candidates.conditions(finer) | candidates.conditions(strongest, random=RANDOM_DRAWS)
    fine, _ = _rows(run("fine", conditions, n, n_harmless, 1), finer)
    again = np.isin(coarse["condition"].values, fine["condition"].values)
    both = xr.concat([coarse.isel(condition=~again), fine], dim="condition", combine_attrs="override")
    return both.sortby(["block", "dose"]), baseline


def _persona(run: Runner, norms: Norms, curve: xr.Dataset, baseline: xr.Dataset, drop: float, tell: Show) -> Candidate:
    """The persona's block and dose, by the answers of its finalists; with a larger dose where those still refuse."""
    n = max(2, run.cfg.n // 3)
    read = candidates.finalists(norms, curve, baseline)
    if not read:
        raise GatingError("model: random directions lower refusal as much as the persona does at every block tried.")

    def answers(name: str, asked: list[Candidate]) -> tuple[xr.Dataset, xr.Dataset]:
        return _rows(run(name, candidates.conditions(asked), 2 * n, n, run.cfg.new_tokens), asked)

    measured, unsteered = answers("persona", read)
    texts = sites.choose_persona(measured, unsteered, drop)
    if more := candidates.stronger(norms, read, texts):
        measured = xr.concat([measured, answers("stronger", more)[0]], dim="condition", combine_attrs="override")
        read, texts = [*read, *more], sites.choose_persona(measured, unsteered, drop)
    tell("persona: answers", texts)
    return _chosen(read, texts, f"no block and dose lowers refusal by {100 * drop:.0f} points")


def _put_back(run: Runner, norms: Norms, persona: Candidate, tell: Show) -> list[Candidate]:
    """The refusal direction's finalists under the persona, by first tokens."""
    tried = candidates.put_back(norms, persona.block)
    conditions = candidates.conditions([persona]) | candidates.conditions(tried, persona)
    rows, baseline, steered = _with_persona(run("refusal", conditions, max(2, run.cfg.n // 4), 2, 1), persona, tried)
    rows["share"] = ("condition", sites.restored(rows, baseline, steered))
    tell("refusal put back in: first tokens", rows)
    best = candidates.put_back_finalists(rows, baseline, steered)
    return [c for c in tried if c.name in best]


def _rows(run: xr.DataTree, tried: Sequence[Candidate]) -> tuple[xr.Dataset, xr.Dataset]:
    """What was measured of each candidate, with what it is as coordinates along `condition`, and of the baseline."""
    found = sites.measured(run)
    columns = {name: ("condition", [getattr(c, name) for c in tried]) for name in ("block", "read", "dose", "coef")}
    return found.sel(condition=[c.name for c in tried]).assign_coords(columns), found.sel(condition="baseline")


def _with_persona(
    run: xr.DataTree, persona: Candidate, tried: Sequence[Candidate]
) -> tuple[xr.Dataset, xr.Dataset, xr.Dataset]:
    """Candidates of refusal put back in under the persona, the baseline, and the persona alone."""
    rows, baseline = _rows(run, tried)
    return rows, baseline, sites.measured(run).sel(condition=persona.name)


def _chosen(tried: Sequence[Candidate], rows: xr.Dataset, why_not: str) -> Candidate:
    """Raises GatingError where nothing is chosen, with the candidates' reasons."""
    picked = rows["condition"].values[rows["chosen"].values].tolist()
    if not picked:
        reasons = ", ".join(
            f"block {b} at {c:g} {r}"
            for b, c, r in zip(rows["block"].values, rows["coef"].values, rows["reason"].values, strict=True)
        )
        raise GatingError(f"model: {why_not} on the select split ({reasons}); no sites are written.")
    return next(c for c in tried if c.name == picked[0])


def _final(run: xr.DataTree, persona: Candidate, restored: xr.Dataset) -> xr.Dataset:
    """The persona's row before those of refusal put back in."""
    alone, baseline = _rows(run, [persona])
    alone = alone.assign(effect=baseline["refusal"] - alone["refusal"], reason=("condition", [""]))
    alone = alone.assign(chosen=("condition", [True]))
    return xr.concat([alone, restored], dim="condition", combine_attrs="override")


def _warnings(baseline: xr.Dataset, persona: xr.Dataset, restored: xr.Dataset) -> list[str]:
    """What the user should know before the sites are used."""
    said = []
    fall = float(baseline["refusal"] - persona["refusal"])
    null = float(baseline["refusal"] - persona["random_refusal"])
    if null > sites.RANDOM * max(fall, 0.1):
        said.append(
            f"{RANDOM_TEXTS} random directions of the persona's norm lower refusal by {100 * null:.0f} points, the "
            f"persona by {100 * fall:.0f}: part of its effect is disturbance"
        )
    best = float(restored["effect"].max())
    if best < fall / 2:
        said.append(f"refusal put back in restores {100 * best:.0f} of {100 * fall:.0f} points at most")
    return said
