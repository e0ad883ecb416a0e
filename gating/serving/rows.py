"""One answer under way: what it answers, how it is steered and guarded, how its tokens are chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

STOP, LENGTH, GUARDED = "stop", "length", "content_filter"  # why an answer ended, in OpenAI's words
LOST = "lost"  # the model gives no number for any token


@dataclass
class Draw:
    """Tokens drawn at a temperature, by numbers of this answer's own: they don't depend on the rows beside it."""

    temperature: float
    seed: int
    top_p: float = 1.0

    def __post_init__(self) -> None:
        self._numbers = torch.Generator().manual_seed(self.seed)

    def __call__(self, logits: torch.Tensor) -> int:
        """One token of logits [vocab], out of the most likely ones that reach `top_p` together."""
        p = (logits.cpu().float() / self.temperature).softmax(-1)
        if self.top_p < 1:
            ordered, order = p.sort(descending=True)
            p = p.index_fill(0, order[ordered.cumsum(0) - ordered >= self.top_p], 0.0)
        return int(torch.multinomial(p, 1, generator=self._numbers))


@dataclass(eq=False)
class Row:
    """prompt: token ids; most: tokens of the answer; condition, coef: see Steering; action: of the guard (ACTIONS);
    draw: gives a token for logits [vocab]; None is greedy.

    tokens: the answer so far, without the token that ends it; finish: why it ended, empty before; flagged: tokens that
    the guard had read when it flagged the answer, 0 where it did not.
    """

    prompt: Sequence[int]
    most: int
    condition: int = 0
    coef: float = 1.0
    action: str = "none"
    draw: Callable[[torch.Tensor], int] | None = None
    tokens: list[int] = field(default_factory=list)
    finish: str = ""
    flagged: int = 0
    slot: int = -1  # its row of the watch
    asked: str = ""  # the user's last message, for a second judge
