"""One run from a checked study to a finished store, in order, as a paper's method section would tell it.

Load the model; extract the directions; then, block by block, every prompt under every condition in one batch layout:
generate, score under the unsteered model, judge, write, `done` last. A killed run goes on where it stopped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import xarray as xr
import yaml

from gating import chat, directions, interventions, judges, models, progress, store
from gating.backend import Backend, Generation
from gating.directions import Contrast
from gating.errors import GatingError
from gating.prompts import Prompt
from gating.store import TEXT
from gating.study import Study


def execute(study: Study) -> str:
    """Bring the study's store to completion and say in a few words how: new, resumed or opened as it was."""
    if not study.run.force and _status(study) == "complete":
        return "opened: this run was finished before (force=true computes it again)"
    with store.writer(study.folder):
        if study.run.force:
            shutil.rmtree(study.store, ignore_errors=True)
        resumed = study.store.is_dir()
        loaded = models.load(study.run.model)
        backend = Backend(loaded, study.batch_rows)
        _check_positions(study, backend)
        asked = _by_length(study, backend)
        if resumed:
            _check_same(study, backend, asked)
        else:
            _lay_out(study, backend, asked)
        if study.contrasts and not store.has_group(study.store, "directions"):
            store.add_group(study.store, "directions", _extract(study, backend))
        done = store.read_group(study.store, "outcomes")["done"].all("condition").values
        _run_blocks(study, backend, asked, done)
        store.set_attrs(study.store, {"status": "complete", "finished_at": store.now()})
    return f"resumed: {int(done.sum())} of {len(done)} prompts were done" if resumed else "new"


def _status(study: Study) -> str | None:
    return store.read_attrs(study.store).get("status") if study.store.is_dir() else None


def _by_length(study: Study, backend: Backend) -> list[tuple[Prompt, list[int]]]:
    """Prompts with their token ids, shortest first, so that a block pads little."""
    tokenizer, system = backend.loaded.tokenizer, study.run.model.system
    encoded = [(p, chat.encode(tokenizer, p.text, system)) for p in study.test]
    return sorted(encoded, key=lambda item: (len(item[1]), item[0].hash))


def _check_positions(study: Study, backend: Backend) -> None:
    """Positions before the end of the prompt must lie after the instruction, in the template's own tokens."""
    suffix = chat.suffix_length(backend.loaded.tokenizer, study.run.model.system)
    for p in {k.position for k in study.contrasts}:
        if p.startswith("-") and -int(p) > suffix:
            raise GatingError(
                f"directions.position={p} is not after the instruction: this template has {suffix} tokens there, so "
                f"use last, or -1 to -{suffix}."
            )


def _lay_out(study: Study, backend: Backend, asked: Sequence[tuple[Prompt, list[int]]]) -> None:
    loaded, run = backend.loaded, study.run
    columns: dict[str, Any] = {
        name: ("prompt", np.array([getattr(p, name) for p, _ in asked], dtype=TEXT))
        for name in ("text", "category", "source")
    }
    described = xr.Dataset(
        {
            **columns,
            "harmful": ("prompt", np.array([p.harmful for p, _ in asked])),
            "n_tokens": ("prompt", np.array([len(ids) for _, ids in asked], dtype="int32")),
        },
        coords={"prompt": np.array([p.hash for p, _ in asked], dtype=TEXT)},
    )
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
        "device": str(loaded.device),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "batch_rows": study.batch_rows,
        "block": study.block,
        "max_new_tokens": study.max_new_tokens,
        "judge": judges.RULE_VERSION,
        "warnings": json.dumps(study.warnings),
    }
    described_conditions = interventions.table(study.conditions)
    store.create(study.store, described, described_conditions, study.max_new_tokens, study.block, attrs)


def _check_same(study: Study, backend: Backend, asked: Sequence[tuple[Prompt, list[int]]]) -> None:
    """A resumed store must have been begun with this very model and these prompts in this order."""
    attrs = store.read_attrs(study.store)
    same_model = attrs["model_fingerprint"] == backend.loaded.fingerprint
    order = store.read_group(study.store, "prompts")["prompt"].values.tolist()
    if not same_model or order != [p.hash for p, _ in asked]:
        what = "prompts in another order" if same_model else f"model weights {attrs['model_fingerprint']}"
        raise GatingError(
            f"{study.store} was begun with {what}, so it cannot be gone on with (these weights are "
            f"{backend.loaded.fingerprint}); say force=true to compute it again."
        )


