"""Between the event loop, where requests come in, and the engine's thread: jobs go there, what they get comes back."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from gating import chat, event_loop
from gating.serving import engine as engines
from gating.serving.answers import DONE, Answer, Text, event
from gating.serving.asked import Asked, Refused, Terms, row
from gating.serving.batch import Batch
from gating.serving.engine import Engine, Job, Said
from gating.serving.record import Decisions, Figures
from gating.serving.rows import LOST

RETRY = 1  # seconds after which a client may come again
ENDS = {  # that leave no whole answer: status and message
    engines.LATE: (504, "the answer took longer than the server allows (limits.seconds); ask for fewer tokens."),
    engines.FAILED: (500, "the model failed on this request or on one beside it; the server's log says how."),
    engines.CLOSED: (503, "the server is ending; ask again later."),
    LOST: (500, "the model gives no finite number for the next token; a smaller gating.coef may help."),
}


@dataclass(eq=False)
class Held:
    """A request under way."""

    job: Job
    answer: Answer
    text: Text
    start: float
    inbox: asyncio.Queue[Said] = field(default_factory=asyncio.Queue)
    end: str = ""
    began: bool = False
    over: bool = False


class Desk:
    """Takes requests, hands out what they get, and writes down how they ended. Of one event loop."""

    def __init__(
        self, batch: Batch, terms: Terms, tokenizer: chat.Tokenizer, decisions: Decisions, figures: Figures
    ) -> None:
        self.terms, self.tokenizer, self.decisions, self.figures = terms, tokenizer, decisions, figures
        limits = terms.limits
        self.engine = Engine(batch, limits.waiting, limits.prompt_tokens, self._told, figures.turn)
        self._held: dict[int, Held] = {}  # by the id of the job
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> None:
        event_loop.ready()
        self._loop = asyncio.get_running_loop()
        self.engine.start()

    def close(self) -> None:
        self.engine.close()
        self.engine.batch.close()
        self.decisions.close()

    def take(self, asked: Asked) -> Held:
        """Raises Refused for a request that is not served, and where the queue is full."""
        wanted = row(asked, self.terms, self.tokenizer)
        start = time.monotonic()
        job = Job(wanted, start + self.terms.limits.seconds)
        name = self.terms.steering.conditions[wanted.condition].name
        answer = Answer(f"chatcmpl-{uuid.uuid4().hex}", self.terms.name, name, wanted)
        held = Held(job, answer, Text(self.tokenizer), start)
        self._held[id(job)] = held
        try:
            self.engine.submit(job)
        except engines.Full:
            del self._held[id(job)]
            raise Refused(429, "the server is busy: its queue is full; ask again later.", wait=RETRY) from None
        except engines.Closing:
            del self._held[id(job)]
            raise Refused(503, ENDS[engines.CLOSED][1], wait=RETRY) from None
        return held

    def done(self, held: Held) -> None:
        """Nobody waits for this request any more."""
        if held.over:
            return
        held.over = True
        del self._held[id(held.job)]
        if not held.end:
            self.engine.give_up(held.job)
        self.decisions.ended(held.answer, held.end or engines.GIVEN_UP, time.monotonic() - held.start)

    def _told(self, said: list[Said]) -> None:
        """Of the engine's thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._spread, said)

    def _spread(self, said: list[Said]) -> None:
        for one in said:
            held = self._held.get(id(one.job))
            if held is not None and held.job is one.job:
                held.inbox.put_nowait(one)

    async def pieces(self, held: Held) -> AsyncIterator[str]:
        """The answer's text as it comes. Raises Refused where it ends without having come to its end."""
        while not held.end:
            said = await held.inbox.get()
            if said.tokens and not held.began:
                held.began = True
                self.figures.first.observe(time.monotonic() - held.start)
            held.end = said.end
            piece = held.text.more(said.tokens, last=bool(said.end))
            if piece:
                yield piece
        if held.end in ENDS:
            status, message = ENDS[held.end]
            raise Refused(status, message)

    async def whole(self, held: Held) -> dict[str, object]:
        """The completion. Raises Refused."""
        text = "".join([piece async for piece in self.pieces(held)])
        return held.answer.whole(text)

    async def stream(self, held: Held, usage: bool) -> AsyncIterator[bytes]:
        """The completion as server-sent events; an error is one too, and the last."""
        yield held.answer.chunk({"role": "assistant", "content": ""})
        try:
            async for piece in self.pieces(held):
                yield held.answer.chunk({"content": piece})
        except Refused as e:
            yield event({"error": e.error})
            return
        yield held.answer.chunk({}, held.end)
        if usage:
            yield held.answer.counted()
        yield DONE
