"""What is asked of a model behind an API, what that may cost, and what its replies say."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gating import store
from gating.auditing.config import AuditConfig, EndpointConfig
from gating.completions import NO_COMPLETION
from gating.errors import GatingError
from gating.foreign import shown
from gating.judging.own import own_judge
from gating.models import ModelConfig
from gating.pipeline import conditions, study
from gating.pipeline.config import ControlsConfig, DataConfig, ReadoutsConfig, RunConfig, SteerConfig
from gating.pipeline.key import code
from gating.prompts import Prompt
from gating.steering.interventions import Condition

Cell = tuple[int, int]  # condition and prompt, as positions
BYTES_A_TOKEN = 3  # of a prompt: few for most tokenizers, so that an estimate is rather too high
AROUND = 8  # tokens that a chat template puts around a message
MOST_TOKENS = 10**7  # that a reply may say it took


@dataclass(frozen=True)
class Plan:
    """What is asked: every prompt under every condition, of one server."""

    how: EndpointConfig
    run: RunConfig  # the settings that its store keeps
    conditions: list[Condition]
    test: list[Prompt]  # shortest first
    warnings: list[str]

    @property
    def cells(self) -> list[Cell]:
        return [(c, p) for c in range(len(self.conditions)) for p in range(len(self.test))]

    @property
    def prompt_batch(self) -> int:
        """Prompts that are written together: enough that few calls wait for the last one."""
        return math.ceil(4 * self.how.concurrency / len(self.conditions))

    def body(self, cell: Cell) -> dict[str, Any]:
        """The request: greedy, as far as the server does it, unless `endpoint.request` says otherwise."""
        system, text = self.conditions[cell[0]].system, self.test[cell[1]].text
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": text})
        body = {"max_tokens": self.run.max_new_tokens, "temperature": 0, **self.how.request}
        return {k: v for k, v in body.items() if v is not None} | {"model": self.how.model, "messages": messages}

    def key(self) -> str:
        """As a run's: a hash of all that determines the result, 10 hex digits; weights are not seen, and not in it."""
        material = {
            "schema": store.SCHEMA_VERSION,
            "code": code(),
            "judge": own_judge(self.run.judge).digest,
            "url": self.how.url,
            "bodies": [self.body(cell) for cell in self.cells],
        }
        return hashlib.sha256(json.dumps(material, sort_keys=True).encode()).hexdigest()[:10]

    def folder(self) -> Path:
        return Path(self.run.runs_dir) / f"{self.run.model.name}-audit-{self.key()}"

    def expected(self, cell: Cell) -> tuple[int, int]:
        """Tokens in and out that a call may take: the prompt by its bytes, the answer at its longest."""
        size = sum(len(m["content"].encode()) / BYTES_A_TOKEN + AROUND for m in self.body(cell)["messages"])
        return math.ceil(size), int(self.run.max_new_tokens or 0)

    def usd(self, tokens: Iterable[tuple[int, int]]) -> float:
        """What these tokens in and out cost; 0 without prices."""
        each = list(tokens)
        prices = self.how.usd_in or 0.0, self.how.usd_out or 0.0
        return sum(price * sum(t[k] for t in each) for k, price in enumerate(prices)) / 1e6

    def told(self, pending: list[Cell], spent: float) -> str:
        """How many calls there are to make, and what they may cost. Raises GatingError for more than the budget."""
        tokens = [self.expected(cell) for cell in pending]
        usd, budget = self.usd(tokens), self.how.budget
        line = (
            f"{self.how.url}: {len(pending):,} calls to {self.how.model}, about {sum(t[0] for t in tokens):,} tokens "
            f"in and at most {sum(t[1] for t in tokens):,} out"
        )
        if self.how.priced:
            line += f", about ${usd:.2f} at most" + (f" (${spent:.2f} spent before)" if spent else "")
        if pending and budget is not None and spent + usd > budget:
            raise GatingError(
                f"endpoint.budget={budget:g}: {line}, which is more; raise it, or ask less (n, n_harmless, personas, "
                "new_tokens). Answers that are there are kept."
            )
        return line


def label(how: EndpointConfig) -> str:
    """The model's name, fit for a folder's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", str(how.model)).strip("-.")[-60:] or "model"


def planned(cfg: AuditConfig, label: str, systems: Mapping[str, str]) -> Plan:
    """label: the model's name in folders; systems: condition -> persona. Raises GatingError for bad input."""
    run = RunConfig(
        model=ModelConfig(name=label, kind="endpoint", id=cfg.endpoint.model), runs_dir=cfg.runs_dir, seed=cfg.seed,
        steer=SteerConfig("none", layers="all", coef=0), controls=ControlsConfig(random=0, reverse=False),
        readouts=ReadoutsConfig(last=False), max_new_tokens=cfg.new_tokens,
        data=DataConfig(cfg.harmful, cfg.harmless, cfg.borderline, n=cfg.n, n_harmless=cfg.n_harmless),
        conditions={name: {"system": given, "do": []} for name, given in systems.items()},
    )  # fmt: skip
    asked, warnings = study.test_prompts(run)
    asked.sort(key=lambda p: (len(p.text), p.hash))
    return Plan(cfg.endpoint, run, conditions.resolve(run).conditions(0), asked, warnings)


class Said(NamedTuple):
    """What a reply says: an answer, or the reason why there is none; tokens as the server counts them, -1 where it does
    not; and which model it says that it is."""

    text: str = ""
    reason: str = ""
    tokens_in: int = -1
    tokens_out: int = -1
    model: str = ""


def read(document: Any) -> Said:
    """A server's document. What is no answer is missing, never a refusal."""
    whole = document if isinstance(document, dict) else {}
    usage = whole.get("usage")
    tokens_in, tokens_out = (_count(usage, name) for name in ("prompt_tokens", "completion_tokens"))
    names = (whole.get(name) for name in ("model", "system_fingerprint"))
    model = " ".join(shown(name, 80) for name in names if isinstance(name, str))
    text, reason = _answer(whole)
    return Said(text, reason, tokens_in, tokens_out, model)


def _answer(whole: dict[str, Any]) -> tuple[str, str]:
    """The answer, or why there is none."""
    try:
        choice = whole["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        text = message.get("refusal") or message.get("content")  # some servers give a refusal in a field of its own
        thought = message.get("reasoning_content") or message.get("reasoning")
    except (LookupError, TypeError, AttributeError):
        return "", NO_COMPLETION
    if finish == "content_filter":
        return "", "withheld by a filter of the server's"
    if finish == "length" and not text and (thought or text is None):
        return "", "all tokens went into a thought; give more new_tokens"
    return (text, "") if isinstance(text, str) else ("", NO_COMPLETION)


def decoding(how: EndpointConfig) -> str:
    """In words, how the server was told to pick tokens."""
    temperature = {"temperature": 0, **how.request}["temperature"]
    return (
        "the server's default"
        if temperature is None
        else f"temperature {shown(temperature, 20)}, as the server does it"
    )


def _count(usage: Any, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS
    return int(value) if fits else -1  # type: ignore[arg-type]
