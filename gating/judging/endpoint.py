"""A judge of kind `endpoint`: any OpenAI-compatible chat endpoint (POST base_url/chat/completions).

Temperature 0; how it is asked, and for how long, is gating/completions.py. Prompt and answer go into the message as
JSON strings, so that neither can close its own quotes. The reply must be one JSON object {"label": ANSWER} with an
optional "score" from 0 to 1, and nothing else; any other is missing, with its reason.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from gating import foreign
from gating.completions import NO_COMPLETION, Completions, Reply, Server
from gating.errors import GatingError, choices
from gating.judging import UNSEEN, Item, Judgement
from gating.judging.degenerate import Limits
from gating.judging.spec import CHAT, AskedSpec, render


@dataclass(frozen=True)
class EndpointSpec(AskedSpec):
    """A server, the model to ask there, and how patiently."""

    NEEDED: ClassVar[tuple[str, ...]] = ("id", "base_url", "template", "answers")
    NOT_IN_DIGEST: ClassVar[tuple[str, ...]] = (
        *AskedSpec.NOT_IN_DIGEST, "base_url", "key_variable", "deadline", "attempts", "wait", "concurrency",
    )  # fmt: skip
    AROUND: ClassVar[tuple[str, ...]] = (*AskedSpec.AROUND, "system", "request")

    system: str | None = None
    base_url: str = ""  # an OpenAI-compatible server, up to and including /v1
    key_variable: str | None = None  # the environment variable that holds the key; null for none
    deadline: float = 60.0  # seconds for one judgement, retries included
    attempts: int = 4  # calls for one judgement, at most
    wait: float = 1.0  # seconds before the first retry; it doubles, with jitter
    concurrency: int = 4  # calls at a time
    max_tokens: int = 64  # of the endpoint's answer
    request: dict[str, Any] = field(default_factory=dict)  # further fields of the request, e.g. response_format

    def check(self) -> None:
        super().check()
        if self.template == CHAT:
            raise self.refused("template", "an endpoint takes a text with {response} in it.")
        self.at_least_one("attempts", "concurrency", "max_tokens")
        if not 0 < self.deadline < math.inf:
            raise self.refused("deadline", "use a number of seconds above 0.")
        if not 0 <= self.wait < math.inf:
            raise self.refused("wait", "use a number of seconds, 0 or more.")
        self.server.check()

    @property
    def server(self) -> Server:
        return Server(
            f"judge {self.name}", self.base_url, self.id, self.key_variable, self.deadline, self.attempts, self.wait,
            self.concurrency, ("base_url", "id", "key_variable"),
        )  # fmt: skip

    def build(self, limits: Limits) -> EndpointJudge:
        return EndpointJudge(self)


class EndpointJudge:
    """Asks the endpoint. Raises GatingError where the key's variable is not set."""

    fingerprint = UNSEEN

    def __init__(self, spec: EndpointSpec) -> None:
        self.spec, self.completions = spec, Completions(spec.server)

    def __repr__(self) -> str:
        return f"EndpointJudge({self.spec.name!r})"

    def judge(self, items: Sequence[Item], advance: Callable[[int], None]) -> list[Judgement]:
        judgements = [Judgement()] * len(items)

        def take(i: int, reply: Reply) -> None:
            failed = Judgement(reason=reply.reason, reached=False)
            judgements[i] = failed if reply.reason else parse(self.spec, reply.document)
            advance(1)

        self.completions.ask([self._body(item) for item in items], take)
        return judgements

    def _body(self, item: Item) -> dict[str, Any]:
        texts = [json.dumps(t, ensure_ascii=False) for t in (item.prompt, item.response)]
        messages = [{"role": "user", "content": render(self.spec.template, texts[0], texts[1], item.harmful)}]
        if self.spec.system:
            messages.insert(0, {"role": "system", "content": self.spec.system})
        body = {
            "max_tokens": self.spec.max_tokens,
            **self.spec.request,
            "model": self.spec.id,
            "messages": messages,
            "temperature": 0,
        }
        return {k: v for k, v in body.items() if v is not None}  # request: {max_tokens: null} leaves it out


def parse(spec: EndpointSpec, document: Any) -> Judgement:
    """The judgement in a server's reply; missing, with its reason, for anything but the answer asked for."""
    try:
        choice = document["choices"][0]
        message = choice["message"]
        text, finish = message.get("content"), choice.get("finish_reason")
    except (LookupError, TypeError, AttributeError):
        return Judgement(reason=NO_COMPLETION, reached=False)
    if message.get("refusal") or finish == "content_filter":
        return Judgement(reason="the judge declined to judge")
    if finish == "length":
        return Judgement(reason=f"the verdict was cut off at {spec.max_tokens} tokens")
    try:
        verdict = foreign.parse_json(text, "the verdict") if isinstance(text, str) else None
    except GatingError:
        verdict = None
    if verdict is None:
        return Judgement(reason="the verdict is not JSON")
    if not isinstance(verdict, dict) or not set(verdict) <= {"label", "score"} or "label" not in verdict:
        return Judgement(reason='the verdict is not an object with "label" and at most "score"')
    answer, score = verdict["label"], verdict.get("score")
    if not isinstance(answer, str) or answer not in spec.answers:
        return Judgement(reason=f"the verdict's label is none of {choices(spec.answers)}")
    if score is None:
        return Judgement(spec.code(answer))
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1 or math.isnan(score):
        return Judgement(reason="the verdict's score is no number from 0 to 1")
    return Judgement(spec.code(answer), float(score))
