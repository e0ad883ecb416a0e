"""The HTTP side: OpenAI's paths, errors in OpenAI's form, limits before anything is read, and who may ask."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from gating import addresses
from gating.serving.asked import Refused, parse
from gating.serving.desk import Desk, Held

READING = 30.0  # seconds that a client has to send its request
GONE = 499  # the status of an answer that nobody is there to read


def app(desk: Desk, key: str | None, loopback: bool) -> FastAPI:
    """key: that requests must carry; loopback: only requests to this machine's own names are answered, so that no web
    page can send a browser here under another."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        desk.open()
        yield
        await asyncio.to_thread(desk.close)

    async def allowed(request: Request) -> None:
        if loopback and not addresses.is_loopback(f"http://{request.headers.get('host', '')}"):
            raise Refused(403, "this server answers requests to 127.0.0.1 or localhost only.")
        if key is not None and not _same(request.headers.get("authorization", ""), f"Bearer {key}"):
            raise Refused(401, "the key is missing or wrong; send Authorization: Bearer KEY.", code="invalid_api_key")

    server = FastAPI(lifespan=life, openapi_url=None)
    server.include_router(_open(desk))
    server.include_router(_closed(desk), dependencies=[Depends(allowed)])
    server.add_exception_handler(Refused, _handler(desk))
    server.add_exception_handler(HTTPException, _handler(desk))
    server.add_exception_handler(ClientDisconnect, _gone)
    return server


def _same(given: str, wanted: str) -> bool:
    """Whether two texts are the same, in a time that does not tell where they differ."""
    a, b = (hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in (given, wanted))
    return hmac.compare_digest(a, b)


def _handler(desk: Desk) -> Any:
    async def refuse(request: Request, error: Any) -> Response:
        if not isinstance(error, Refused):
            known = "GET /v1/models, POST /v1/chat/completions, GET /healthz and GET /metrics"
            error = Refused(error.status_code, f"{error.detail}: there are {known}.")
        desk.figures.requests.labels(str(error.status)).inc()
        headers = {"Retry-After": str(error.wait)} if error.wait else {}
        if error.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse({"error": error.error}, error.status, headers)

    return refuse


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=GONE)


def _open(desk: Desk) -> APIRouter:
    """What needs no key."""
    router = APIRouter()

    @router.get("/healthz")
    async def healthz() -> Response:
        if not desk.engine.alive or desk.engine.closing:
            return JSONResponse({"status": "the engine has ended"}, 503)
        if desk.decisions.failed:
            return JSONResponse({"status": "decisions cannot be written"}, 503)
        return JSONResponse({"status": "ok"})

    return router


def _closed(desk: Desk) -> APIRouter:
    router = APIRouter()

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(desk.figures.page(desk.engine), media_type="text/plain; version=0.0.4")

    @router.get("/v1/models")
    async def models() -> Response:
        names = [c.name for c in desk.terms.steering.conditions]
        own = {"conditions": names, "guard": desk.terms.act}
        model = {"id": desk.terms.name, "object": "model", "created": 0, "owned_by": "gating", "gating": own}
        return JSONResponse({"object": "list", "data": [model]})

    @router.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        asked = parse(await _body(request, desk.terms.limits.body))
        held = desk.take(asked)
        if asked.stream:
            usage = asked.stream_options is not None and asked.stream_options.include_usage
            return _Stream(desk, held, usage)
        return await _whole(request, desk, held)

    return router


async def _body(request: Request, most: int) -> bytes:
    """Raises Refused for a body that is no JSON by its header, too long, or slow to come."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "the body must be JSON; send Content-Type: application/json.")
    too_long = Refused(413, f"the body has more than {most:,} bytes.")
    given = request.headers.get("content-length", "0")
    if not given.isdecimal() or len(given) > 15 or int(given) > most:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(READING):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise too_long
    except TimeoutError:
        raise Refused(408, f"the body did not come within {READING:g} seconds.") from None
    return bytes(body)


async def _whole(request: Request, desk: Desk, held: Held) -> Response:
    """The completion, unless the client leaves before."""
    work, gone = asyncio.ensure_future(desk.whole(held)), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        return JSONResponse(work.result()) if work.done() else Response(status_code=GONE)
    finally:
        work.cancel()
        gone.cancel()
        desk.done(held)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Stream(StreamingResponse):
    """A stream whose request is done when it ends, however it does: the client may leave before it begins."""

    def __init__(self, desk: Desk, held: Held, usage: bool) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(desk.stream(held, usage), headers=headers, media_type="text/event-stream")
        self._done = lambda: desk.done(held)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._done()
