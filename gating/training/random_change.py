"""The control of every recipe: an adapter changed in a random direction, by as much as training changed another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from gating.errors import GatingError
from gating.foreign import shown
from gating.models import Loaded, adapters
from gating.training.config import TrainConfig
from gating.training.fit import start

if TYPE_CHECKING:
    from peft import PeftModel

Pair = tuple[torch.Tensor, torch.Tensor]  # A [rank, in] and B [out, rank] of one adapted weight, whose change is B A


def random_change(cfg: TrainConfig, loaded: Loaded) -> PeftModel:
    """The model with an adapter that lies as far from that of `start` (from none) as the adapter `like` does: the
    change of every adapted weight has the same Frobenius norm, and a random direction. Changes the model in place.

    Raises GatingError where `like` adapts other weights than the recipe does.
    """
    model = start(cfg, loaded)
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    like = _weights(str(cfg.like), "like")
    before = _weights(cfg.start, "start") if cfg.start else {name: torch.zeros_like(p) for name, p in like.items()}
    if {name: p.shape for name, p in like.items()} != {name: p.shape for name, p in own.items()}:
        raise GatingError(
            f"like={shown(cfg.like)!r} adapts other weights, or with another rank, than this recipe: give an adapter "
            "that was trained with the same rank, targets and blocks."
        )
    generator = torch.Generator().manual_seed(cfg.seed)
    with torch.no_grad():
        for a in (name for name in own if ".lora_A." in name):
            b = a.replace(".lora_A.", ".lora_B.")
            for name, value in zip((a, b), moved((before[a], before[b]), (like[a], like[b]), generator), strict=True):
                own[name].copy_(value)
    return model.eval()


def moved(before: Pair, after: Pair, generator: torch.Generator) -> Pair:
    """`before`, moved in a random direction until its product lies as far away as that of `after`.

    In it A and B each go as far, relative to each other, as they do from `before` to `after`.
    """
    (a, b), target = before, float((after[1] @ after[0] - before[1] @ before[0]).norm())
    if not target:
        return before
    noise = [torch.randn(p.shape, generator=generator) for p in before]
    step_a, step_b = (n / n.norm() * (new - old).norm() for n, old, new in zip(noise, before, after, strict=True))

    def distance(t: float) -> float:
        return float(((b + t * step_b) @ (a + t * step_a) - b @ a).norm())

    low, high = 0.0, 1.0
    while distance(high) < target:
        high *= 2
        if high > 1e6:  # one of the two did not move
            step_a, step_b, high = noise[0] / noise[0].norm(), noise[1] / noise[1].norm(), 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if distance(middle) < target else (low, middle)
    return a + high * step_a, b + high * step_b


def _weights(adapter: str, key: str) -> dict[str, torch.Tensor]:
    """An adapter's weights, float32, by their names in a model that trains it."""
    held = load_file(adapters.folder(adapter, key) / adapters.WEIGHTS)
    return {name.replace(".weight", ".default.weight"): p.float() for name, p in held.items()}
