"""`connect` checks everything that can be checked before a job is sent and gives a backend whose traces run on the server."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from gating import models, progress
from gating.pipeline.study import Study
from gating.remote import address, preflight
from gating.remote.jobs import Limits, Remote
from gating.remote.ledger import Ledger
from gating.remote.wire import Wire
from gating.steering.backend import Backend
from gating.steering.scheduler import Turn


@dataclass(frozen=True)
class Connection:
    """A backend whose model is served elsewhere, and what a store keeps of that."""

    backend: Backend
    remote: Remote
    served: preflight.Served

    def provenance(self) -> dict[str, Any]:
        return {"host": self.remote.host.url, "model_key": self.served.model_key, "versions": self.served.versions}


def connect(study: Study) -> Connection:
    """Raises GatingError for everything that can be found wrong before a job is sent."""
    run = study.run
    repo = models.served_as(run.model)
    wire = Wire(address.address(run.backend.host), address.key())
    try:
        return _connected(
            study, wire, preflight.check(wire, repo, run.model.revision, run.model.dtype, run.backend.deploy)
        )
    except BaseException:
        wire.close()
        raise


def _connected(study: Study, wire: Wire, served: preflight.Served) -> Connection:
    run = study.run
    for warning in served.warnings:
        progress.console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    fingerprint = hashlib.sha256(f"{wire.url} {served.model_key}".encode()).hexdigest()[:16]
    loaded = models.without_weights(run.model, fingerprint, served.dtype)
    how, turn = run.backend, Turn()
    remote = Remote(
        wire,
        served.model_key,
        {"attn_implementation": loaded.model.config._attn_implementation},
        Ledger(study.folder),
        Limits(how.deadline, how.outage, how.unknown, how.stalled, how.attempts),
        how.in_flight,
        turn,
        study.folder,
    )
    return Connection(Backend(loaded, study.batch_rows, remote.via, how.in_flight, turn), remote, served)
