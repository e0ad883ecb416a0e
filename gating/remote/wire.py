"""NDIF's HTTP interface: send a job, ask for its state, fetch its result. Errors are told apart by who can mend them.

The endpoints and the envelope are those of nnsight 0.8.1's RemoteBackend (nnsight/intervention/backends/remote.py),
whose own client gives no status codes, waits without a limit and unpickles what the server sends.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import httpx
import pydantic
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel

from gating import addresses, foreign, web
from gating.errors import GatingError, TooLarge

JSON = Any  # a document as it was sent; who reads it checks what it reads
PATIENCE = 60.0  # seconds that a question may take, its whole answer included
LOGIN = "https://login.ndif.us"


class Passing(Exception):
    """A fault that may pass: the same request may succeed later."""


class Lost(Passing):
    """A job or its result is not there (any more): it has to be sent again."""


@dataclass
class Wire:
    """One server and one key, which goes into a header and nowhere else: `clean` takes it out of whatever is told.

    patience: seconds that a question may take; transport: of httpx, for tests.
    """

    url: str
    key: str = field(repr=False)
    patience: float = PATIENCE
    transport: httpx.AsyncBaseTransport | None = field(default=None, repr=False)

    def clean(self, text: object) -> str:
        return str(text).replace(self.key, "(your key)") if self.key else str(text)

    def get(self, path: str) -> JSON:
        """A JSON document of the server. Raises Passing where it does not answer, GatingError where it refuses."""
        return self._read(self._ask("GET", path, self.patience).json)

    def submit(self, model_key: str, payload: bytes, env: Mapping[str, object], seconds: float) -> str:
        """Send a job, in at most so many seconds; its id. Raises Passing, TooLarge, or GatingError (a key, a version, a
        request that is refused)."""
        envelope = RequestModel(model_key=model_key, compress=True, env=dict(env)).metadata()
        answer = self._ask(
            "POST",
            "/request",
            seconds,
            data={"data": envelope},
            files={"blob": ("request", payload, "application/octet-stream")},
            headers={"ndif-timestamp": repr(time.time())},
        )
        job = self._read(answer.mapping).get("id")
        if not isinstance(job, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}", job):
            raise Passing(f"{self.url} gives a job an id that is none")
        return job

    def state(self, job: str, seconds: float) -> ResponseModel | None:
        """The latest state of a job; None where the server knows nothing of it (yet)."""
        answer = self._ask("GET", f"/response/{job}", seconds, missing=True)
        if answer.status == 404:
            return None
        document = self._read(answer.mapping)
        try:
            state = ResponseModel.model_validate(document)
        except pydantic.ValidationError as e:
            where = foreign.shown(".".join(str(x) for x in e.errors()[0]["loc"]), 40)
            raise Passing(f"{self.url} tells no state of a job (what it gives as {where} is none)") from None
        if state.id != job:
            raise Passing(f"{self.url} tells the state of another job")
        return state

    def fetch(self, url: object, seconds: float, limit: int) -> bytes:
        """A result of at most `limit` bytes, from the address that the server gave for it. Raises Lost where it has
        expired, or lies where nothing is fetched from."""
        if refusal := addresses.result_refusal(url, self.url):
            raise Lost(f"the result is not fetched: {refusal}")
        try:  # signed, and perhaps another host: no key goes there
            answer = web.ask("GET", str(url), seconds, limit, self.transport)
            if answer.fine:
                answer.check_page()
        except web.NotFit as e:
            raise Lost(f"the result is not one: {e}") from None
        except web.NoAnswer as e:
            raise Passing(f"the result could not be fetched ({e})") from None
        if answer.status in (400, 403, 404, 410):
            raise Lost(f"the result is gone (HTTP {answer.status})")
        if not answer.fine:
            raise Passing(f"the result could not be fetched (HTTP {answer.status})")
        return answer.content

    def _ask(
        self, method: str, path: str, seconds: float, missing: bool = False, headers: Any = None, **more: Any
    ) -> web.Answer:
        sent = {"nnsight-version": version("nnsight"), "python-version": sys.version, **(headers or {})}
        if self.key:
            sent["ndif-api-key"] = self.key
        try:
            answer = web.ask(
                method, f"{self.url}{path}", max(seconds, 0.1), transport=self.transport, headers=sent, **more
            )
        except web.NoAnswer as e:
            raise Passing(self.clean(e)) from None
        if answer.fine or (missing and answer.status == 404):
            return answer
        raise self._refusal(answer)

    def _read(self, document: Any) -> JSON:
        try:
            return document()
        except web.NotFit as e:
            raise Passing(self.clean(e)) from None

    def _refusal(self, answer: web.Answer) -> Exception:
        known = answer.content.replace(self.key.encode(), b"(your key)") if self.key else answer.content
        code, detail = answer.status, replace(answer, content=known).said()
        if code in (408, 429) or code >= 500:
            return Passing(f"{self.url} answers HTTP {code}: {detail}")
        if code == 413:
            return TooLarge(f"{self.url} takes no job of this size: {detail}")
        if code in (401, 403) or "API key" in detail:
            return GatingError(
                f"NDIF_API_KEY: {self.url} does not accept {'this key' if self.key else 'a job without a key'} "
                f"(HTTP {code}: {detail}); get a key at {LOGIN} and put it into the environment variable NDIF_API_KEY."
            )
        return GatingError(
            f"backend.host: {self.url} refuses this client (HTTP {code}: {detail}); install the versions that the "
            "server asks for, or choose another host."
        )
