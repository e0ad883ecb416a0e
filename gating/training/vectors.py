"""The directions that training works against, read from the model as it is at that step: against old ones alone a model
can learn to be robust and be open to new ones (arXiv 2504.18872)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from gating import chat, personas
from gating.models import Loaded
from gating.training.config import TrainConfig
from gating.training.hooks import Edit, edited
from gating.training.rows import Row, pad_id

REFUSAL = "refusal"
BATCH_ROWS = 32


@dataclass(frozen=True)
class Vectors:
    """Differences of means by name (a persona's, `refusal`) [block, hidden], and the median norm of the residual stream
    [block] over the tokens that they were read from, float32."""

    difference: dict[str, torch.Tensor]
    norm: torch.Tensor

    def of_dose(self, name: str, block: int, doses: torch.Tensor) -> torch.Tensor:
        """The direction at a block, as long as each dose [row] says, in residual norms: [row, hidden]."""
        direction = self.difference[name][block]
        return doses[:, None] * self.norm[block] * direction / direction.norm().clamp(min=1e-12)


class Reader:
    """Reads the directions that a recipe's terms ask for, at the last prompt token."""

    def __init__(
        self, cfg: TrainConfig, loaded: Loaded, rows: Sequence[Row], body: torch.nn.Module, blocks: torch.nn.ModuleList
    ) -> None:
        """rows: those of training; the refusal direction is read from their prompts, never from another split."""
        self.cfg, self.body, self.blocks, self.pad = cfg, body, blocks, pad_id(loaded)
        added = cfg.terms.get("steered") or cfg.terms.get("keep_steered")
        self.sides = {name: _persona_sides(cfg, loaded, name) for name in cfg.edits.personas if added}
        if cfg.terms.get("ablated"):
            refused = [r.prompt for r in rows if r.taught and not r.promise]
            self.sides[REFUSAL] = refused, [r.prompt for r in rows if not r.taught]

    def read(self, step: int) -> Vectors:
        """The directions of the model as it is now, from n prompts a side that the seed and the step decide."""
        draw = random.Random(f"{self.cfg.seed}:{step}:directions")
        difference, norms = {}, []
        training = self.body.training
        self.body.eval()
        for name, sides in self.sides.items():
            if name == REFUSAL:
                positive, negative = (draw.sample(side, min(self.cfg.edits.n, len(side))) for side in sides)
            else:  # rows of a persona's two sides are pairs, and are drawn as such
                pairs = list(zip(*sides, strict=True))
                drawn = draw.sample(pairs, min(self.cfg.edits.n, len(pairs)))
                positive, negative = [p for p, _ in drawn], [n for _, n in drawn]
            (mean, norm), (other, _) = self._means(positive), self._means(negative)
            difference[name] = mean - other
            norms.append(norm)
        self.body.train(training)
        return Vectors(difference, torch.stack(norms).mean(0))

    def _means(self, ids: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean state of the last token [block, hidden]; the median norm over all tokens but the first [block]."""
        last: list[list[torch.Tensor]] = [[] for _ in self.blocks]
        norms: list[list[torch.Tensor]] = [[] for _ in self.blocks]
        mask = torch.empty(0)

        def keep(block: int) -> Edit:
            def kept(x: torch.Tensor) -> torch.Tensor:
                last[block].append(x[:, -1].float())
                norms[block].append(x.float().norm(dim=-1)[mask])
                return x

            return kept

        reads: Mapping[int, Edit] = {block: keep(block) for block in range(len(self.blocks))}
        for start in range(0, len(ids), BATCH_ROWS):
            padded, attended = chat.pad_left(ids[start : start + BATCH_ROWS], self.pad)
            mask = attended.cumsum(1) > 1
            with torch.no_grad(), edited(self.blocks, reads):
                self.body(input_ids=padded, attention_mask=attended, use_cache=False)
        return torch.stack([torch.cat(b).mean(0) for b in last]), torch.stack([torch.cat(b).median() for b in norms])


def _persona_sides(cfg: TrainConfig, loaded: Loaded, name: str) -> tuple[list[list[int]], list[list[int]]]:
    rows = personas.paired_rows(personas.load(name))
    encoded = [chat.encode(loaded.tokenizer, r.question, r.system, cfg.model.template) for r in rows]
    return encoded[::2], encoded[1::2]
