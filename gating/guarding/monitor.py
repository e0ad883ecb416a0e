"""From a guard's file to a watch over a batch, and the second judge that a flag can ask."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gating import chat
from gating.guarding.file import Guard, unpacked
from gating.judging.labels import REFUSAL
from gating.judging.learned import labels_of
from gating.steering.watch import Confirm, Watch


def watch(guard: Guard, actions: Sequence[str], confirm: Confirm | None = None) -> Watch:
    """A watch over one batch, with the action of each row (watch.ACTIONS)."""
    vector, persona = (torch.from_numpy(unpacked(text)) for text in (guard.vector, guard.persona))
    return Watch(guard.layer, vector, guard.threshold, guard.window, actions, persona, guard.neutral, confirm)


def second_judge(tokenizer: chat.Tokenizer, prompts: Sequence[str]) -> Confirm:
    """A flag counts unless the learned judge, shown the prompt and the answer so far, says that it refuses. It judges
    refusal and not harm, so that it drops no flag on a harmless request that is answered."""

    def confirm(row: int, tokens: list[int]) -> bool:
        answer = str(tokenizer.decode(tokens, skip_special_tokens=True))
        return labels_of([(prompts[row], answer)])[0] != REFUSAL

    return confirm
