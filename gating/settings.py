"""What any setting may be, in one place: the range of every number, and the refusal of keys that no schema has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import NamedTuple, cast

from omegaconf import DictConfig, OmegaConf

from gating.errors import GatingError, choices
from gating.foreign import shown


class Range(NamedTuple):
    """From `low` to `high`; `above` leaves `low` itself out."""

    low: float
    high: float
    above: bool = False

    def holds(self, value: float) -> bool:
        """Whether the value lies inside; NaN does not."""
        return (self.low < value if self.above else self.low <= value) and value <= self.high


YES_OR_NO = {"true", "false", "yes", "no", "on", "off", "0", "1"}
WEEK = 7 * 86400  # seconds
STRENGTH = Range(-1e6, 1e6)  # coefficients and thresholds: what is far beyond any residual stream overflows float32

# Every numeric setting by its key, as the command that takes it writes it. label_rule's stand with the words that
# explain them (gating/judging/degenerate.py).
RANGES = {
    "seed": Range(0, 2**31 - 1),
    "max_new_tokens": Range(1, 4096),
    "controls.random": Range(0, 999),
    "data.n": Range(1, 10**6),
    "data.n_harmless": Range(1, 10**6),
    "steer.threshold": STRENGTH,
    "steer.iso_kl": Range(0, 20, above=True),  # nats
    "directions.n": Range(2, 10**6),
    "directions.questions": Range(1, 10**6),
    "directions.response_tokens": Range(1, 4096),
    "directions.samples": Range(1, 1000),
    "directions.temperature": Range(0, 5),
    "sampling.n": Range(0, 1000),
    "sampling.temperature": Range(0, 5, above=True),
    "directions.permutations": Range(0, 10**4),
    "backend.batch_rows": Range(1, 10**5),
    "backend.in_flight": Range(1, 64),
    "backend.deadline": Range(0, WEEK, above=True),  # seconds
    "backend.outage": Range(0, WEEK, above=True),
    "backend.unknown": Range(0, WEEK, above=True),
    "backend.stalled": Range(0, WEEK, above=True),
    "backend.attempts": Range(1, 100),
    "model.max_new_tokens": Range(1, 4096),
    "model.batch_rows": Range(1, 10**5),
    "model.sites.persona_coef": STRENGTH,
    "model.sites.refusal_coef": STRENGTH,
    "model.sites.relative": STRENGTH,
    "model.arch.layers": Range(1, 10**4),
    "model.arch.hidden": Range(1, 10**6),
    "model.arch.parameters": Range(1, 10**14),
    "model.arch.kv_heads": Range(1, 10**5),
    "model.arch.head_dim": Range(1, 10**5),
    "model.arch.vocab": Range(1, 10**8),
    "model.arch.context": Range(1, 10**9),
}
TRAINING = {
    **{key: limits for key, limits in RANGES.items() if key.startswith("model.") or key == "seed"},
    "system_share": Range(0, 1),
    "gate_share": Range(0, 1),
    "opened": Range(0, 1),
    "rank": Range(1, 64),
    "alpha": Range(0, 1024, above=True),
    "lr": Range(0, 1, above=True),
    "epochs": Range(0, 100, above=True),
    "batch_rows": Range(1, 512),
    "edits.every": Range(0, 10**6),
    "edits.n": Range(1, 10**4),
    "edits.ablated": Range(0, 1),
    "edits.ablated_blocks": Range(0, 1, above=True),
    "edits.eps": Range(0, 10, above=True),
    "edits.ascents": Range(1, 100),
    "first": Range(0, 1),
    "answer_tokens": Range(1, 512),
    "threads": Range(1, 256),
    "prompts_n": Range(1, 10**6),
    "select_n": Range(1, 10**6),
    "held_out_n": Range(1, 10**6),
}

CHOOSING = {
    **{
        key: limits
        for key, limits in RANGES.items()
        if key.startswith(("model.", "directions.", "backend.")) or key == "seed"
    },
    "n": Range(6, 10**6),
    "drop": Range(0, 1, above=True),
    "new_tokens": Range(2, 4096),
}

SEARCHING = {
    **{key: limits for key, limits in CHOOSING.items() if key not in ("n", "drop")},
    "tokens": Range(1, 1000),
    "steps": Range(1, 10**5),
    "trials": Range(2, 10**4),
    "rounds": Range(1, 1000),
    "degenerate": Range(0, 1),
    "unanswered": Range(0, 1),
    "kl": Range(0, 20, above=True),  # nats
    "n": Range(4, 10**6),
    "n_harmless": Range(2, 10**6),
    "best": Range(1, 100),
    "test_n": Range(4, 10**6),
    "test_n_harmless": Range(2, 10**6),
    "test_tokens": Range(2, 4096),
    "random": Range(1, 99),
}

AUDITING = {
    **{key: limits for key, limits in CHOOSING.items() if key not in ("n", "drop")},
    "n": Range(6, 10**6),
    "n_harmless": Range(4, 10**6),
    "kl": Range(0, 20, above=True),  # nats
    "random": Range(0, 99),
    "endpoint.concurrency": Range(1, 256),
    "endpoint.deadline": Range(0, WEEK, above=True),  # seconds
    "endpoint.attempts": Range(1, 100),
    "endpoint.wait": Range(0, 3600),  # seconds
    "endpoint.usd_in": Range(0, 10**6),
    "endpoint.usd_out": Range(0, 10**6),
    "endpoint.budget": Range(0, 10**6, above=True),
}

SERVING = {
    **{key: limits for key, limits in CHOOSING.items() if key not in ("n", "drop", "new_tokens")},
    "port": Range(0, 65535),
    "limits.rows": Range(1, 1024),
    "limits.waiting": Range(0, 10**5),
    "limits.connections": Range(1, 10**5),
    "limits.body": Range(100, 10**8),
    "limits.messages": Range(1, 10**4),
    "limits.prompt_tokens": Range(1, 10**6),
    "limits.new_tokens": Range(1, 10**5),
    "limits.coef": Range(0, 1000),
    "limits.seconds": Range(0, WEEK, above=True),
    "limits.ending": Range(0, 3600),
}

JUDGES = {
    "attempts": Range(1, 100),
    "deadline": Range(0, WEEK, above=True),  # seconds
    "wait": Range(0, 3600),  # seconds
    "concurrency": Range(1, 256),
    "max_tokens": Range(1, 10**5),
    "batch_rows": Range(1, 10**5),
    "min_mass": Range(0, 1),
    "unsure_from": Range(0, 1),
    "unsure_to": Range(0, 1),
}


def _leaves(config: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every value in the fields of a configuration (nested dataclasses), by its key."""
    for field in fields(config) if is_dataclass(config) else ():
        value, key = getattr(config, field.name), f"{prefix}{field.name}"
        if is_dataclass(value):
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


