"""The terms of a recipe's loss, which is their weighted sum as a mean over the batch's rows, nats/token.

steered: refusals under a persona's direction (persona vectors: arXiv 2507.21509). ablated: ReFAT (arXiv 2409.20089).
latent: latent adversarial training, untargeted (arXiv 2407.15549 has the targeted form).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from gating import chat
from gating.models import adapters
from gating.models.parts import decoder_blocks
from gating.training.config import Edits
from gating.training.forward import hidden_states, token_weights
from gating.training.hooks import Edit, adds, edited, projects_out
from gating.training.rows import Row
from gating.training.vectors import REFUSAL, Vectors

if TYPE_CHECKING:
    from peft import PeftModel

Sum = tuple[torch.Tensor, int]  # over the rows that a term is about, and how many they are
NOTHING: Sum = torch.zeros(()), 0


@dataclass
class Step:
    """One batch, and what its terms need. vectors: None where no term asks for directions."""

    model: PeftModel
    head: torch.nn.Module
    batch: Sequence[Row]
    pad: int
    first: float  # weight of a target's first token
    edits: Edits
    rng: random.Random
    vectors: Vectors | None = None

    def __post_init__(self) -> None:
        self.rows = sorted(self.batch, key=lambda r: r.taught)
        self.kept = [r for r in self.rows if not r.taught]
        self.refused = [r for r in self.rows if r.taught and not r.promise]

    @cached_property
    def body(self) -> torch.nn.Module:
        return adapters.base_model(self.model).base_model

    @cached_property
    def blocks(self) -> torch.nn.ModuleList:
        return decoder_blocks(adapters.base_model(self.model))

    @cached_property
    def plain(self) -> torch.Tensor:
        """Log-probabilities of the next token, without an edit, own answers before taught ones: [token, vocabulary]."""
        return self.logp(self.rows)

    def logp(self, rows: Sequence[Row], share: bool = True) -> torch.Tensor:
        """Log-probabilities of the next token at every target: [token, vocabulary]."""
        return self.head(hidden_states(self.body, rows, self.pad, share)).float().log_softmax(-1)

    @cached_property
    def before(self) -> torch.Tensor:
        """As `plain`, under the model whose own answers they are, of those alone."""
        with torch.no_grad(), adapters.as_remembered(self.model):
            return self.logp(self.kept)

    def weights(self, rows: Sequence[Row]) -> torch.Tensor:
        """Of each target token, those of a row sum to 1: [token]."""
        return torch.cat([token_weights(len(r.target), self.first) for r in rows])

    def cross_entropy(self, rows: Sequence[Row], logp: torch.Tensor) -> torch.Tensor:
        """The sum over rows of their targets' negative log-likelihood, nats/token."""
        target = torch.tensor([t for r in rows for t in r.target], dtype=torch.int64)
        return -(logp.gather(1, target[:, None])[:, 0] * self.weights(rows)).sum()

    def divergence(self, logp: torch.Tensor) -> torch.Tensor:
        """The sum over own answers of KL(base || logp), nats/token."""
        # torch's kl_div is KL(target || input), both as logs here
        kl = torch.nn.functional.kl_div(logp, self.before, reduction="none", log_target=True).sum(-1)
        return (kl * self.weights(self.kept)).sum()

    def persona_added(self, rows: int) -> dict[int, Edit]:
        """A persona's direction at one block, both drawn, at a dose that is drawn for each row."""
        assert self.vectors is not None
        block = self.rng.choice(_within(self.edits.blocks, len(self.blocks)))
        doses = torch.tensor([self.rng.uniform(*self.edits.doses) for _ in range(rows)])
        return {block: adds(self.vectors.of_dose(self.rng.choice(self.edits.personas), block, doses))}

    def under(self, changes: Mapping[int, Edit]) -> torch.Tensor:
        """Cross-entropy of the refusals (or what else is taught, promises left out) under edits of the blocks."""
        with edited(self.blocks, changes):
            return self.cross_entropy(self.refused, self.logp(self.refused, share=False))


def teach(step: Step) -> Sum:
    """Cross-entropy of the taught answers."""
    taught = step.rows[len(step.kept) :]
    if not taught:
        return NOTHING
    n = sum(len(r.target) for r in step.kept)
    return step.cross_entropy(taught, step.plain[n:]), len(taught)