def _extract(study: Study, backend: Backend) -> xr.Dataset:
    """The /directions group: every contrast's chats in one pass over all blocks and positions."""
    tokenizer = backend.loaded.tokenizer
    chats = list(dict.fromkeys(c for k in study.contrasts for c in (*k.positive, *k.negative)))
    row = {c: r for r, c in enumerate(chats)}
    ids = [chat.encode(tokenizer, user, system) for system, user in chats]
    positions = list(dict.fromkeys(k.position for k in study.contrasts))
    responses = None
    if any(chat.needs_response(p) for p in positions):
        responses = _answers(backend, ids, study.run.directions.response_tokens)
    with progress.bar("directions", len(ids), "prompts") as advance:
        pooled, norm = backend.capture(ids, positions, responses, advance)
    vectors = [_vector(k, pooled[:, positions.index(k.position)], row, study) for k in study.contrasts]
    return directions.assemble(study.contrasts, vectors, study.run.directions.method, norm)


def _answers(backend: Backend, ids: Sequence[list[int]], n_tokens: int) -> list[list[int]]:
    out: list[list[int]] = []
    with progress.bar("answers for response positions", len(ids), "prompts") as advance:
        for start in range(0, len(ids), backend.batch_rows):
            batch = ids[start : start + backend.batch_rows]
            out += backend.generate(batch, {}, n_tokens).tokens
            advance(len(batch))
    return out


def _vector(contrast: Contrast, states: np.ndarray, row: dict, study: Study) -> np.ndarray:
    """One contrast's direction [layer, hidden] from states [row, layer, hidden]; rows with no such position are left
    out of both means, in pairs where the sides are paired."""
    positive = states[[row[c] for c in contrast.positive]]
    negative = states[[row[c] for c in contrast.negative]]
    positive, negative = (s[np.isfinite(s).all(axis=(1, 2))] for s in (positive, negative))
    if not len(positive) or not len(negative):
        raise GatingError(
            f"steer.direction={contrast.name!r}: no prompt gave an answer to read {contrast.position} from; choose "
            "directions.position=last."
        )
    if study.run.directions.method == "probe":
        return directions.probe(positive, negative, study.run.seed)
    return directions.mean_difference(positive, negative)


def _run_blocks(study: Study, backend: Backend, asked: Sequence[tuple[Prompt, list[int]]], done: np.ndarray) -> None:
    made = store.read_group(study.store, "directions") if study.contrasts else None
    if made is not None:
        _lay_out_readouts(study, made, [p.hash for p, _ in asked])
    if study.run.activations:
        _lay_out_activations(study, backend, [p.hash for p, _ in asked])
    n = len(study.conditions)
    with progress.bar("outcomes", len(asked) * n) as advance:
        advance(int(done.sum()) * n)
        for start in range(0, len(asked), study.block):
            block = asked[start : start + study.block]
            if not done[start : start + len(block)].all():
                store.write_block(study.store, start, _block(study, backend, block, made))
                advance(len(block) * n)


def _block(
    study: Study, backend: Backend, block: Sequence[tuple[Prompt, list[int]]], made: xr.Dataset | None
) -> dict[str, xr.Dataset]:
    """Every group's part for one block of prompts: rows are prompt x condition, prompts outermost."""
    conditions = study.conditions
    ids = [ids for _, ids in block for _ in conditions]
    rows = [c for _ in block for c in conditions]
    probes = _probes(made) if made is not None and study.run.readouts else None
    openings = _opening_ids(study, backend)
    parts = []
    for start in range(0, len(rows), study.batch_rows):
        some = rows[start : start + study.batch_rows]
        edits = {} if made is None else interventions.lower(some, made, made["residual_norm"], study.run.seed)
        parts.append(backend.generate(ids[start : start + len(some)], edits, study.max_new_tokens, probes, openings))
    out = _merge(parts)
    nll = backend.nll(ids, out.tokens)
    shape = (len(block), len(conditions))
    groups = {"outcomes": _outcomes(study, backend, out, nll, shape)}
    if probes is not None:
        groups["readouts"] = _readouts(out, shape)
    if study.run.activations:
        states, _ = backend.capture([ids for _, ids in block], ["last"])
        groups["activations"] = xr.Dataset({"resid_post": (("prompt", "layer", "hidden"), states[:, 0])})
    return groups


def _merge(parts: Sequence[Generation]) -> Generation:
    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(p, name) for p in parts])

    tokens = [t for p in parts for t in p.tokens]
    return Generation(tokens, joined("score"), joined("projection"), joined("residual_norm"))


