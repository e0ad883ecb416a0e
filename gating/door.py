"""The Python door: `gating.run(model="smollm", steer="compliant")`, the command line's settings as keywords.

The same settings give the same typed configuration, the same key and the same store as on the command line: a run that
is there is opened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import open_dict

from gating import analysis, cli, config_files, settings, store
from gating.errors import GatingError
from gating.foreign import shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gating.pipeline.study import Study

FREE = (  # mappings whose entries a user names: a new one is added
    "conditions", "parts", "claims", "directions.derived", "directions.variants", "model.template",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A finished run: where it is, how it came about (`new`, `resumed`, `opened`), and what it says."""

    folder: Path
    how: str

    @cached_property
    def tree(self) -> xr.DataTree:
        """The store, as `gating.open_run` gives it."""
        return store.open_run(self.folder)

    def refusal_rate(self, harmful: bool | None = True, **how: Any) -> xr.Dataset:
        """`gating.refusal_rate` of this run."""
        return analysis.refusal_rate(self.tree, harmful=harmful, **how)

    def contrast(self, harmful: bool | None = True, **how: Any) -> xr.Dataset:
        """`gating.contrast` of this run."""
        return analysis.contrast(self.tree, harmful=harmful, **how)

    def picture(self, name: str | None = None) -> Figure:
        """One of the run's pictures (those of its page), the first where none is named. Raises GatingError for a name
        that it does not have."""
        from gating.figures import gallery
        from gating.reporting.rows import headline_set

        drawable = {p.name: p for p in gallery.REGISTRY if p.drawable(self.tree)}
        if name is not None and name not in drawable:
            raise GatingError(f"picture {shown(name, 60)!r}: this run has {', '.join(drawable)}.")
        return drawable[name or next(iter(drawable))].draw(self.tree, headline_set(self.tree))

    def report(self, full_text: bool = False) -> Path:
        """Write the run's page; its path."""
        from gating.reporting import page

        return page.write(self.tree, self.folder, full_text)

    def __repr__(self) -> str:
        lines = [f"run {self.folder} ({self.how})", *self._headline()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from html import escape

        rates = self.refusal_rate(harmful=None if not analysis.asked_both(self.tree) else True)
        names = analysis.shown_names(self.tree)
        rows = "".join(
            f"<tr><td>{escape(names[str(name)])}</td><td>{float(r['rate']):.0%}</td>"
            f"<td>{float(r['low']):.0%} to {float(r['high']):.0%}</td><td>{int(r['n'])}</td></tr>"
            for name in rates["condition"].values.tolist()
            for r in [rates.sel(condition=name)]
        )
        said = "".join(f"<p>{escape(line)}</p>" for line in self._headline())
        head = "<tr><th>condition</th><th>refusal</th><th>95% interval</th><th>n</th></tr>"
        return f"<p><code>{escape(str(self.folder))}</code> ({escape(self.how)})</p><table>{head}{rows}</table>{said}"

    def _headline(self) -> list[str]:
        from gating.reporting.headline import headline

        return headline(self.tree)


def run(model: Any = None, *, tokenizer: Any = None, **settings: Any) -> Run:
    """Make a run, or open it where it is there.

    model: a name in conf/model, a file of your own, a mapping of settings, or a loaded model (transformers, with its
    tokenizer, or nnsight), which is used as it stands and not copied. settings: what the command line takes:
    `steer="evil"`, `data={"n": 20}`, `experiment="paper"`, `conditions={"mine": [{...}]}`, or by whole key,
    `**{"steer.coef": 4}`. Raises GatingError as the command line says it.
    """
    from gating.pipeline import execute

    planned = study(model, tokenizer=tokenizer, **settings)
    how = execute.execute(planned)
    return Run(planned.folder, how.partition("\n")[0])


def study(model: Any = None, *, tokenizer: Any = None, **settings: Any) -> Study:
    """What a run would be: prompts, conditions, directions, warnings, key and place, before a model loads. Takes what
    `run` takes."""
    from gating.pipeline import config, study

    words = overrides(_model(model, tokenizer) | settings)
    cfg, choices = composed(words)
    if cfg.model.kind == "given":
        choices["model"] = str(cfg.model.name)  # no file's
    return study.prepare(config.typed(cfg), choices, [w.split("=", 1)[0].lstrip("+~") for w in words])


def directions(model: Any = None, *names: str, tokenizer: Any = None, **settings: Any) -> xr.Dataset:
    """The /directions group of a run that extracts these personas (compliant and refusal where none is named): vectors
    [direction, layer, hidden], cosines, norms. Kept as a run of one prompt; the same call opens it."""
    given = settings.pop("directions", {})
    if not isinstance(given, Mapping):
        raise GatingError(f"directions={shown(given, 60)}: give a mapping of settings.")
    extra = [*given.get("extra", []), *(names or ("compliant",))]
    data = {"data.n": 1, "max_new_tokens": 1, "steer": "none", "controls.random": 0, "readouts.last": False}
    made = run(model, tokenizer=tokenizer, **(data | settings), directions={**given, "extra": extra})
    return analysis.read_group(made.tree, "directions")


def capture(model: Any = None, *, tokenizer: Any = None, **settings: Any) -> xr.DataArray:
    """The unsteered residual stream of every prompt at its last token: resid_post [prompt, layer, hidden]."""
    made = run(model, tokenizer=tokenizer, **({"steer": "none", "activations": True} | settings))
    return made.tree["activations"].to_dataset()["resid_post"].load()


def composed(words: list[str]) -> tuple[Any, dict[str, str]]:
    """The configuration that the command line would compose, and the files chosen. Raises GatingError as it would."""
    try:
        words = cli.words(words)
        GlobalHydra.instance().clear()
        cli.register(words)
        with initialize_config_dir(str(config_files.conf_dir()), version_base="1.3"):
            cfg = compose("config", words, return_hydra_config=True)
    except cli.EXPECTED as e:
        raise GatingError(cli.explain(e)) from None
    finally:
        GlobalHydra.instance().clear()
    choices = {k: v for k, v in cfg.hydra.runtime.choices.items() if "hydra" not in k}
    with open_dict(cfg):
        del cfg["hydra"]
    settings.check_keys(cfg)
    return cfg, choices


def _model(model: Any, tokenizer: Any) -> dict[str, Any]:
    if model is None or isinstance(model, str | Path):
        if tokenizer is not None:
            raise GatingError("tokenizer is given, and no loaded model that it belongs to: leave it out.")
        return {} if model is None else {"model": str(model)}
    if isinstance(model, Mapping):
        return {"model": model}
    from gating.models import given

    return {"model": {"": "hf", **given.hold(model, tokenizer)}}


def overrides(given: Mapping[str, Any]) -> list[str]:
    """Settings as the command line's words. A mapping sets the keys below it; its entry "" names a group's file."""
    words: list[str] = []
    for key, value in given.items():
        words += _words(key, value)
    return words


def _words(key: str, value: Any) -> list[str]:
    if not isinstance(key, str) or not key:
        raise GatingError(f"{shown(repr(key), 60)} is no setting's name: use a text, such as steer or data.n.")
    if isinstance(value, Mapping) and key in FREE:
        return [f"+{key}.{name}={_value(v)}" for name, v in value.items()]
    if isinstance(value, Mapping):
        chosen = [f"{key}={_value(value[''], top=True)}"] if "" in value else []
        return [*chosen, *(w for k, v in value.items() if k for w in _words(f"{key}.{k}", v))]
    return [f"{key}={_value(value, top=True)}"]


def _value(value: Any, top: bool = False) -> str:
    """A value as Hydra's grammar writes it. Raises GatingError for what no setting can be."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Path):
        return _value(str(value), top)
    if isinstance(value, str):
        return (
            value if top and cli.PLAIN.fullmatch(value) else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
        )
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_value(str(k), top=True)}:{_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_value, value)) + "]"
    raise GatingError(f"{shown(repr(value), 60)} is no value of a setting: use a number, a text, a list or a mapping.")
