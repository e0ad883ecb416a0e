"""A run's key: a hash of everything that determines its result, so that one key never stands for two results.

It covers contents, not names: token ids of every text that is known beforehand, the bytes of the model's files, the
source of the modules that compute. What a result does not depend on (where files stand, how they are called, comments)
is not in it.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gating
from gating import chat, models, prompts, store
from gating.errors import GatingError
from gating.judging import kinds
from gating.judging.own import own_judge
from gating.pipeline import config, reused_directions
from gating.pipeline.config import RunConfig
from gating.prompts import Prompt
from gating.remote import address
from gating.steering.direction_specs import Chat, DirectionSpec
from gating.steering.interventions import Condition

Tokens = dict[Chat, tuple[int, ...]]
PACKAGE = Path(gating.__file__).parent

# Whose versions, and which of our own modules, decide a number.
PACKAGES = ("torch", "transformers", "nnsight", "numpy", "scikit-learn", "peft")
CODE = (
    "chat.py",
    "completions.py",
    "thoughts.py",
    "prompts.py",
    "personas",
    "models",
    "judging",
    "steering",
    "store/schema.py",
    "pipeline",
)
NOT_CODE = ("pipeline/dryrun.py", "pipeline/estimate.py", "models/digests.py")
# Settings whose content is in the key instead of them: paths and names of files, `auto`.
BY_CONTENT = {
    "data": ("harmful", "harmless", "borderline", "allow_overlap"),
    "directions": ("harmful", "harmless", "source", "filter"),
    "model": (*models.WEIGHTS, "name", "device", "dtype", "arch"),
    "backend": config.NOT_IN_KEY_OF_BACKEND,
}


@dataclass(frozen=True)
class Key:
    """A key, and the token ids that it was made of."""

    name: str  # 10 hex digits
    tokens: Tokens | None  # None where the tokenizer is not on this machine
    final: bool  # False where it was made without the model's files
    dated: bool  # the chat template writes the date, so that tomorrow's key is another one
    basis: str  # a hash of the model, the device, the code and the packages alone: of what computes


def key(
    run: RunConfig,
    test: Sequence[Prompt],
    specs: Sequence[DirectionSpec],
    conditions: Sequence[Condition],
    family: dict[str, Any],
) -> Key:
    """The run's key. Its model's files are fetched where they have to be, but for a dry run, whose key is then not
    final. Raises GatingError for a model that cannot be had."""
    tokenizer, identity, final = _model(run)
    tokens = encoded(tokenizer, texts(run, test, specs, conditions), run.model.template) if tokenizer else None
    template = str(tokenizer.chat_template) if tokenizer else ""
    installed = store.versions()
    computes: dict[str, Any] = {
        "schema": store.SCHEMA_VERSION,
        "model": identity,
        "dtype": models.dtype_name(run.model),
        "device": _device(run),
        "template": template,  # answers are put into it that are not known yet
        "code": code(),
        "versions": {name: installed[name] for name in PACKAGES} | models.package_versions(run.model),
    }
    material = computes | {
        "config": deciding(run),
        "source": reused_directions.digest(run.directions.source) if run.directions.source else None,
        "judge": own_judge(run.judge).digest,
        "filter": of_filter(run.directions.filter),
        "test": prompts.digest(test),
        "directions": [(s.name, s.role, s.position, s.positive, s.negative) for s in specs],
        "conditions": [asdict(c) for c in conditions],
        "claims": family,
        "tokens": [[*asked, ids] for asked, ids in tokens.items()] if tokens else None,
    }
    name, basis = _digest(material)[:10], _digest(computes)
    return Key(name, tokens, final, "strftime_now" in template, basis)


def texts(
    run: RunConfig, test: Sequence[Prompt], specs: Sequence[DirectionSpec], conditions: Sequence[Condition]
) -> list[Chat]:
    """Every text that the run is known to read: prompts under each system message, the directions' chats, and the
    prompts that strengths are calibrated and removals matched on."""
    systems = dict.fromkeys([run.model.system, *(c.system for c in conditions if c.system is not None)])
    asked = [Chat(system, p.text) for system in systems for p in test]
    if run.steer.iso_kl is not None:
        asked += [Chat(run.model.system, p.text) for p in calibration_prompts(run.seed)]
    if any(iv.draw == "matched" for c in conditions for iv in c.interventions):
        asked += [Chat(system, p.text) for system in systems for p in matching_prompts(run.seed)]
    return list(dict.fromkeys([*asked, *chats(specs)]))


def chats(specs: Iterable[DirectionSpec]) -> list[Chat]:
    """What directions are extracted from, each once."""
    return list(dict.fromkeys(asked for spec in specs for asked in (*spec.positive, *spec.negative)))


def calibration_prompts(seed: int) -> list[Prompt]:
    return prompts.sample(prompts.load("harmless", False, "select"), config.CALIBRATION_PROMPTS, seed)


def matching_prompts(seed: int) -> list[Prompt]:
    """What matched controls are matched on: as many harmful as harmless ones."""
    sets = (prompts.load(name, name == "harmful", "select") for name in ("harmful", "harmless"))
    return [p for each in sets for p in prompts.sample(each, config.MATCHING_PROMPTS, seed)]


def encoded(tokenizer: chat.Tokenizer, asked: Iterable[Chat], template: chat.Arguments) -> Tokens:
    """Token ids of each chat, up to where its answer begins."""
    return {text: tuple(chat.encode(tokenizer, text.user, text.system, template)) for text in asked}


def _model(run: RunConfig) -> tuple[chat.Tokenizer | None, dict[str, str | None], bool]:
    """The tokenizer, what identifies the weights, and whether both are known."""
    served = run.backend.name == "ndif"
    configured = {name: getattr(run.model, name) for name in models.WEIGHTS}
    if run.dry_run:
        tokenizer = models.tokenizer_only(run.model)
        try:
            identity = _served(run) if served else models.identity(run.model, fetch=False)
        except GatingError:
            return tokenizer, configured, False
        return tokenizer, identity, tokenizer is not None
    identity = _served(run) if served else models.identity(run.model)
    return models.tokenizer(run.model, served), identity, True


def _served(run: RunConfig) -> dict[str, str | None]:
    """A server's weights are known by their name; /model holds their signature, which a resumed run compares."""
    return {"served": models.served_as(run.model), "revision": run.model.revision}


