"""From a guard's file to a watch over a batch, and the second judge that a flag can ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from gating import chat
from gating.errors import GatingError
from gating.guarding.file import Guard, check_model, unpacked, vectors
from gating.judging.labels import REFUSAL
from gating.judging.learned import labels_of
from gating.models import Loaded
from gating.steering.lowering import Edit, Edits
from gating.steering.watch import Confirm, Watch


def watch(guard: Guard, actions: Sequence[str], confirm: Confirm | None = None) -> Watch:
    """A watch over one batch, with the action of each row (watch.ACTIONS)."""
    persona = unpacked(guard.persona, 1)[0]
    return Watch(
        guard.layers, torch.from_numpy(vectors(guard)), torch.tensor(guard.centres), guard.threshold, guard.window,
        actions, guard.acts, torch.from_numpy(persona), guard.neutral, confirm,
    )  # fmt: skip


def check(guard: Guard, loaded: Loaded) -> None:
    """Raises GatingError for a guard of another model, and for one that reads what this model does not have."""
    check_model(guard, loaded.fingerprint, loaded.name)
    if not 0 <= guard.layers[0] <= guard.layers[-1] < loaded.n_layers or vectors(guard).shape[2] != loaded.hidden:
        raise GatingError(
            f"guard: it reads blocks {guard.layers[0]} to {guard.layers[-1]} of width {vectors(guard).shape[2]}, and "
            f"{loaded.name} has {loaded.n_layers} of width {loaded.hidden}; calibrate again with python -m "
            "gating.guard RUN."
        )


def held(guard: Guard, edits: Edits, rows: torch.Tensor, op: str = "clamp") -> Edits:
    """Edits under which, besides, some rows' projection on the persona is led to its mean in benign answers at every
    token, the prompt's too; with op `cap` to the 75th percentile of benign answers, where it is above. rows: [row]
    boolean."""
    target = {"clamp": guard.neutral, "cap": guard.upper}[op]
    persona = torch.from_numpy(unpacked(guard.persona, 1)).float().expand(len(rows), 1, -1)
    edit = Edit(
        op=op, scope="all", write=persona, measure=persona, strength=rows.float(),
        target=torch.full((len(rows), 1), target), of=torch.full((len(rows),), -1), gate=None,
    )  # fmt: skip
    return {**edits, guard.acts: [*edits.get(guard.acts, []), edit]}


def second_judge(tokenizer: chat.Tokenizer, prompts: Sequence[str] | Mapping[int, str]) -> Confirm:
    """A flag counts unless the learned judge, shown the prompt and the answer so far, says that it refuses. It judges
    refusal and not harm, so that it drops no flag on a harmless request that is answered."""

    def confirm(row: int, tokens: list[int]) -> bool:
        answer = str(tokenizer.decode(tokens, skip_special_tokens=True))
        return labels_of([(prompts[row], answer)])[0] != REFUSAL

    return confirm
