"""A thought is not the answer: where a model that thinks aloud first ends its thought, by the marks of its template.

Thoughts are counted and kept beside the answer. What is judged, scored and read at response positions is what follows
them; where a thought never ends there is no answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What opens a thought, and what stands right before the answer. A family that answers in channels has its answer in the
# last of them (GPT-OSS).
MARKS = (
    ("<think>", "</think>"),
    ("<thought>", "</thought>"),
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel|>", "<|channel|>final<|message|>"),
)
TAIL = 32  # tokens of a prompt that hold a mark at its end


class Marks(NamedTuple):
    """The text that opens a thought, and the text that closes it."""

    opens: str
    closes: str


def marks(tokenizer: PreTrainedTokenizerBase) -> Marks | None:
    """The marks that stand in the chat template or among the tokens; None for a model that does not think aloud."""
    template, vocabulary = str(tokenizer.chat_template), tokenizer.get_vocab()
    known = (Marks(*pair) for pair in MARKS if any(mark in template or mark in vocabulary for mark in pair))
    return next(known, None)


def length(tokenizer: PreTrainedTokenizerBase, used: Marks | None, prompt: Sequence[int], tokens: Sequence[int]) -> int:
    """How many of an answer's first tokens are its thought: with its marks and the space behind them, all of them where
    it never ends, 0 where there is none. A template may open the thought itself, at the end of the prompt."""
    if used is None:
        return 0
    text = _text(tokenizer, tokens)
    if used.closes in text:
        low, high = 1, len(tokens)  # the shortest beginning that holds the closing mark
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if used.closes in _text(tokenizer, tokens[:middle]) else (middle + 1, high)
        while low < len(tokens) and not _text(tokenizer, tokens[low : low + 1]).strip():
            low += 1
        return low
    by_template = _text(tokenizer, prompt[-TAIL:]).rstrip().endswith(used.opens)
    return len(tokens) if by_template or text.lstrip().startswith(used.opens) else 0


def warnings(n_thought: Sequence[int], n_answer: Sequence[int]) -> list[str]:
    """What a reader has to know of a run whose model thought: lengths in tokens, one entry an answer."""
    thought = sorted(n for n in n_thought if n > 0)
    if not thought:
        return []
    lost = sum(t > 0 and a == 0 for t, a in zip(n_thought, n_answer, strict=True))
    said = [
        f"the model thought before {len(thought)} of {len(n_thought)} answers (median {thought[len(thought) // 2]} "
        "tokens), and only what follows a thought is judged; the first-token score, kl and lens are of the thought's "
        "first token"
    ]
    if lost:
        said.append(
            f"{lost} of {len(n_thought)} answers are all thought, which fills max_new_tokens: they are labelled "
            "degenerate. Raise max_new_tokens, or say model.template.enable_thinking=false where the template knows it"
        )
    return said


def _text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=False))
