"""What `python -m gating.choose` is told."""

from __future__ import annotations

from dataclasses import dataclass, field

from gating import models, settings
from gating.errors import GatingError
from gating.models import ModelConfig
from gating.pipeline import config
from gating.pipeline.config import BackendConfig, DirectionsConfig

FEWEST_BLOCKS = 5  # a block before the persona's, the persona's, and one after it, with room to choose


@dataclass
class ChooseConfig:
    """A choice of sites."""

    model: ModelConfig = field(default_factory=ModelConfig)
    backend: BackendConfig = field(default_factory=BackendConfig)
    directions: DirectionsConfig = field(default_factory=DirectionsConfig)
    n: int = 24  # harmful select prompts whose answers decide; a third of them for first tokens; fewer harmless ones
    drop: float = 0.5  # the least fall of refusal that is asked of the persona
    new_tokens: int = 20  # of an answer
    out: str | None = None  # the model's file; null is RUNS_DIR/MODEL-chosen.yaml
    runs_dir: str = "runs"  # folder of its runs
    seed: int = 0  # of all that is drawn
    force: bool = False  # compute its runs again


def check(cfg: ChooseConfig) -> None:
    """Refuse impossible values before a model loads. Raises GatingError naming the key."""
    settings.check_lists(cfg)
    settings.check_numbers(cfg, settings.CHOOSING)
    config.check_path(cfg.runs_dir, "runs_dir")
    if cfg.out is not None:
        config.check_path(cfg.out, "out")
        if not cfg.out.endswith((".yaml", ".yml")):
            raise GatingError(f"out={cfg.out}: give the path of a .yaml file, to be named as model={cfg.out}.yaml.")
    n_layers = models.architecture(cfg.model)["layers"]
    if n_layers < FEWEST_BLOCKS:
        raise GatingError(
            f"model: {cfg.model.id or cfg.model.name} has {n_layers} blocks; sites are chosen among at least "
            f"{FEWEST_BLOCKS}."
        )
