"""Whether every text fits into the model's context with its answer: what does not is refused before the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gating.errors import GatingError
from gating.foreign import shown
from gating.pipeline.config import RunConfig
from gating.prompts import Prompt
from gating.steering.direction_specs import Chat, DirectionSpec


def check(
    run: RunConfig,
    test: Sequence[Prompt],
    specs: Sequence[DirectionSpec],
    tokens: Mapping[Chat, Sequence[int]],
    context: int | None,
) -> None:
    """tokens: of every text that the run is known to read; context: the model's limit, None where it has none.

    Raises GatingError naming the prompt, its tokens, the limit and the remedy.
    """
    if context is None:
        return
    asked = {p.text: p for p in test}
    chats = dict(_of_directions(run, specs))
    for chat, ids in tokens.items():
        if chat in chats:
            where, new, setting = *chats[chat], "directions.response_tokens"
        elif chat.user in asked:
            new, setting = run.max_new_tokens or run.model.max_new_tokens, "max_new_tokens"
            where = f"data: the prompt in {asked[chat.user].place} ({shown(chat.user, 40)!r})"
        else:
            continue
        if len(ids) + new > context:
            raise GatingError(
                f"{where} has {len(ids):,} tokens with its system message and template, and {setting}={new} more may "
                f"follow: {len(ids) + new:,}, while {run.model.id or run.model.name} holds {context:,}. Shorten it or "
                f"leave it out, lower {setting}, or choose a model with a longer context."
            )


def _of_directions(run: RunConfig, specs: Sequence[DirectionSpec]) -> Iterator[tuple[Chat, tuple[str, int]]]:
    """Each direction's chats: for a message, and how many tokens their answers may have."""
    for spec in specs:
        new = run.directions.response_tokens if spec.needs_answers(run.directions.filter) else 0
        for chat in (*spec.positive, *spec.negative):
            yield chat, (f"direction {spec.name}: the text {shown(chat.user, 40)!r}", new)
