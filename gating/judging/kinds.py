"""The kinds of judge, one entry a kind, and how a judge is read from its YAML file.

OmegaConf checks the keys and their types against the kind's fields; the kind itself checks the values. A new kind is a
file with a subclass of JudgeSpec, an entry in KINDS, and a file in conf/judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import KeyValidationError, OmegaConfBaseException

from gating import addresses, config_files, foreign
from gating.errors import GatingError, choices
from gating.foreign import shown
from gating.judging.classifier import ClassifierSpec
from gating.judging.endpoint import EndpointSpec
from gating.judging.heads import HeadSpec
from gating.judging.rule_judge import RuleSpec
from gating.judging.spec import JudgeSpec
from gating.judging.text_judges import KeywordsSpec, LearnedSpec

KINDS: dict[str, type[JudgeSpec]] = {
    "classifier": ClassifierSpec,
    "endpoint": EndpointSpec,
    "head": HeadSpec,
    "keywords": KeywordsSpec,
    "learned": LearnedSpec,
    "rule": RuleSpec,
}
HIDDEN = "\ue000{"  # in place of `${` while OmegaConf reads a judge: it would take that for an interpolation


def available() -> list[str]:
    """The shipped judges."""
    return config_files.group_choices("judges")


def load(name_or_path: str, overrides: Sequence[str] = ()) -> JudgeSpec:
    """A shipped judge by name, or a file by path, with `key=value` (or `model.device=cpu`) on top of it.

    Raises GatingError for anything that is wrong with the name, the file or a value.
    """
    path = Path(name_or_path).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        if name_or_path not in available():
            allowed = choices(available(), name_or_path)
            raise GatingError(f"judge={name_or_path} is not a judge: use {allowed}, or the path of a .yaml file.")
        path = config_files.conf_dir() / "judges" / f"{name_or_path}.yaml"
    content = _read(path)
    for override in overrides:
        _override(content, override)
    spec = _typed(_text(OmegaConf.to_container(content)), path).completed(path.parent)
    spec.check()
    return spec


def _read(path: Path) -> DictConfig:
    """A judge's file; its types are not checked yet."""
    content = foreign.parse_yaml(_hidden(foreign.read_text(path, "judge", foreign.MEGABYTE)), f"judge: {path}")
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise GatingError(f"judge: {path} must be a mapping with kind, says, ...")
    return OmegaConf.create(content)


def _override(content: DictConfig, override: str) -> None:
    """Set what `key=value` says, in place; a mapping takes the place of the one that is there."""
    key = override.partition("=")[0]
    try:
        value = OmegaConf.select(OmegaConf.from_dotlist([_hidden(override)]), key)
        OmegaConf.update(content, key, value, merge=False)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as e:
        raise GatingError(
            f"judge: {addresses.masked(override)!r} cannot be read ({_problem(e)}); write key=value in YAML."
        ) from None


def _typed(content: dict[str, Any], path: Path) -> JudgeSpec:
    kind = content.get("kind")
    if str(kind) not in KINDS:
        raise GatingError(f"judge: {path}: kind={kind!r} is not a kind of judge: use {choices(KINDS, kind)}.")
    types = {f.name: f.type for f in fields(KINDS[str(kind)])}
    config = OmegaConf.structured(KINDS[str(kind)](name=path.stem))
    for key, value in content.items():
        if key not in types:
            raise GatingError(f"judge: {path}: {key} is not a key of kind={kind}: use {choices(types, key)}.")
        if value is None:
            continue
        try:
            config = OmegaConf.merge(config, {key: _hidden(value)})
        except KeyValidationError as e:
            raise GatingError(
                f"judge: {path}: {key}={value!r}: {e.key!r} is not a text; YAML reads a bare yes, no or 1 as something "
                "else: quote it."
            ) from None
        except OmegaConfBaseException:
            raise GatingError(
                f"judge: {path}: {key}={shown(repr(value), 80)} must be of the kind {types[key]}."
            ) from None
    return KINDS[str(kind)](**_text(OmegaConf.to_container(config)))


def _problem(error: Exception) -> str:
    """What a reader of YAML complains of, in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error).splitlines()[0]


def _hidden(value: Any) -> Any:
    """The same with every `${` in its texts out of OmegaConf's sight."""
    return _replaced(value, "${", HIDDEN)


def _text(value: Any) -> Any:
    """The same with every `${` in its texts back in place."""
    return _replaced(value, HIDDEN, "${")


def _replaced(value: Any, old: str, new: str) -> Any:
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, dict):
        return {k: _replaced(v, old, new) for k, v in value.items()}
    return [_replaced(v, old, new) for v in value] if isinstance(value, list) else value
