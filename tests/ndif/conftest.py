"""One real NDIF server for all tests of this folder (see server.py). A server that does not start fails them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import compose
from tests.ndif.server import Server

PORT = int(os.environ.get("GATING_NDIF_TEST_PORT", "28401"))
KEPT = os.environ.get("GATING_NDIF_TEST_ROOT")  # of a server that stays up from one run of the tests to the next
SLOW = 12.0  # seconds that a job of the tiny model may run on the test server


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.ndif)
            item.add_marker(pytest.mark.timeout(240))


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    root = Path(KEPT).absolute() if KEPT else tmp_path_factory.mktemp("ndif")
    one = Server(root, PORT, timeouts={"gating/tiny-llama": SLOW})
    try:
        if not (KEPT and one.serving()):
            one.up()
        yield one
    finally:
        if not KEPT:
            one.down()
        for process in one.processes.values():
            process.returncode = 0  # it stays up: nobody waits for it


@pytest.fixture
def serving(server):
    """The server, whole again after a test that broke a part of it."""
    yield server
    server.stop("front")
    if not (server.root / "run" / "api").exists():
        server.start_api()
    server.until("the models", lambda: set(server.models) <= server.serving())


@pytest.fixture
def client(server):
    """Start `python -m gating.run ...` as a process of its own, as a user would: an empty cache, no weights, no hub."""
    started = []

    def go(folder: Path, *overrides: str, host: str | None = None, **env: str) -> subprocess.Popen:
        folder.mkdir(parents=True, exist_ok=True)
        given = {**os.environ, "HF_HOME": str(server.client_home), "GATING_CACHE": str(folder / "cache"), **env}
        command = [
            sys.executable,
            "-m",
            "gating.run",
            f"backend={host or server.url}",
            f"runs_dir={folder}",
            *overrides,
        ]
        process = subprocess.Popen(
            command, cwd=folder, env=given, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        started.append(process)
        return process

    yield go
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()


@pytest.fixture
def backend(server, tmp_path):
    """A backend of the tiny model on the server, with the limits of a test."""
    from gating import models
    from gating.remote import connection, preflight
    from gating.remote.jobs import Limits, Remote
    from gating.remote.ledger import Ledger
    from gating.remote.wire import Wire
    from gating.steering.backend import Backend
    from gating.steering.scheduler import Turn

    cfg = compose("model=tiny-llama")[0].model

    def make(width: int = 2, **limits: Any) -> tuple[Backend, Remote]:
        wire, turn = Wire(server.url, ""), Turn()
        served = preflight.check(wire, models.served_as(cfg), None, "auto", False)
        loaded = models.without_weights(cfg, "", served.dtype)
        given = replace(Limits(120, 60, 2, 10, 4), **limits)
        remote = Remote(
            wire, served.model_key, {}, Ledger(tmp_path), given, width, turn, tmp_path, connection.sizes(loaded)
        )
        return Backend(loaded, 8, remote.via, width, turn), remote

    return make
