"""Rows of a batch are padded on the left: what tells a model which tokens are pads, and whether it listens."""

from __future__ import annotations

import inspect

import torch
from transformers import PreTrainedModel

from gating.errors import GatingError

PADS, TOKENS = 5, range(3, 19)  # of the text that a model is tried with
APART = 0.2  # of the logits' standard deviation: roundings of half precision stay below a tenth of it


def placed(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask [row, token], with each token's position, as `generate` counts it: a family with
    absolute positions would count pads. Families without positions get none."""
    return {**inputs, "position_ids": positions(inputs["attention_mask"])} if takes_positions(model) else inputs


def takes_positions(model: PreTrainedModel) -> bool:
    """Whether the family is told each token's position."""
    return "position_ids" in inspect.signature(model.forward).parameters


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Each token's position, counted from its row's first: [row, token], of an attention mask."""
    return (mask.cumsum(1) - 1).clamp(min=0)


@torch.no_grad()
def check(model: PreTrainedModel) -> None:
    """Raises GatingError naming the family where pads change what a model says: a batch would answer otherwise than
    each of its rows alone."""
    ids = torch.tensor([[0] * PADS + list(TOKENS)], device=model.device)
    mask = torch.tensor([[0] * PADS + [1] * len(TOKENS)], device=model.device)
    padded = placed(model, {"input_ids": ids, "attention_mask": mask})
    alone = placed(model, {"input_ids": ids[:, PADS:], "attention_mask": mask[:, PADS:]})
    a, b = (model(**inputs, use_cache=False).logits[0, -1].float() for inputs in (padded, alone))
    if (a - b).abs().max() > APART * b.std():
        raise GatingError(
            f"model.id: the family {model.config.model_type} ({type(model).__name__}) takes no notice of which tokens "
            "of a batch are pads, so that its answers would depend on the prompts beside them; use another model."
        )
