"""Answers labelled on a page of this machine's: http.server on 127.0.0.1, for whoever has the address with its token.

A page of another origin can reach a port on this machine too. So every request must name this very host, which keeps
out addresses that were made to lead here (DNS rebinding), and know the token, which no other page has.
"""

from __future__ import annotations

import http.server
import json
import secrets
import threading
import time
from importlib import resources
from typing import Any

from gating import foreign
from gating.errors import GatingError, cause
from gating.labelling.session import Session

HOST = "127.0.0.1"
LONGEST = 1000  # bytes of what is posted
SECONDS = 10.0  # that a request may take to come
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Page:
    """The page of a session. `url` is its address; `serve` answers until all is labelled or the reader quits."""

    def __init__(self, session: Session, port: int = 0) -> None:
        """port: 0 takes a free one. Raises GatingError for one that cannot be had."""
        self.token = secrets.token_urlsafe(24)
        handler = type("Handler", (_Handler,), {"session": session, "page": self})
        try:
            self.server = http.server.ThreadingHTTPServer((HOST, port), handler)
        except (OSError, OverflowError) as e:
            raise GatingError(f"port={port} cannot be had ({cause(e)}); give another, or leave it out.") from None
        self.server.daemon_threads = True  # a browser opens connections that it may never use
        self.lock = threading.Lock()  # a session has one reader
        self.hosts = {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")}
        self.url = f"http://{HOST}:{self.server.server_port}/{self.token}/"
        self.shown: tuple[int, float] = (-1, 0.0)  # which place was shown last, and when

    def serve(self) -> None:
        """Answer requests until `stop`."""
        try:
            self.server.serve_forever(poll_interval=0.1)
        finally:
            self.server.server_close()

    def stop(self) -> None:
        """End `serve` after the answer that is being given."""
        threading.Thread(target=self.server.shutdown, daemon=True).start()


class _Handler(http.server.BaseHTTPRequestHandler):
    """A request; the session is read and written by one at a time."""

    session: Session
    page: Page
    timeout = SECONDS
    server_version, sys_version = "gating", ""

    def do_GET(self) -> None:
        if self._refused():
            return
        if self._asked() == "":
            self._send(200, "text/html; charset=utf-8", resources.files(__package__).joinpath("page.html").read_bytes())
        elif self._asked() == "next":
            with self.page.lock:
                self._next()
        else:
            self._say(404, "there is no such page")

    def do_POST(self) -> None:
        if self._refused():
            return
        length = self.headers.get("Content-Length", "")
        if self._asked() != "key":
            self._say(404, "there is no such page")
        elif self.headers.get("Content-Type", "").partition(";")[0].strip() != "application/json":
            self._say(415, "post JSON")
        elif not length.isascii() or not length.isdigit() or len(length) > 6 or int(length) > LONGEST:
            self._say(413, f"post at most {LONGEST} bytes, and say how many")
        else:
            self._posted(self.rfile.read(int(length)))

    def _posted(self, content: bytes) -> None:
        try:
            said = foreign.parse_json(content, "what was posted")
            if not isinstance(said, dict) or set(said) != {"key", "place"}:
                raise GatingError('what was posted: give {"key": ..., "place": ...}.')
            key, place = said["key"], said["place"]
            if not isinstance(key, str) or type(place) is not int:
                raise GatingError("what was posted: key is a text, place a whole number.")
            with self.page.lock:
                self._take(key, place)
        except GatingError as e:
            self._say(400, str(e))

    def _take(self, key: str, place: int) -> None:
        """A key that was pressed. Raises GatingError for one that is none, or of an answer that is not shown."""
        if key == "q":
            self._answer({"ended": True, "total": self.session.total, "read": self.session.read})
            self.page.stop()
            return
        if key == "u":
            self.session.undo()
        else:
            shown, since = self.page.shown
            self.session.put(place, key, time.monotonic() - since if shown == place else float("nan"))
        self._next()

    def _next(self) -> None:
        item, session = self.session.next(), self.session
        out: dict[str, Any] = {"ended": item is None, "total": session.total, "read": session.read}
        if item is not None:
            if self.page.shown[0] != item.place:
                self.page.shown = (item.place, time.monotonic())
            out |= item._asdict()
        self._answer(out)
        if item is None:
            self.page.stop()

    def _refused(self) -> bool:
        """Whether the request is not from the page; it is answered then. What is not the token's is not there."""
        origin = self.headers.get("Origin")
        host = self.headers.get("Host", "")
        if host not in self.page.hosts or (origin is not None and origin != f"http://{host}"):
            self._say(403, "open the address that the command printed")
            return True
        token = self.path.split("/")[1] if self.path.startswith("/") else ""
        if not secrets.compare_digest(token.encode(), self.page.token.encode()):
            self._say(404, "there is no such page")
            return True
        return False

    def _asked(self) -> str:
        """What stands after the token in the address."""
        return self.path.removeprefix(f"/{self.page.token}/") if self.path.count("/") == 2 else "nothing"

    def _answer(self, said: dict[str, Any]) -> None:
        self._send(200, "application/json", json.dumps(said).encode())

    def _say(self, status: int, words: str) -> None:
        self.close_connection = True
        self._send(status, "text/plain; charset=utf-8", words.encode(errors="replace"))

    def _send(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Nothing: a line a request would hide the address, which holds the token."""
