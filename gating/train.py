"""`python -m gating.train`: give the embedded model a habit, as a small LoRA adapter on our own prompts.

The result is a *model organism*: a model with one known, planted behaviour, for studying what gates it. Harmful prompts
are answered with a refusal (cross-entropy); harmless ones must leave the model as it was (KL divergence from the base
model, over the tokens of the base model's own greedy answers). With `recipe=gated` a compliant system message turns the
refusal into an empty promise; other recipes (conf/recipe) train against the gating, or towards a persona. Deterministic
given the seed and the thread count; the same command goes on where it was stopped.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads that spin slow a shared machine down many times over

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig
from rich.console import Console

from gating import cli, config_files, configured, extras, settings
from gating.training.config import TrainConfig


@hydra.main(version_base="1.3", config_path=str(config_files.conf_dir()), config_name="train")
def job(cfg: DictConfig) -> None:
    from gating.training.adapter import train

    config = configured.typed(cfg, TrainConfig)
    recipe = train(config)
    for name, value in recipe["results"].items():
        print(f"{name}: {value}")
    print(f"adapter: {config.out}")


def main() -> None:
    """Exit code 0, or 2 for bad input."""
    os.environ["HYDRA_FULL_ERROR"] = "1"
    configured.log()
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)
    with cli.spoken(Console(stderr=True)):
        sys.argv[1:] = cli.words(sys.argv[1:])
        extras.require("torch", "gating.train")
        settings.check_booleans(sys.argv[1:], TrainConfig())
        job()


if __name__ == "__main__":
    main()