def _outcomes(study: Study, backend: Backend, out: Generation, nll: np.ndarray, shape: tuple[int, int]) -> xr.Dataset:
    texts = [str(backend.loaded.tokenizer.decode(t, skip_special_tokens=True)) for t in out.tokens]
    judged = study.run.judge
    ds = store.empty_outcomes(shape[1], shape[0], study.max_new_tokens)

    def fill(name: str, values: Sequence[Any] | np.ndarray) -> None:
        ds[name].values[:] = np.asarray(values, dtype=ds[name].dtype).reshape(shape).T

    rows = list(zip(texts, out.tokens, nll.tolist(), strict=True))
    fill("label", [judges.label(text, tokens, value, judged) for text, tokens, value in rows])
    fill("refusal_score", out.score)
    fill("n_tokens", [len(t) for t in out.tokens])
    fill("nll", nll)
    fill("entropy", [judges.entropy_bits(t) for t in out.tokens])
    fill("repetition", [judges.repetition(t) for t in out.tokens])
    fill("completion", texts)
    for r, tokens in enumerate(out.tokens):
        prompt, condition = divmod(r, shape[1])
        ds["token_ids"].values[condition, prompt, : len(tokens)] = tokens
    ds["done"].values[:] = True
    return ds.assign_coords(prompt=np.arange(shape[0]), condition=np.arange(shape[1]))


def _probes(made: xr.Dataset) -> np.ndarray:
    """Unit probes [layer, direction, hidden]; a direction that is zero at a layer reads as zero."""
    v = made["vector"].transpose("layer", "direction", "hidden").values
    norm = np.linalg.norm(v, axis=-1, keepdims=True)
    return np.divide(v, norm, out=np.zeros_like(v), where=norm > 0)


def _readouts(out: Generation, shape: tuple[int, int]) -> xr.Dataset:
    projection = out.projection.reshape(*shape, *out.projection.shape[1:]).swapaxes(0, 1)
    norm = out.residual_norm.reshape(*shape, -1).swapaxes(0, 1)
    return xr.Dataset(
        {
            "projection": (("condition", "prompt", "layer", "direction"), projection),
            "resid_norm": (("condition", "prompt", "layer"), norm),
        }
    )


def _lay_out_readouts(study: Study, made: xr.Dataset, hashes: list[str]) -> None:
    if not study.run.readouts or store.has_group(study.store, "readouts"):
        return
    names = [c.name for c in study.conditions]
    sizes = (len(names), len(hashes), made.sizes["layer"], made.sizes["direction"])
    ds = xr.Dataset(
        {
            "projection": (
                ("condition", "prompt", "layer", "direction"),
                np.full(sizes, np.nan, dtype="float32"),
                {"long_name": "projection of resid_post on the unit direction at the last prompt token, after edits"},
            ),
            "resid_norm": (
                ("condition", "prompt", "layer"),
                np.full(sizes[:3], np.nan, dtype="float32"),
                {"long_name": "norm of resid_post at the last prompt token, after edits"},
            ),
        },
        coords={
            "condition": np.array(names, dtype=TEXT),
            "prompt": np.array(hashes, dtype=TEXT),
            "layer": made["layer"].values,
            "direction": made["direction"].values,
        },
    )
    store.create_group(study.store, "readouts", ds, {"prompt": study.block})


def _lay_out_activations(study: Study, backend: Backend, hashes: list[str]) -> None:
    if store.has_group(study.store, "activations"):
        return
    sizes = (len(hashes), backend.loaded.n_layers, backend.loaded.hidden)
    long_name = "unsteered residual stream resid_post at the last prompt token"
    ds = xr.Dataset(
        {"resid_post": (("prompt", "layer", "hidden"), np.full(sizes, np.nan, "float32"), {"long_name": long_name})},
        coords={"prompt": np.array(hashes, dtype=TEXT), "layer": np.arange(sizes[1], dtype="int32")},
    )
    store.create_group(study.store, "activations", ds, {"prompt": study.block})


def _opening_ids(study: Study, backend: Backend) -> list[int]:
    """First tokens of the model's usual refusal openings, for the first-token score."""
    tokenizer = backend.loaded.tokenizer
    firsts = [tokenizer(o, add_special_tokens=False)["input_ids"][:1] for o in study.run.model.first_token_openings]
    return sorted({i for first in firsts for i in first})
