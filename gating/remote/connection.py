"""`connect` checks everything that can be checked before a job is sent and gives a backend whose traces run on the
server."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypedDict

from gating import models, progress
from gating.models import ModelConfig
from gating.remote import address, preflight
from gating.remote.expected import Sizes
from gating.remote.jobs import Limits, Remote
from gating.remote.ledger import Ledger
from gating.remote.wire import PATIENCE, Wire
from gating.steering.backend import Backend
from gating.steering.scheduler import Turn


class Provenance(TypedDict):
    """What a store keeps of the server."""

    host: str
    model_key: str
    versions: dict[str, str]


class Settings(Protocol):
    """backend.*, as far as a connection is concerned (gating/pipeline/config.py says what each is)."""

    host: str | None
    deploy: bool
    in_flight: int
    deadline: float
    outage: float
    unknown: float
    stalled: float
    attempts: int


@dataclass(frozen=True)
class Connection:
    """A backend whose model is served elsewhere, and what a store keeps of that."""

    backend: Backend
    remote: Remote
    served: preflight.Served

    def provenance(self) -> Provenance:
        return {"host": self.remote.host.url, "model_key": self.served.model_key, "versions": self.served.versions}


def connect(model: ModelConfig, settings: Settings, batch_rows: int, folder: Path) -> Connection:
    """A backend for `model` on the server that `settings` name; its ledger and log stand in the run's folder.

    Raises GatingError for everything that can be found wrong before a job is sent.
    """
    repo = models.served_as(model)
    patience = min(PATIENCE, settings.outage, settings.deadline)
    wire = Wire(address.address(settings.host), address.key(), patience)
    served = preflight.check(wire, repo, model.revision, model.dtype, settings.deploy)
    for warning in served.warnings:
        progress.console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    fingerprint = hashlib.sha256(f"{wire.url} {served.model_key}".encode()).hexdigest()[:16]
    loaded = models.without_weights(model, fingerprint, served.dtype)
    s, turn = settings, Turn()
    limits = Limits(s.deadline, s.outage, s.unknown, s.stalled, s.attempts)
    environment = {"attn_implementation": loaded.model.config._attn_implementation}
    remote = Remote(
        wire, served.model_key, environment, Ledger(folder), limits, s.in_flight, turn, folder, sizes(loaded)
    )
    return Connection(Backend(loaded, batch_rows, remote.via, s.in_flight, turn), remote, served)


def sizes(loaded: models.Loaded) -> Sizes:
    """What results of this model are checked against."""
    return Sizes(loaded.n_layers, loaded.hidden, loaded.model.get_output_embeddings().weight.shape[0])