def of_filter(name: str | None) -> str | None:
    """What `directions.filter` stands for: its judge's digest."""
    return kinds.load(name).digest if name not in (None, "fluent") else name


def _device(run: RunConfig) -> str:
    """Where the model runs: this machine's device type, or the server's address."""
    if run.backend.name != "ndif":
        return models.device_type(run.model)
    return address.address(run.backend.host)


def deciding(run: RunConfig) -> dict[str, Any]:
    """The settings that decide a result, without those whose content is in the key instead."""
    settings = {k: v for k, v in asdict(run).items() if k not in config.NOT_IN_KEY}
    for group, by_content in BY_CONTENT.items():
        settings[group] = {k: v for k, v in settings[group].items() if k not in by_content}
    return settings


def _digest(material: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(material, sort_keys=True).encode()).hexdigest()


@cache
def code() -> str:
    """16 hex digits over the modules that compute; comments, docstrings and layout do not count."""
    h = hashlib.sha256()
    for path in code_files():
        name = path.relative_to(PACKAGE).as_posix()
        h.update(f"{name}\n{_without_words(path.read_text(encoding='utf-8'))}\n".encode())
    return h.hexdigest()[:16]


def code_files() -> list[Path]:
    """The modules that compute."""
    places = [PACKAGE / part for part in CODE]
    files = [f for place in places for f in ([place] if place.suffix else place.glob("*.py"))]
    return sorted(f for f in files if f.relative_to(PACKAGE).as_posix() not in NOT_CODE)


def _without_words(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
