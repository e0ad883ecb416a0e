"""One run from a checked study to a finished store, in order, as a paper's method section would tell it.

Load the model; extract the directions; then, batch by batch of prompts, every prompt under every condition in one
layout: generate, score under the unsteered model, judge, write, `done` last. A killed run goes on where it stopped.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import nnsight
import numpy as np
import torch
import xarray as xr
import yaml
from nnsight.intervention.backends.local import LocalSimulationBackend

from gating import chat, models, progress, store, thoughts
from gating.analysis import claims
from gating.errors import GatingError, naming
from gating.judging.own import own_judge
from gating.pipeline import (
    calibrate,
    conditions,
    drawn,
    extract,
    extracted,
    matched,
    pace,
    prompt_batches,
    reused_directions,
    stopping,
)
from gating.pipeline.key import code
from gating.pipeline.prompt_batches import Encoded
from gating.pipeline.study import Study
from gating.prompts import Prompt
from gating.steering.backend import Backend
from gating.store import TEXT

if TYPE_CHECKING:
    from gating.remote.connection import Connection


def execute(study: Study) -> str:
    """Bring the study's store to completion and say in a few words how: new, resumed or opened as it was. A forced run
    is made beside the store that is there, which stays until the new one is whole."""
    folder = study.folder
    if store.again.cut(folder) or store.waits(study.store):
        with store.writer(folder):
            store.again.settle(folder)
    if not study.run.force and _finished(study):
        return "opened: this run was finished before (force=true computes it again)"
    again = study.run.force and study.store.is_dir()
    with naming(folder), store.writer(folder):
        how = _completed(replace(study, folder=store.again.place(folder)) if again else study, again)
        if again:
            return how + store.again.take_place(folder)
        store.again.discard(folder)  # begun by a forced run, and never ended
    return how


def _completed(study: Study, again: bool) -> str:
    """Bring the store in the study's folder, which is this process's alone, to completion."""
    study.folder.mkdir(exist_ok=True)
    with _backend(study) as (backend, connection):
        extract.check_positions(study, backend)
        asked = _by_length(study)
        now = backend.signature()  # a server's first job: a key or version that it refuses leaves nothing behind
        resumed = study.store.is_dir() and (not again or _goes_on(study, backend, asked))
        if resumed:
            _check_same(study, backend, asked)
        else:
            _lay_out(study, backend, asked, connection)
        signature = _same_model(study, now)
        if study.direction_specs and not store.has_group(study.store, "directions"):
            _directions(study, backend, signature)
        done = store.read_group(study.store, "outcomes", ["done"])["done"].all("condition").values
        took = _run_batches(study, backend, asked, done)
        jobs = {"jobs": json.dumps(connection.remote.ledger.total)} if connection is not None else {}
        ended = [*_thought(study), *stopping.warnings(study)]
        store.finish(study.store, {**jobs, **took, "warnings": json.dumps(study.warnings + ended)})
        if connection is not None:
            connection.remote.ledger.close()
    how = f"resumed: {int(done.sum())} of {len(done)} prompts were done" if resumed else "new"
    traffic = _traffic(connection, len(asked) * len(study.conditions)) if connection else ""
    return "\n".join([how + traffic, *(f"warning: {warning}" for warning in ended)])


def _thought(study: Study) -> list[str]:
    outcomes = store.read_group(study.store, "outcomes", ["n_thought", "n_tokens"])
    lengths = [v.values.ravel().tolist() for v in outcomes.values()]
    return thoughts.warnings(*lengths) if len(lengths) == 2 else []


def _goes_on(study: Study, backend: Backend, asked: Sequence[Encoded]) -> bool:
    """Whether what an earlier forced run began can be gone on with; else it is made anew."""
    try:
        _check_same(study, backend, asked)
    except GatingError:
        return False
    return not store.problems(study.store)


def _traffic(connection: Connection, rows: int) -> str:
    total = connection.remote.ledger.total
    up, down = (total[way] / rows / 1e3 for way in ("bytes_up", "bytes_down"))
    again = f", {total['resubmitted']} of them sent again" if total["resubmitted"] else ""
    collected = f", {total['collected']} of an earlier process" if total["collected"] else ""
    return f"\njobs: {total['jobs']}{again}{collected}; {up:.1f} KB up and {down:.1f} KB down a row"


@contextmanager
def _backend(study: Study) -> Iterator[tuple[Backend, Connection | None]]:
    if study.run.backend.name == "ndif":
        from gating.remote.connection import connect  # its packages are an extra

        connection = connect(study.run.model, study.run.backend, study.batch_rows, study.folder)
        yield connection.backend, connection
        return
    backend = Backend(models.load(study.run.model), study.batch_rows)
    if study.run.backend.name == "simulation":
        nnsight.register("gating")
        backend.via = lambda call: LocalSimulationBackend(backend.lm)
    yield backend, None


def _directions(study: Study, backend: Backend, signature: xr.Dataset) -> None:
    """The /directions group: taken from the run that is named, or from one of this folder, or extracted."""
    how = study.run.directions
    if how.source:
        group = reused_directions.directions(how, study.direction_specs, signature)
        if study.needs_resting and "resting" not in group:
            raise GatingError(
                f"directions.source={how.source} does not hold what harmless prompts have at rest (reference=mean); "
                "extract anew (directions.source=null), or take a run that has a reference=mean of its own."
            )
        if drawn.wanted(study.conditions).n:
            raise GatingError(
                f"directions.source={how.source}: random directions of draw=covariance or permuted are drawn from the "
                "rows that directions are extracted from, which another run does not keep; extract anew "
                "(directions.source=null), or take draw=isotropic."
            )
        group.attrs["taken_from"] = how.source
        store.add_group(study.store, "directions", group)
        return
    of = extracted.digest(study, signature, backend.loaded.fingerprint, _machine(study, backend))
    with extracted.once(study, of) as taken:
        if not taken:
            group, geometry = extract.extract(study, backend)
            if geometry is not None:
                store.add_group(study.store, "geometry", geometry)
            store.add_group(study.store, "directions", group.assign_attrs(digest=of))


def _same_model(study: Study, now: xr.Dataset) -> xr.Dataset:
    """The /model group: the model's signature, its residual stream for a text of fixed tokens. A store that was begun
    with another one is refused: a server may have other weights under the same name than it had."""
    if not store.has_group(study.store, "model"):
        store.add_group(study.store, "model", now)
        return now
    begun = store.read_group(study.store, "model")
    apart = reused_directions.distance(begun, now)
    if apart is None or not apart <= reused_directions.tolerance(begun, now):  # NaN is neither
        raise GatingError(
            f"{study.store} was begun with other weights than {study.run.model.name} has now; say force=true to "
            "compute it again."
        )
    return begun


def _finished(study: Study) -> bool:
    """Whether the store holds this very run, finished: its key covers all that determines the result."""
    if not study.store.is_dir():
        return False
    attrs = store.read_attrs(study.store)
    return attrs.get("status") == "complete" and attrs.get("key") == study.key


def _by_length(study: Study) -> list[Encoded]:
    """Prompts with their token ids, shortest first, so that a batch pads little."""
    encoded = [Encoded(p, study.ids(p.text, study.run.model.system)) for p in study.test]
    return sorted(encoded, key=lambda e: (len(e.ids), e.prompt.hash))


def _lay_out(study: Study, backend: Backend, asked: Sequence[Encoded], connection: Connection | None) -> None:
    loaded, run = backend.loaded, study.run
    attrs = {
        "key": study.key,
        "config": yaml.safe_dump(asdict(run), sort_keys=False, allow_unicode=True),
        "choices": json.dumps(study.choices),
        "overrides": json.dumps(study.overrides),
        "seed": run.seed,
        "versions": json.dumps(store.versions()),
        "git_revision": store.git_revision(),
        "model_id": run.model.id or run.model.name,
        "model_revision": loaded.revision or "none",
        "model_fingerprint": loaded.fingerprint,
        "template_hash": chat.template_hash(loaded.tokenizer),
        "device": study.run.backend.name if connection else str(loaded.device),
        "machine": json.dumps(_machine(study, backend)),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        **({"server": json.dumps(connection.provenance())} if connection else {}),
        "batch_rows": study.batch_rows,
        "prompt_batch": study.prompt_batch,
        "max_new_tokens": study.max_new_tokens,
        "judge": own_judge(run.judge).attributes()["id"],
        "claims": json.dumps(study.claims),
        "claims_digest": claims.digest(study.claims) if study.claims else "",
        "code": code(),
        "warnings": json.dumps(study.warnings),
    }
    described_conditions = conditions.table(study.conditions, loaded.n_layers)
    prompts = described([e.prompt for e in asked], [len(e.ids) for e in asked])
    store.create(study.store, prompts, described_conditions, study.max_new_tokens, study.prompt_batch, attrs)


def described(prompts: Sequence[Prompt], n_tokens: Sequence[int]) -> xr.Dataset:
    """The /prompts group. n_tokens: of each prompt, -1 where nobody knows."""
    columns: dict[str, Any] = {
        name: ("prompt", np.array([getattr(p, name) for p in prompts], dtype=TEXT))
        for name in ("text", "category", "source")
    }
    columns["harmful"] = "prompt", np.array([p.harmful for p in prompts])
    columns["n_tokens"] = "prompt", np.array(n_tokens, dtype="int32")
    return xr.Dataset(columns, coords={"prompt": np.array([p.hash for p in prompts], dtype=TEXT)})


def _machine(study: Study, backend: Backend) -> dict[str, object]:
    """What a local run's last bits may depend on beside its key: threads, the GPU's model, Python."""
    device = backend.loaded.device
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" and study.run.backend.name != "ndif" else None
    return {"threads": torch.get_num_threads(), "gpu": gpu, "processor": platform.machine()}


def _check_same(study: Study, backend: Backend, asked: Sequence[Encoded]) -> None:
    """A resumed store must have been begun with this very model and these prompts in this order."""
    attrs = store.read_attrs(study.store)
    same_model = attrs["model_fingerprint"] == backend.loaded.fingerprint
    order = store.read_group(study.store, "prompts")["prompt"].values.tolist()
    if attrs["key"] != study.key:
        raise GatingError(
            f"{study.store} holds the run {attrs['key']}, not {study.key}: its folder was renamed. Move it away, "
            "or say force=true to compute this run there."
        )
    if not same_model or order != [e.prompt.hash for e in asked]:
        what = "prompts in another order" if same_model else f"model weights {attrs['model_fingerprint']}"
        raise GatingError(
            f"{study.store} was begun with {what}, so it cannot be gone on with (these weights are "
            f"{backend.loaded.fingerprint}); say force=true to compute it again."
        )


def _run_batches(study: Study, backend: Backend, asked: Sequence[Encoded], done: np.ndarray) -> dict[str, str]:
    """Ask what is not done; what a store keeps of the time that it took."""
    made = store.read_group(study.store, "directions") if study.direction_specs else None
    calibrated = made is not None and study.run.steer.iso_kl
    scale = calibrate.scales(study, backend, made) if calibrated and made is not None else {}
    taken_out = matched.directions(study, backend, made) if made is not None else {}
    w = prompt_batches.worker(study, backend, made, scale, taken_out)
    hashes, step, n = [e.prompt.hash for e in asked], study.prompt_batch, len(study.conditions)
    prompt_batches.lay_out_readouts(w, hashes)
    prompt_batches.lay_out_samples(w, hashes)
    stopping.lay_out(study, hashes)
    prompt_batches.lay_out_activations(w, hashes)
    begun = time.monotonic()
    with progress.bar("outcomes", len(asked) * n, done=int(done.sum()) * n) as advance:
        starts = [s for s in range(0, len(asked), step) if not done[s : s + step].all()]
        for start, groups in backend.each(lambda s: prompt_batches.groups(w, asked[s : s + step]), starts):
            store.write_batch(study.store, start, groups)
            advance(len(asked[start : start + step]) * n)
    if study.run.stop != "end":  # whole answers take longer
        return {}
    return pace.attribute(int((~done).sum()) * n, time.monotonic() - begun)
