"""Every answer of a server passes here: bounded in time and in bytes, from where it was asked, of the kind asked for.

The time is that of the whole exchange, headers and body included, and not of a single read. No redirect is followed.
Nothing is inflated: an answer is asked for as it is, and one that comes compressed is refused.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from gating import event_loop, foreign
from gating.errors import GatingError

Result = TypeVar("Result")

DOCUMENT = foreign.MEGABYTE  # bytes of a JSON answer: one of small lists takes seconds to read beyond that


class NoAnswer(Exception):
    """No whole answer came: there was no connection, or it broke, or it took too long. It may pass."""


class NotFit(NoAnswer):
    """What came is not an answer to what was asked: a web page, a redirect, too many bytes, not JSON."""


class NotPlain(NotFit):
    """It is not JSON of plain values. This alone may say words of the server's."""


@dataclass(frozen=True)
class Answer:
    """A whole answer: its status, its content type and its bytes, which are no more than were allowed."""

    status: int
    kind: str
    content: bytes

    @property
    def fine(self) -> bool:
        return 200 <= self.status < 300

    def check_page(self) -> None:
        """Raises NotFit where it is a page for people."""
        if self.kind == "text/html" or self.content[:500].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
            raise NotFit("it answers with a web page: a captive portal, a login page or another server's address?")

    def json(self) -> Any:
        """The document in it: plain finite values. Raises NotFit, which says what it is instead."""
        self.check_page()
        try:
            return foreign.parse_json(self.content, "its answer")
        except GatingError as e:
            raise NotPlain(str(e)) from None

    def mapping(self) -> dict[str, Any]:
        """The document, where it is a mapping. Raises NotFit."""
        document = self.json()
        if not isinstance(document, dict):
            raise NotFit(f"its answer is a {type(document).__name__}, not a JSON object")
        return document

    def said(self) -> str:
        """What an answer that is a refusal says, in one line."""
        try:
            document = self.json()
        except NotPlain:
            return foreign.shown(self.content[:4000].decode(errors="replace"))
        except NotFit as e:
            return str(e)
        return foreign.shown(document.get("detail", document) if isinstance(document, dict) else document)


def ask(method: str, url: str, seconds: float, limit: int = DOCUMENT, transport: Any = None, **request: Any) -> Answer:
    """One exchange on a connection of its own, of at most `seconds` and with at most `limit` bytes in the answer.

    request: what httpx.AsyncClient.stream takes. Raises NoAnswer and NotFit.
    """

    async def go() -> Answer:
        async with client(transport=transport) as one:
            return await exchange(one, method, url, seconds, limit, **request)

    return run(go())


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Wait for it, also where this thread already runs an event loop, as a notebook's does."""
    event_loop.ready()
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def client(**settings: Any) -> httpx.AsyncClient:
    """An httpx client without limits of its own: `exchange` has them. Raises GatingError for an unusable proxy."""
    try:
        return httpx.AsyncClient(verify=_certificates(), timeout=None, follow_redirects=False, **settings)
    except (ValueError, httpx.InvalidURL, ImportError):  # what it holds may be a password
        raise GatingError(
            "HTTP_PROXY, HTTPS_PROXY or ALL_PROXY in the environment holds no address of a proxy that can be used; "
            "mend or unset it, or name the server in NO_PROXY."
        ) from None


async def exchange(
    one: httpx.AsyncClient, method: str, url: str, seconds: float, limit: int = DOCUMENT, **request: Any
) -> Answer:
    """As `ask`, with a client of yours."""
    headers = {**request.pop("headers", {}), "Accept-Encoding": "identity"}
    try:
        async with asyncio.timeout(seconds), one.stream(method, url, headers=headers, **request) as reply:
            _check(reply, limit)
            content = bytearray()
            async for piece in reply.aiter_raw():
                content += piece
                if len(content) > limit:
                    raise _too_large(limit)
            return Answer(reply.status_code, _kind(reply.headers), bytes(content))
    except TimeoutError:
        raise NoAnswer(f"no whole answer within {seconds:.3g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError) as e:
        raise NoAnswer(f"no connection, or a broken one ({type(e).__name__})") from None


def _check(reply: httpx.Response, limit: int) -> None:
    """Refuse by status and headers what need not be read."""
    if 300 <= reply.status_code < 400:
        raise NotFit(f"it sends us elsewhere (HTTP {reply.status_code}), which is not followed: a captive portal?")
    if reply.status_code < 200:
        raise NotFit(f"it answers HTTP {reply.status_code}, which is no answer")
    encoding = reply.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        raise NotFit("its answer is compressed, which was not asked for")
    length = reply.headers.get("content-length", "0")
    if length.isdigit() and (len(length) > 18 or int(length) > limit):
        raise _too_large(limit)


def _too_large(limit: int) -> NotFit:
    return NotFit(f"its answer has more than the {limit:,} bytes that are read of it")


def _kind(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


@functools.cache
def _certificates() -> ssl.SSLContext:
    return httpx.create_ssl_context()