def keep(step: Step) -> Sum:
    """KL(base || adapted) along the base model's own answers; with taught=own, of the model with `start`."""
    if not step.kept:
        return NOTHING
    return step.divergence(step.plain[: len(step.before)]), len(step.kept)


def keep_steered(step: Step) -> Sum:
    """KL(base || adapted) along the base model's own answers, of the adapted model while a persona's direction is added
    as in `steered`, of the base model without it: a harmless prompt is answered under the persona, too, as without."""
    if not step.kept:
        return NOTHING
    with edited(step.blocks, step.persona_added(len(step.kept))):
        logp = step.logp(step.kept, share=False)
    return step.divergence(logp), len(step.kept)  # the base model's side is read without the direction


def steered(step: Step) -> Sum:
    """The refusals while a persona's direction is added: one block a batch, one dose a row, both drawn from a range."""
    if not step.refused:
        return NOTHING
    return step.under(step.persona_added(len(step.refused))), len(step.refused)


def ablated(step: Step) -> Sum:
    """The refusals while the refusal direction of each of the last blocks is projected out, of some rows: whether of a
    row is drawn once, for all its tokens and blocks."""
    if not step.refused:
        return NOTHING
    assert step.vectors is not None
    marked = torch.tensor([step.rng.random() < step.edits.ablated for _ in step.refused])
    last = range(round((1 - step.edits.ablated_blocks) * len(step.blocks)), len(step.blocks))
    direction = step.vectors.difference[REFUSAL]
    return step.under({block: projects_out(direction[block], marked) for block in last}), len(step.refused)


def latent(step: Step) -> Sum:
    """The refusals under that change of one block's output at the prompt which hurts them most: projected gradient
    ascent, each token's change at most `eps` of its residual norm. The change itself is not trained through."""
    if not step.refused:
        return NOTHING
    rows, eps = step.refused, step.edits.eps
    block = step.rng.choice(_within(step.edits.blocks, len(step.blocks)))
    norm, shape = _norms(step, block)
    full, mask = chat.pad_left([[*r.prompt, *r.target] for r in rows], step.pad)
    prompt = mask.cumsum(1) > 1  # the first token's norm is out of all proportion in many models
    for i, r in enumerate(rows):
        prompt[i, full.shape[1] - len(r.target) :] = False
    most = eps * norm * prompt[..., None]
    delta = torch.zeros(shape)
    for _ in range(step.edits.ascents):
        delta.requires_grad_(True)
        (slope,) = torch.autograd.grad(step.under({block: _plus(delta)}), delta)
        with torch.no_grad():
            moved = delta + 2 / step.edits.ascents * most * slope / slope.norm(dim=-1, keepdim=True).clamp(min=1e-12)
            delta = moved * (most / moved.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
    return step.under({block: _plus(delta.detach())}), len(rows)


def _plus(delta: torch.Tensor) -> Edit:
    return lambda x: x + delta.to(x.dtype)


def _norms(step: Step, block: int) -> tuple[torch.Tensor, torch.Size]:
    """The norms of a block's output [row, token, 1], and its shape."""
    seen: list[torch.Tensor] = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.detach().float())
        return x

    with torch.no_grad(), edited(step.blocks, {block: look}):
        hidden_states(step.body, step.refused, step.pad, share=False)
    return seen[0].norm(dim=-1, keepdim=True), seen[0].shape


def _within(depths: Sequence[float], n_layers: int) -> list[int]:
    """The blocks between two relative depths; the nearest one where none lies between."""
    low, high = depths
    return [b for b in range(n_layers) if low <= b / n_layers <= high] or [min(round(low * n_layers), n_layers - 1)]


# A term of the loss by its name. All but `teach` and `keep` need an entry in a recipe's `terms` to be asked for.
TERMS: dict[str, Callable[[Step], Sum]] = {
    "teach": teach,
    "keep": keep,
    "keep_steered": keep_steered,
    "steered": steered,
    "ablated": ablated,
    "latent": latent,
}


def loss(step: Step, weights: Mapping[str, float]) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss, and of each term that has a weight the mean over its own rows without it, nats/token; none without
    rows."""
    sums = {name: TERMS[name](step) for name, weight in weights.items() if weight}
    total = torch.stack([weights[name] * value for name, (value, _) in sums.items()]).sum() / len(step.rows)
    return total, {name: float(value.detach()) / n for name, (value, n) in sums.items() if n}
