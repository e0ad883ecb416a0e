"""Whether runs of several models asked the same: what must agree before their effects are one answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import xarray as xr
import yaml

from gating.analysis.reading import read_group
from gating.errors import GatingError
from gating.foreign import shown

# Settings by which a run of another model may differ: the model and its machine, what is compared by content (prompts,
# claims), what is only read beside the answers, and what follows from the model's sites.
OF_THE_MODEL = ("model", "backend", "runs_dir", "force", "dry_run", "full_text", "seed", "max_new_tokens", "data",
                "claims", "readouts", "activations", "sampling")  # fmt: skip
OF_ITS_SITES = ("steer.layers", "steer.coef", "steer.norm", "steer.read", "conditions", "parts", "directions.source")
Settings = dict[str, object]


def check_alike(runs: Mapping[str, xr.DataTree]) -> list[str]:
    """What differs by the models' own sites (blocks, doses), a sentence each. runs: by path.

    Raises GatingError, naming two runs, where one is not finished, two are of the same model, or they differ in the
    experiment, the prompts, the label rule, the length of answers or any other setting that is no model's.
    """
    if len(runs) < 2:
        raise GatingError("one run is one model; give the runs of two models or more.")
    for path, run in runs.items():
        if run.attrs["status"] != "complete":
            raise GatingError(f"{path}: the run is not finished; give its command again to go on, then this one.")
    (first, one), *others = runs.items()
    for path, other in others:
        for what, a, b in _compared(one, other):
            if a != b:
                raise GatingError(f"{first} and {path} were not asked the same: {what} is {_cut(a)} and {_cut(b)}.")
    _check_models(runs)
    return _sites(runs)


def _compared(one: xr.DataTree, other: xr.DataTree) -> Iterator[tuple[str, object, object]]:
    """What must agree, with both values."""
    experiments = [json.loads(run.attrs["choices"]).get("experiment") for run in (one, other)]
    yield ("experiment", *experiments)
    prompts = [_prompts(run) for run in (one, other)]
    yield ("what one has alone of the prompts", _alone(*prompts), _alone(*prompts[::-1]))
    for attr in ("judge", "max_new_tokens"):
        yield (attr, one.attrs[attr], other.attrs[attr])
    a, b = _settings(one), _settings(other)
    for key in sorted({*a, *b}):
        if not _under(key, (*OF_THE_MODEL, *OF_ITS_SITES)):
            yield (key, a.get(key), b.get(key))


def _prompts(run: xr.DataTree) -> set[tuple[str, bool]]:
    """The prompts' hashes, with whether each counts as harmful."""
    prompts = read_group(run, "prompts")
    return set(zip(prompts["prompt"].values.tolist(), prompts["harmful"].values.tolist(), strict=True))


def _alone(own: set[tuple[str, bool]], other: set[tuple[str, bool]]) -> str:
    """How many prompts one set has and the other lacks, and the first of them."""
    alone = sorted(own - other)
    if not alone:
        return "nothing"
    return f"{len(alone)} (such as {alone[0][0]}, {'harmful' if alone[0][1] else 'harmless'})"


def _check_models(runs: Mapping[str, xr.DataTree]) -> None:
    seen: dict[str, str] = {}
    for path, run in runs.items():
        weights = str(run.attrs["model_fingerprint"])
        if weights in seen:
            raise GatingError(f"{seen[weights]} and {path} are runs of the same model; give one run a model.")
        seen[weights] = path


def _sites(runs: Mapping[str, xr.DataTree]) -> list[str]:
    settings = [_settings(run) for run in runs.values()]
    keys = sorted(k for s in settings for k in s if _under(k, OF_ITS_SITES))
    differing = [k for k in dict.fromkeys(keys) if len({json.dumps(s.get(k)) for s in settings}) > 1]
    return [f"{k}: {', '.join(_cut(s.get(k)) for s in settings)}" for k in differing]


def _under(key: str, roots: tuple[str, ...]) -> bool:
    return any(key == root or key.startswith(f"{root}.") for root in roots)


def _settings(run: xr.DataTree) -> Settings:
    return dict(_flat(yaml.safe_load(str(run.attrs["config"])) or {}, ""))


def _flat(config: Mapping[str, object], prefix: str) -> Iterator[tuple[str, object]]:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _cut(value: object) -> str:
    return shown(value if isinstance(value, str) else json.dumps(value), 80)
