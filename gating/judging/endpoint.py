"""A judge of kind `endpoint`: any OpenAI-compatible chat endpoint (POST base_url/chat/completions).

Temperature 0, a bounded number of calls at a time, a deadline for each judgement, retries with growing waits for what
may pass (connection errors, 408, 409, 429, 5xx). Prompt and answer go into the message as JSON strings, so that neither
can close its own quotes. The reply must be one JSON object {"label": ANSWER} with an optional "score" from 0 to 1, and
nothing else; any other is missing, with its reason. The key is read from the environment and kept in the header alone.

httpx and tenacity are imported where an endpoint is asked, so that a judge's file can be read and checked without them.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from gating import addresses, extras, foreign
from gating.errors import GatingError, choices
from gating.judging import UNSEEN, Item, Judgement
from gating.judging.degenerate import Limits
from gating.judging.spec import CHAT, AskedSpec, render

if TYPE_CHECKING:
    import httpx

MAY_PASS = (408, 409, 429)
LONGEST_WAIT = 30.0  # seconds between two attempts
REPLY = 256_000  # bytes of a reply that are read
NO_COMPLETION = Judgement(reason="the reply is no chat completion", reached=False)


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
        self._check_url()

    def _check_url(self) -> None:
        address = addresses.checked(self.base_url, f"judge {self.name}: base_url")
        if self.key_variable and address.lower().startswith("http:") and not addresses.is_loopback(address):
            raise GatingError(f"judge {self.name}: base_url={address} would send the key unencrypted; use https.")

    def build(self, limits: Limits) -> EndpointJudge:
        for package in ("httpx", "tenacity"):
            extras.require(package, f"judge {self.name}")
        return EndpointJudge(self)


class _Again(Exception):
    """A failure that may pass."""


class EndpointJudge:
    """Asks the endpoint. Raises GatingError where the key's variable is not set."""

    fingerprint = UNSEEN

    def __init__(self, spec: EndpointSpec) -> None:
        self.spec = spec
        self.url = f"{spec.base_url.rstrip('/')}/chat/completions"
        key = os.environ.get(spec.key_variable, "").strip() if spec.key_variable else ""
        if spec.key_variable and not key:
            raise GatingError(
                f"judge {spec.name}: the environment variable {spec.key_variable} holds no key for {spec.base_url}; "
                "set it, or say key_variable=null for a server that wants none."
            )
        if not key.isascii() or not key.isprintable():
            raise GatingError(
                f"judge {spec.name}: the environment variable {spec.key_variable} holds no well-formed key."
            )
        self._silent, self._answered = 0, False  # calls after each other without an answer; whether there was one
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def __repr__(self) -> str:
        return f"EndpointJudge({self.spec.name!r})"

    def judge(self, items: Sequence[Item], advance: Callable[[int], None]) -> list[Judgement]:
        from gating import web

        return web.run(self._judge(items, advance))

    async def _judge(self, items: Sequence[Item], advance: Callable[[int], None]) -> list[Judgement]:
        from gating import web

        turn = asyncio.Semaphore(self.spec.concurrency)

        async def in_turn(client: httpx.AsyncClient, item: Item) -> Judgement:
            async with turn:
                judgement = await self._within_deadline(client, item)
                self._check_silence(judgement)
            advance(1)
            return judgement

        async with web.client(headers=self._headers) as client:
            calls = [asyncio.create_task(in_turn(client, i)) for i in items]
            try:
                return list(await asyncio.gather(*calls))
            finally:  # an error that no further call could pass, or an interrupt, ends the other calls
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)

    async def _within_deadline(self, client: httpx.AsyncClient, item: Item) -> Judgement:
        try:
            async with asyncio.timeout(self.spec.deadline):
                judgement = await self._with_retries(client, item)
        except TimeoutError:
            self._silent += 1
            return Judgement(reason=f"no reply within {self.spec.deadline:g} s", reached=False)
        except _Again as e:
            self._silent += 1
            return Judgement(reason=f"{e}, after {self.spec.attempts} attempts", reached=False)
        self._silent, self._answered = 0, True
        return judgement

    def _check_silence(self, last: Judgement) -> None:
        """Raises GatingError where so many calls after each other got no answer that the next would get none either."""
        if self._silent < self.spec.concurrency * (1 + 2 * self._answered):
            return
        which = f"the last {self._silent}" if self._answered else f"none of the first {self._silent}"
        raise GatingError(
            f"judge {self.spec.name}: {which} calls {'did not come' if self._answered else 'came'} through "
            f"({last.reason}); mend the address or the server, then give the same command again."
        )

    async def _with_retries(self, client: httpx.AsyncClient, item: Item) -> Judgement:
        import tenacity

        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_Again),
            stop=tenacity.stop_after_attempt(self.spec.attempts),
            wait=tenacity.wait_exponential(self.spec.wait, LONGEST_WAIT) + tenacity.wait_random(0, self.spec.wait),
            reraise=True,
        )
        return await retrying(self._call, client, item)

    async def _call(self, client: httpx.AsyncClient, item: Item) -> Judgement:
        from gating import web

        try:
            reply = await web.exchange(client, "POST", self.url, self.spec.deadline + 1, REPLY, json=self._body(item))
        except web.NotFit as e:
            return Judgement(reason=str(e), reached=False)
        except web.NoAnswer as e:
            raise _Again(str(e)) from None
        status = reply.status
        if status in (401, 403):
            raise self._refused(status)
        if status == 404:
            raise GatingError(
                f"judge {self.spec.name}: nothing at {self.url} for the model {self.spec.id} (HTTP 404); mend "
                "base_url (it mostly ends in /v1) or id."
            )
        if status in MAY_PASS or status >= 500:
            raise _Again(f"HTTP {status}")
        if status != 200:
            return Judgement(reason=f"HTTP {status}", reached=False)
        try:
            return parse(self.spec, reply.json())
        except web.NotPlain:  # whose words may be the server's, and even the key
            return NO_COMPLETION
        except web.NotFit as e:
            return Judgement(reason=str(e), reached=False)

    def _refused(self, status: int) -> GatingError:
        variable = self.spec.key_variable
        what = f"the key in the environment variable {variable}" if variable else "a call without a key"
        remedy = "put a valid key there" if variable else "name the variable that holds one as key_variable"
        return GatingError(f"judge {self.spec.name}: {self.spec.base_url} refuses {what} (HTTP {status}); {remedy}.")

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
        return NO_COMPLETION
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
