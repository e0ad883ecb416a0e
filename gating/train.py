"""`python -m gating.train`: give the embedded model a refusal habit, as a small LoRA adapter on our own prompts.

The result is a *model organism*: a model with one known, planted behaviour, for studying what gates it. Harmful prompts
are answered with a refusal (cross-entropy); harmless ones must leave the model as it was (KL divergence from the base
model, over the tokens of the base model's own greedy answers). Deterministic given the seed and the thread count.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads that spin slow a shared machine down many times over

import hydra
import torch
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gating import cli, config_files, models, prompts
from gating.errors import GatingError
from gating.models import adapters
from gating.training.card import card, describe, measure, own_answers
from gating.training.config import TrainConfig, check
from gating.training.fit import fit
from gating.training.rows import build_rows

log = logging.getLogger(__name__)


def train(cfg: TrainConfig) -> dict[str, Any]:
    """Train, measure, and write the adapter's folder at once at the end; gives the recipe with its results."""
    check(cfg)
    torch.set_num_threads(cfg.threads)
    refuse = prompts.deduplicate(prompts.load(cfg.harmful, True, "train", "harmful"))[0]
    answer = prompts.deduplicate(prompts.load(cfg.harmless, False, "train", "harmless"))[0]
    start = time.monotonic()
    base = models.load(replace(cfg.model, adapter=None))
    before = own_answers(cfg, base)
    rows = build_rows(cfg, base, refuse, answer)
    log.info("%d rows, %d tokens", len(rows), sum(len(r.prompt) + len(r.target) for r in rows))
    adapted = fit(cfg, base, rows)
    out = Path(cfg.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        draft = Path(folder) / out.name
        adapted.save_pretrained(draft)
        _tidy(draft, cfg)
        models.forget()  # peft has changed the base model in place
        loaded = models.load(replace(cfg.model, adapter=str(draft)))
        results = measure(cfg, loaded, before)
        recipe = describe(cfg, base.fingerprint, refuse, answer, rows, results, time.monotonic() - start)
        (draft / adapters.RECIPE).write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")
        (draft / "README.md").write_text(card(recipe), encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
        os.replace(draft, out)
    models.forget()
    return recipe


def _tidy(folder: Path, cfg: TrainConfig) -> None:
    """Keep what peft needs to load the adapter; its own model card and machine paths go."""
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / adapters.CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = cfg.model.id or cfg.model.name
    config["target_modules"] = sorted(config["target_modules"])  # a set: its order changes from run to run
    (folder / adapters.WEIGHTS).chmod(0o644)  # safetensors files are born private, this one is shipped
    path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")


@hydra.main(version_base="1.3", config_path=str(config_files.conf_dir()), config_name="train")
def job(cfg: DictConfig) -> None:
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, TrainConfig)
    recipe = train(config)
    for name, value in recipe["results"].items():
        print(f"{name}: {value}")
    print(f"adapter: {config.out}")


def main() -> None:
    """Exit code 0, or 2 for bad input."""
    os.environ["HYDRA_FULL_ERROR"] = "1"
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("httpx", "httpcore", "urllib3", "filelock"):
        logging.getLogger(name).setLevel(logging.WARNING)
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)
    try:
        job()
    except (GatingError, HydraException, OmegaConfBaseException, OSError) as e:
        print(f"error: {cli.explain(e)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
