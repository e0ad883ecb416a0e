"""NDIF's HTTP interface: send a job, ask for its state, fetch its result. Errors are told apart by who can mend them.

The endpoints and the envelope are those of nnsight 0.8.1's RemoteBackend (nnsight/intervention/backends/remote.py),
whose own client gives no status codes, waits without a limit and unpickles what the server sends.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import httpx
import torch
import zstandard
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel

from gating.errors import GatingError, TooLarge

JSON = Any  # a document as it was sent; who reads it checks what it reads
CONNECT, READ = 10.0, 120.0  # seconds
LOGIN = "https://login.ndif.us"


class Passing(Exception):
    """A fault that may pass: the same request may succeed later."""


class Lost(Passing):
    """A job or its result is not there (any more): it has to be sent again."""


@dataclass
class Wire:
    """One server and one key, which goes into a header and nowhere else: `clean` takes it out of whatever is told."""

    url: str
    key: str = field(repr=False)
    timeout: httpx.Timeout = field(default_factory=lambda: httpx.Timeout(READ, connect=CONNECT))

    def __post_init__(self) -> None:
        headers = {"nnsight-version": version("nnsight"), "python-version": sys.version}
        if self.key:
            headers["ndif-api-key"] = self.key
        self.http = httpx.Client(base_url=self.url, timeout=self.timeout, headers=headers)

    def close(self) -> None:
        self.http.close()

    def clean(self, text: object) -> str:
        return str(text).replace(self.key, "(your key)") if self.key else str(text)

    def get(self, path: str) -> JSON:
        """A JSON document of the server. Raises Passing where it does not answer, GatingError where it refuses."""
        return self._ask("GET", path).json()

    def submit(self, model_key: str, payload: bytes, env: Mapping[str, object]) -> str:
        """Send a job; its id. Raises Passing, TooLarge, or GatingError (a key, a version, a request that is
        refused)."""
        envelope = RequestModel(model_key=model_key, compress=True, env=dict(env)).metadata()
        answer = self._ask(
            "POST",
            "/request",
            data={"data": envelope},
            files={"blob": ("request", payload, "application/octet-stream")},
            headers={"ndif-timestamp": repr(time.time())},
        )
        return str(ResponseModel.model_validate_json(answer.text).id)

    def state(self, job: str) -> ResponseModel | None:
        """The latest state of a job; None where the server knows nothing of it (yet)."""
        answer = self._ask("GET", f"/response/{job}", missing=True)
        return None if answer.status_code == 404 else ResponseModel.model_validate_json(answer.text)

    def fetch(self, url: str) -> bytes:
        """A result, from the address that the server gave for it. Raises Lost where it has expired."""
        try:
            answer = httpx.get(url, timeout=self.timeout)  # signed, and perhaps another host: no key goes there
        except httpx.HTTPError as e:
            raise Passing(f"the result could not be fetched ({type(e).__name__})") from e
        if answer.status_code in (400, 403, 404, 410):
            raise Lost(f"the result is gone (HTTP {answer.status_code})")
        if answer.is_error:
            raise Passing(f"the result could not be fetched (HTTP {answer.status_code})")
        return answer.content

    def _ask(self, method: str, path: str, missing: bool = False, **more: Any) -> httpx.Response:
        try:
            answer = self.http.request(method, path, **more)
        except httpx.HTTPError as e:
            raise Passing(f"{self.url} does not answer ({type(e).__name__}: {self.clean(e)})") from e
        if not answer.is_error or (missing and answer.status_code == 404):
            return answer
        raise self._refusal(answer)

    def _refusal(self, answer: httpx.Response) -> Exception:
        code, said = answer.status_code, self.clean(_detail(answer))
        if code in (408, 429) or code >= 500:
            return Passing(f"{self.url} answers HTTP {code}: {said}")
        if code == 413:
            return TooLarge(f"{self.url} takes no job of this size: {said}")
        if code in (401, 403) or "API key" in said:
            return GatingError(
                f"NDIF_API_KEY: {self.url} does not accept {'this key' if self.key else 'a job without a key'} "
                f"(HTTP {code}: {said}); get a key at {LOGIN} and put it into the environment variable NDIF_API_KEY."
            )
        return GatingError(
            f"backend.host: {self.url} refuses this client (HTTP {code}: {said}); install the versions that the server "
            "asks for, or choose another host."
        )


def result(content: bytes) -> dict[str, object]:
    """What a trace saved, from a downloaded result. Only tensors and plain values are read: nothing that a server
    sends is run here. Raises Lost where the bytes are damaged, or hold anything else."""
    try:
        plain = zstandard.ZstdDecompressor().decompress(content)
        values: dict[str, object] = torch.load(io.BytesIO(plain), map_location="cpu", weights_only=True)
    except Exception as e:  # zstandard's, torch's and pickle's own types
        raise Lost(f"the result cannot be read ({type(e).__name__})") from e
    return values


def _detail(answer: httpx.Response) -> str:
    try:
        body = answer.json()
    except ValueError:
        return answer.text.strip()[:300]
    return str(body.get("detail", body) if isinstance(body, dict) else body)[:300]
