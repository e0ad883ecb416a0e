"""Train an adapter, measure it, and write its folder: weights, recipe and card."""

from __future__ import annotations

import itertools
import json
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from gating import models, prompts, swap
from gating.errors import GatingError, choices
from gating.models import adapters, parts
from gating.prompts import Prompt
from gating.training import checkpoint, curve
from gating.training.card import card
from gating.training.checkpoint import Checkpoint
from gating.training.config import TrainConfig, check
from gating.training.curve import Curve
from gating.training.fit import fit
from gating.training.measure import base_answers, measure, select
from gating.training.random_change import random_change
from gating.training.recipe import Recipe, describe
from gating.training.rows import build_rows, unseen_rows

OURS = {adapters.RECIPE, adapters.CONFIG, adapters.WEIGHTS, curve.FILE, "README.md"}  # what train writes
UNSEEN = 8  # prompts of each kind for the curve
log = logging.getLogger(__name__)


def train(cfg: TrainConfig) -> Recipe:
    """Train, measure, and write the adapter's folder at once at the end; gives the recipe with its results.

    Where a training of the same recipe was stopped at `out`, it goes on from its last checkpoint.
    """
    check(cfg)
    check_out(Path(cfg.out))
    torch.set_num_threads(cfg.threads)
    refuse = [] if cfg.like or cfg.persona else _prompts(cfg, True)
    answer = [] if cfg.like else _prompts(cfg, False)
    start = time.monotonic()
    base = models.load(replace(cfg.model, adapter=cfg.start if cfg.taught == "own" else None))  # whose answers are kept
    check_targets(cfg.targets, base)
    rows = build_rows(cfg, base, refuse, answer)
    base = models.load(replace(cfg.model, adapter=None))  # the other one is let go: one fits where two may not
    own = base_answers(cfg, base)
    log.info("%d rows, %d tokens", len(rows), sum(len(r.prompt) + len(r.target) for r in rows))
    out, key = Path(cfg.out), checkpoint.key(cfg, base.fingerprint, rows)
    kept = Checkpoint(out, key)
    unseen = unseen_rows(cfg, base, select(cfg, "harmful", True)[:UNSEEN], own.rows[:UNSEEN])
    adapted, losses = (random_change(cfg, base), Curve()) if cfg.like else fit(cfg, base, rows, kept, unseen)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        draft = Path(folder) / out.name
        adapted.save_pretrained(  # with embeddings peft would ask the hub about the base model
            str(draft), save_embedding_layers=False, selected_adapters=[adapters.TRAINED]
        )
        _tidy(draft, cfg)
        models.forget()  # peft has changed the base model in place
        loaded = models.load(replace(cfg.model, adapter=str(draft)))
        results = measure(cfg, loaded, own)
        recipe = describe(cfg, base.fingerprint, refuse, answer, rows, results, time.monotonic() - start)
        (draft / adapters.RECIPE).write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")
        (draft / "README.md").write_text(card(cfg, recipe, results), encoding="utf-8")
        (draft / curve.FILE).write_text(losses.text(key, adapters.digest(str(draft))), encoding="utf-8")
        _put(draft, out, kept)
    models.forget()
    return recipe


def _put(draft: Path, out: Path, kept: Checkpoint) -> None:
    """The finished folder at `out`, or beside it where somebody has put other files there while it was trained."""
    try:
        check_out(out)
    except GatingError as e:
        kept.remove()
        beside = next(b for i in itertools.count(2) if not (b := out.with_name(f"{out.name}-{i}")).exists())
        os.replace(draft, beside)
        raise GatingError(f"The adapter is trained, and stands in {beside}, because meanwhile {e}") from None
    swap.replace(draft, out)


def _prompts(cfg: TrainConfig, harmful: bool) -> list[Prompt]:
    key, name = ("harmful", cfg.harmful) if harmful else ("harmless", cfg.harmless)
    found = prompts.deduplicate(prompts.load(name, harmful, "train", key))[0]
    if not found:
        raise GatingError(f"{key}={name!r} has no prompts in the split train; use train_{key} or a file.")
    return prompts.sample(found, cfg.prompts_n, cfg.seed)


def check_targets(targets: Sequence[str], loaded: models.Loaded) -> None:
    """Raises GatingError for a target that is no linear layer of the model's blocks."""
    blocks = parts.decoder_blocks(loaded.model).named_modules()
    known = sorted({name.rpartition(".")[2] for name, module in blocks if isinstance(module, torch.nn.Linear)})
    for target in targets:
        if target.rpartition(".")[2] not in known:
            raise GatingError(
                f"targets: {target!r} is no linear layer of this model's blocks: use {choices(known, target)}."
            )


def check_out(out: Path) -> None:
    """Raises GatingError where an adapter may not take the place of what stands at `out`: anything but one of ours."""
    if not out.exists():
        return
    names = {p.name for p in out.iterdir()} if out.is_dir() else {out.name}
    if out.is_dir() and checkpoint.FOLDER in names:
        checkpoint.check(out / checkpoint.FOLDER)
        names.remove(checkpoint.FOLDER)
        if not names:  # a training that was stopped
            return
    if not {adapters.RECIPE, adapters.CONFIG} <= names <= OURS:
        foreign = sorted(names - OURS)
        held = f"it holds {foreign[0]}" if foreign else f"it has no {adapters.RECIPE}"
        raise GatingError(
            f"out={out} exists and is not an adapter that gating.train wrote ({held}); it is left as it is. Give a "
            "folder that does not exist yet, or that of an adapter to replace."
        )


def _tidy(folder: Path, cfg: TrainConfig) -> None:
    """Keep what peft needs to load the adapter; its own model card and machine paths go."""
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / adapters.CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = cfg.model.id or cfg.model.name
    config["target_modules"] = sorted(config["target_modules"])  # a set: its order changes from run to run
    (folder / adapters.WEIGHTS).chmod(0o644)  # safetensors files are born private, this one is shipped
    path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