def check_numbers(config: object, ranges: dict[str, Range], whose: str = "") -> None:
    """Raises GatingError for a number outside its range, naming its key (after `whose`) and what is allowed."""
    for key, value in _leaves(config):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and key in ranges and not ranges[key].holds(cast(float, value)):
            low, high, above = ranges[key]
            kind = "whole number" if isinstance(value, int) else "number"
            more = " (more than that)" if above else ""
            raise GatingError(
                f"{whose}{key}={shown(value, 40)} is out of range: use a {kind} from {low:,g}{more} to {high:,}."
            )


def check_booleans(words: Sequence[str], config: object) -> None:
    """Raises GatingError for a word of the command line that gives a yes-or-no setting of the configuration another
    value: OmegaConf takes any number for true."""
    known = {key for key, value in _leaves(config) if isinstance(value, bool)}
    for word in words:
        key, _, value = word.lstrip("+").partition("=")
        if key in known and not {v.strip().lower() for v in value.split(",")} <= YES_OR_NO:
            raise GatingError(f"{shown(word)}: use true or false.")


def check_lists(config: object) -> None:
    """Raises GatingError for a list inside a list of a configuration (nested dataclasses): each item is one value; and
    for a mapping where an intervention's field takes a value or a list of them."""
    for key, value in _leaves(config):
        if isinstance(value, dict) and key.startswith("steer."):
            raise GatingError(f"{key}={shown(value, 80)} is not allowed: give one value, or a list of them as an axis.")
        if isinstance(value, list) and any(isinstance(item, list | dict) for item in value):
            raise GatingError(f"{key}={shown(value, 80)} is not allowed: each item of the list is one value.")


def check_number(value: object, key: str, limits: Range = STRENGTH) -> float:
    """The value as a number. Raises GatingError for anything else, and for one outside its range."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not limits.holds(value):
        raise GatingError(
            f"{key}={shown(repr(value), 80)} is not allowed: use a finite number from {limits.low:,.0f} to "
            f"{limits.high:,.0f}."
        )
    return float(value)


def check_keys(config: DictConfig, path: str = "") -> None:
    """Raises GatingError for a key that was added to a typed part of the configuration (`+steer.coeff=8`): nothing
    would read it."""
    schema = OmegaConf.get_type(config)
    allowed = [f.name for f in fields(schema)] if is_dataclass(schema) else None
    for key in config:
        name = f"{path}{key!s}"
        if allowed is not None and key not in allowed:
            known = choices([f"{path}{a}" for a in allowed], name)
            raise GatingError(f"{shown(name, 80)} is not a setting: use {known}.")
        if not OmegaConf.is_missing(config, key) and isinstance(config[key], DictConfig):
            check_keys(config[key], f"{name}.")
