"""Answers in OpenAI's form: text out of tokens as they come, whole completions, chunks of a stream."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from gating import chat
from gating.serving.rows import Row

BROKEN = "\ufffd"  # what a tokenizer gives for bytes that are no character yet
DONE = b"data: [DONE]\n\n"


class Text:
    """The text of an answer, given out as far as its characters are whole."""

    def __init__(self, tokenizer: chat.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._from = self._to = 0  # tokens whose text was given out last, which the next are read behind

    def more(self, tokens: Sequence[int], last: bool = False) -> str:
        """What these tokens add. last: no further ones come, so that nothing is held back."""
        self._tokens += tokens
        before = self._decoded(self._tokens[self._from : self._to])
        whole = self._decoded(self._tokens[self._from :])
        if whole.endswith(BROKEN) and not last:
            return ""
        self._from, self._to = self._to, len(self._tokens)
        return whole[len(before) :]

    def _decoded(self, tokens: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)


class Answer:
    """One chat completion: its id, and the model's and the condition's names."""

    def __init__(self, number: str, model: str, condition: str, row: Row) -> None:
        self.id, self.model, self.condition, self.row = number, model, condition, row
        self._same = {"id": number, "created": int(time.time()), "model": model}

    @property
    def usage(self) -> dict[str, int]:
        prompt, made = len(self.row.prompt), len(self.row.tokens)
        return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}

    @property
    def gating(self) -> dict[str, Any]:
        """How the answer was steered and guarded. flagged: tokens read when the guard flagged it, null where it did
        not."""
        row = self.row
        return {"steer": self.condition, "coef": row.coef, "guard": row.action, "flagged": row.flagged or None}

    def whole(self, text: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.row.finish}
        form = {"object": "chat.completion", "choices": [choice], "usage": self.usage}
        return {**self._same, **form, "gating": self.gating}

    def chunk(self, delta: dict[str, str], finish: str | None = None) -> bytes:
        """A piece of a stream. The last one says why the answer ended, and what the guard did."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        more = {"gating": self.gating} if finish else {}
        return event({**self._same, "object": "chat.completion.chunk", "choices": [choice], **more})

    def counted(self) -> bytes:
        """The piece with the usage, which has no choice."""
        return event({**self._same, "object": "chat.completion.chunk", "choices": [], "usage": self.usage})


def event(content: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"
