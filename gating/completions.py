"""Chat completions of an OpenAI-compatible server (POST URL/chat/completions), many of them, patiently.

A bounded number of calls at a time, a deadline for each, retries with growing waits for what may pass (connection
errors, 408, 409, 429, 5xx), and an end where call after call gets no answer. The key is read from the environment and
kept in the header alone.

httpx and tenacity are imported where a server is asked, so that its description can be checked without them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gating import addresses, extras
from gating.errors import GatingError

if TYPE_CHECKING:
    import httpx

MAY_PASS = (408, 409, 429)
LONGEST_WAIT = 30.0  # seconds between two attempts
REPLY = 256_000  # bytes of a reply that are read
NO_COMPLETION = "the reply is no chat completion"

Body = Mapping[str, Any]


@dataclass(frozen=True)
class Server:
    """A server, the model to ask there, and how patiently; and what its user calls all this, for errors."""

    who: str  # asks: leads every error
    url: str  # up to and including /v1
    model: str
    key_variable: str | None  # the environment variable that holds the key; None for none
    deadline: float  # seconds for one completion, retries included
    attempts: int  # calls for one completion, at most
    wait: float  # seconds before the first retry; it doubles, with jitter
    concurrency: int  # calls at a time
    settings: tuple[str, str, str] = ("url", "model", "key_variable")  # names of these three settings

    def check(self) -> None:
        """Raises GatingError for an address that is none, or that would have the key travel in the open."""
        name = self.settings[0]
        address = addresses.checked(self.url, f"{self.who}: {name}")
        if self.key_variable and address.lower().startswith("http:") and not addresses.is_loopback(address):
            raise GatingError(f"{self.who}: {name}={address} would send the key unencrypted; use https.")

    def key(self) -> str:
        """Raises GatingError where the variable holds none; empty where none is asked for."""
        name = self.key_variable
        key = os.environ.get(name, "").strip() if name else ""
        if name and not key:
            raise GatingError(
                f"{self.who}: the environment variable {name} holds no key for {self.url}; set it, or say "
                f"{self.settings[2]}=null for a server that wants none."
            )
        if not key.isascii() or not key.isprintable():
            raise GatingError(f"{self.who}: the environment variable {name} holds no well-formed key.")
        return key


@dataclass(frozen=True)
class Reply:
    """A server's document, or the reason why there is none."""

    document: Any = None
    reason: str = ""


class _Again(Exception):
    """A failure that may pass."""


class Completions:
    """Asks the server. Raises GatingError where a package or the key is not there."""

    def __init__(self, server: Server) -> None:
        for package in ("httpx", "tenacity"):
            extras.require(package, server.who)
        self.server, self.url = server, f"{server.url.rstrip('/')}/chat/completions"
        key = server.key()
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._silent, self._answered = 0, False  # calls after each other without an answer; whether there was one

    def ask(self, bodies: Sequence[Body], take: Callable[[int, Reply], None]) -> None:
        """Ask for each of these; `take` is given each reply, with its body's position, as it comes.

        Raises GatingError for what would fail for every further one too (a wrong key, no such model, no server), and
        whatever `take` raises; calls that are under way then end.
        """
        from gating import web

        web.run(self._all(bodies, take))

    async def _all(self, bodies: Sequence[Body], take: Callable[[int, Reply], None]) -> None:
        from gating import web

        turn = asyncio.Semaphore(self.server.concurrency)

        async def in_turn(client: httpx.AsyncClient, i: int, body: Body) -> None:
            async with turn:
                reply = await self._within_deadline(client, body)
                take(i, reply)
                self._check_silence(reply)

        async with web.client(headers=self._headers) as client:
            calls = [asyncio.create_task(in_turn(client, i, body)) for i, body in enumerate(bodies)]
            try:
                await asyncio.gather(*calls)
            finally:  # an error that no further call could pass, or an interrupt, ends the other calls
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)

    async def _within_deadline(self, client: httpx.AsyncClient, body: Body) -> Reply:
        try:
            async with asyncio.timeout(self.server.deadline):
                reply = await self._with_retries(client, body)
        except TimeoutError:
            self._silent += 1
            return Reply(reason=f"no reply within {self.server.deadline:g} s")
        except _Again as e:
            self._silent += 1
            return Reply(reason=f"{e}, after {self.server.attempts} attempts")
        self._silent, self._answered = 0, True
        return reply

    def _check_silence(self, last: Reply) -> None:
        """Raises GatingError where so many calls after each other got no answer that the next would get none either."""
        if self._silent < self.server.concurrency * (1 + 2 * self._answered):
            return
        which = f"the last {self._silent}" if self._answered else f"none of the first {self._silent}"
        raise GatingError(
            f"{self.server.who}: {which} calls {'did not come' if self._answered else 'came'} through "
            f"({last.reason}); mend the address or the server, then give the same command again."
        )

    async def _with_retries(self, client: httpx.AsyncClient, body: Body) -> Reply:
        import tenacity

        wait = self.server.wait
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_Again),
            stop=tenacity.stop_after_attempt(self.server.attempts),
            wait=tenacity.wait_exponential(wait, LONGEST_WAIT) + tenacity.wait_random(0, wait),
            reraise=True,
        )
        return await retrying(self._call, client, body)

    async def _call(self, client: httpx.AsyncClient, body: Body) -> Reply:
        from gating import web

        try:
            reply = await web.exchange(client, "POST", self.url, self.server.deadline + 1, REPLY, json=body)
        except web.NotFit as e:
            return Reply(reason=str(e))
        except web.NoAnswer as e:
            raise _Again(str(e)) from None
        if reply.status in MAY_PASS or reply.status >= 500:
            raise _Again(f"HTTP {reply.status}")
        self._check_status(reply.status)
        if reply.status != 200:
            return Reply(reason=f"HTTP {reply.status}")
        try:
            return Reply(reply.json())
        except web.NotPlain:  # whose words may be the server's, and even the key
            return Reply(reason=NO_COMPLETION)
        except web.NotFit as e:
            return Reply(reason=str(e))

    def _check_status(self, status: int) -> None:
        """Raises GatingError for a status that every further call would get too."""
        server, (url, model, key) = self.server, self.server.settings
        if status in (401, 403):
            what = (
                f"the key in the environment variable {server.key_variable}"
                if server.key_variable
                else "a call without a key"
            )
            remedy = "put a valid key there" if server.key_variable else f"name the variable that holds one as {key}"
            raise GatingError(f"{server.who}: {server.url} refuses {what} (HTTP {status}); {remedy}.")
        if status == 404:
            raise GatingError(
                f"{server.who}: nothing at {self.url} for the model {server.model} (HTTP 404); mend {url} (it mostly "
                f"ends in /v1) or {model}."
            )
