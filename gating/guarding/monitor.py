"""From a guard's file to a watch over a batch, and the second judge that a flag can ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from gating import chat
from gating.guarding.file import Guard, unpacked
from gating.judging.labels import REFUSAL
from gating.judging.learned import labels_of
from gating.steering.lowering import Edit, Edits
from gating.steering.watch import Confirm, Watch


def watch(guard: Guard, actions: Sequence[str], confirm: Confirm | None = None) -> Watch:
    """A watch over one batch, with the action of each row (watch.ACTIONS)."""
    vectors, personas = (
        torch.from_numpy(unpacked(text, len(guard.layers))) for text in (guard.vectors, guard.personas)
    )
    return Watch(guard.layers, vectors, guard.threshold, guard.window, actions, personas, guard.neutral, confirm)


def held(guard: Guard, edits: Edits, rows: torch.Tensor) -> Edits:
    """Edits under which, besides, some rows' projection on the persona is led to its mean in benign answers at each of
    the guard's blocks and at every token, the prompt's too. rows: [row] boolean."""
    out = dict(edits)
    personas = torch.from_numpy(unpacked(guard.personas, len(guard.layers))).float()
    for layer, persona, neutral in zip(guard.layers, personas, guard.neutral, strict=True):
        unit = persona.expand(len(rows), 1, -1)
        edit = Edit(
            op="clamp", scope="all", write=unit, measure=unit, strength=rows.float(),
            target=torch.full((len(rows), 1), neutral), of=torch.full((len(rows),), -1), gate=None,
        )  # fmt: skip
        out[layer] = [*out.get(layer, []), edit]
    return out


def second_judge(tokenizer: chat.Tokenizer, prompts: Sequence[str] | Mapping[int, str]) -> Confirm:
    """A flag counts unless the learned judge, shown the prompt and the answer so far, says that it refuses. It judges
    refusal and not harm, so that it drops no flag on a harmless request that is answered."""

    def confirm(row: int, tokens: list[int]) -> bool:
        answer = str(tokenizer.decode(tokens, skip_special_tokens=True))
        return labels_of([(prompts[row], answer)])[0] != REFUSAL

    return confirm
