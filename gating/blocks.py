"""One block of prompts under every condition: from rows of a batch to the store's groups, and those groups laid out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from gating import interventions, judges, store
from gating.backend import Backend, Generation
from gating.prompts import Prompt
from gating.store import TEXT
from gating.study import Study


def block_groups(
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


def lay_out_readouts(study: Study, made: xr.Dataset, hashes: list[str]) -> None:
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


def lay_out_activations(study: Study, backend: Backend, hashes: list[str]) -> None:
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
