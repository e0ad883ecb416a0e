"""A run as an Inspect log: a sample for each prompt x condition, a score for each judge. `inspect view` opens it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalResults, EvalSample, EvalSpec, EvalStats
from inspect_ai.log import write_eval_log as write_log
from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, ModelOutput
from inspect_ai.scorer import Score

from gating.analysis.reading import read_group
from gating.judging.labels import LABELS, MISSING
from gating.reporting.page import HARMFUL_WORDS, HARMLESS_WORDS, PROMPT_WORDS, opening


def write(run: xr.DataTree, place: Path, full_text: bool = False) -> None:
    """Write the log of a run; texts are openings unless they are asked for in full."""
    write_log(log(run, full_text), str(place), format="eval")


def log(run: xr.DataTree, full_text: bool = False) -> EvalLog:
    """The log of a run. An answer that is not done has no sample."""
    attrs = run.attrs
    samples = _samples(run, full_text)
    hashes = sorted({str(s.metadata["prompt"]) for s in samples})
    kept = ("key", "judge", "seed", "model_fingerprint", "model_revision", "dtype", "max_new_tokens", "warnings")
    spec = EvalSpec(
        created=str(attrs["created_at"]),
        task="gating",
        task_id=str(attrs["key"]),
        run_id=str(attrs["key"]),
        eval_id=str(attrs["key"]),
        dataset=EvalDataset(name="prompts x conditions", samples=len(samples), sample_ids=[s.id for s in samples]),
        model=f"gating/{attrs['model_id']}",
        config=EvalConfig(),
        packages={"gating": str(json.loads(attrs["versions"]).get("gating", ""))},
        metadata={k: _plain(attrs[k]) for k in kept if k in attrs}
        | {"config": str(attrs["config"]), "prompts": len(hashes), "texts": "full" if full_text else "openings"},
    )
    complete = attrs.get("status") == "complete"
    return EvalLog(
        status="success" if complete else "started",
        eval=spec,
        results=EvalResults(total_samples=len(samples), completed_samples=len(samples)),
        stats=EvalStats(started_at=str(attrs["created_at"]), completed_at=str(attrs.get("finished_at") or "")),
        samples=samples,
    )


def _samples(run: xr.DataTree, full_text: bool) -> list[EvalSample]:
    prompts, outcomes = read_group(run, "prompts"), read_group(run, "outcomes").transpose("condition", "prompt", ...)
    kinds = read_group(run, "conditions")["kind"]
    judged = {"label": outcomes["label"]}
    for group in sorted(g for g in run.groups if g.startswith(("/judgements/", "/labels/"))):
        held = read_group(run, group.strip("/"))
        if "label" in held:
            judged[group.rpartition("/")[2]] = held["label"].reindex_like(outcomes["label"], fill_value=MISSING)
    out = []
    for hashed in outcomes["prompt"].values.tolist():
        asked = prompts.sel(prompt=hashed)
        text = opening(str(asked["text"].item()), None if full_text else PROMPT_WORDS)
        words = None if full_text else HARMFUL_WORDS if bool(asked["harmful"]) else HARMLESS_WORDS
        for condition in outcomes["condition"].values.tolist():
            row = outcomes.sel(prompt=hashed, condition=condition)
            if not bool(row["done"]):
                continue
            metadata = {
                "prompt": hashed, "condition": condition, "kind": str(kinds.sel(condition=condition).item()),
                "category": str(asked["category"].item()), "source": str(asked["source"].item()),
                "harmful": bool(asked["harmful"]), "n_tokens": int(row["n_tokens"]),
                "refusal_score": _plain(row["refusal_score"].item()), "nll": _plain(row["nll"].item()),
            }  # fmt: skip
            labels = {j: int(v.sel(prompt=hashed, condition=condition)) for j, v in judged.items()}
            out.append(_sample(text, opening(str(row["completion"].item()), words), labels, metadata, run.attrs))
    return out


def _sample(
    text: str, answer: str, labels: dict[str, int], metadata: dict[str, Any], attrs: dict[Any, Any]
) -> EvalSample:
    return EvalSample(
        id=f"{metadata['prompt']}:{metadata['condition']}",
        epoch=1,
        input=text,
        target="",
        messages=[ChatMessageUser(content=text), ChatMessageAssistant(content=answer)],
        output=ModelOutput.from_content(f"gating/{attrs['model_id']}", answer),
        scores={judge: Score(value=LABELS[code], answer=None) for judge, code in labels.items() if code != MISSING},
        metadata=metadata,
    )


def _plain(value: Any) -> Any:
    """What JSON holds: a number of Python, None for one that is missing."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not np.isfinite(value) else value
