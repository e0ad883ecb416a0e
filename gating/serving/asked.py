"""What a request may hold, and how it becomes a row of the batch. What is not supported is refused, never dropped."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jinja2.exceptions import TemplateError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gating import chat, foreign
from gating.errors import GatingError, choices
from gating.foreign import shown
from gating.serving.config import ACTIONS, LimitsConfig
from gating.serving.rows import Draw, Row
from gating.serving.steering import Steering


class Refused(Exception):
    """A request that is answered with an error, in OpenAI's form."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None, wait: int = 0):
        super().__init__(message)
        self.status, self.wait = status, wait  # wait: seconds after which the client may try again
        kinds = {401: "authentication_error", 408: "timeout", 429: "rate_limit_error"}
        kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.error = {"message": message, "type": kind, "param": param, "code": code}


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Message(Part):
    role: Literal["system", "user", "assistant"]
    content: str


class Options(Part):
    include_usage: bool = False


class Wanted(Part):
    """The field `gating` of a request."""

    steer: str | None = None  # a condition's name
    coef: float = 1.0  # a factor on its dose
    guard: str | None = None  # an action, no milder than the server's


class Asked(Part):
    """A chat completion."""

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: Options | None = None
    n: Literal[1] | None = None
    gating: Wanted = Wanted()


@dataclass(frozen=True)
class Terms:
    """What the server was started with, as far as a request is held against it."""

    name: str  # of the model
    steering: Steering
    act: str | None  # the guard's mildest action; None: there is no guard
    limits: LimitsConfig
    context: int | None  # tokens that the model takes
    default_tokens: int
    template: Mapping[str, Any]
    system: str | None = None  # message of the model's configuration, where a request brings none


def parse(body: bytes) -> Asked:
    """Raises Refused naming the field."""
    try:
        return Asked.model_validate(foreign.parse_json(body, "the request"))
    except GatingError as e:
        raise Refused(400, str(e)) from None
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False, include_context=False)[0]
        field = shown(".".join(str(part) for part in first["loc"]), 100)
        if first["type"] == "extra_forbidden":
            raise Refused(400, f"{field} is not supported; leave it out.", field, "unsupported") from None
        raise Refused(400, f"{field or 'the request'}: {first['msg']}.", field or None) from None


def row(asked: Asked, terms: Terms, tokenizer: chat.Tokenizer) -> Row:
    """Raises Refused for what the server was not started with."""
    if asked.model != terms.name:
        message = f"model {shown(asked.model, 80)!r} is not served here; use {terms.name!r}."
        raise Refused(404, message, "model", "model_not_found")
    condition, wanted = _condition(asked.gating, terms), asked.gating
    if abs(wanted.coef) > terms.limits.coef or wanted.coef != wanted.coef:
        end = f"{terms.limits.coef:g}"
        raise Refused(400, f"gating.coef={wanted.coef:g}: use a number from -{end} to {end}.", "gating.coef")
    prompt = _prompt(asked, terms, tokenizer, terms.steering.conditions[condition].system)
    draw = None
    if not asked.temperature and asked.top_p not in (None, 1):
        raise Refused(400, "top_p without a temperature: nothing is drawn; give one above 0.", "top_p")
    if asked.stream_options is not None and not asked.stream:
        raise Refused(400, "stream_options without stream=true; leave it out.", "stream_options")
    if asked.temperature:
        seed = asked.seed if asked.seed is not None else secrets.randbits(62)
        draw = Draw(asked.temperature, seed, 1.0 if asked.top_p is None else asked.top_p)
    most = _most(asked, terms, len(prompt))
    said = next((m.content for m in reversed(asked.messages) if m.role == "user"), "")
    return Row(prompt, most, condition, wanted.coef, _action(wanted, terms), draw, asked=said)


def _condition(wanted: Wanted, terms: Terms) -> int:
    if wanted.steer is None:
        if "coef" in wanted.model_fields_set:
            raise Refused(400, "gating.coef without gating.steer: there is nothing that it multiplies.", "gating.coef")
        return 0
    number = terms.steering.number(wanted.steer)
    if number is None:
        known = choices([c.name for c in terms.steering.conditions], wanted.steer)
        raise Refused(400, f"gating.steer={shown(wanted.steer, 80)!r}: this server has {known}.", "gating.steer")
    if "coef" in wanted.model_fields_set and not terms.steering.dosed(number):
        message = f"gating.coef: {wanted.steer} adds nothing that it could multiply; leave it out."
        raise Refused(400, message, "gating.coef")
    return number


def _action(wanted: Wanted, terms: Terms) -> str:
    if terms.act is None:
        if wanted.guard is not None:
            raise Refused(400, "gating.guard: this server was started without a guard.", "gating.guard")
        return "none"
    allowed = ACTIONS[ACTIONS.index(terms.act) :]
    action = wanted.guard or terms.act
    if action not in allowed:
        message = f"gating.guard={shown(action, 40)!r}: use {choices(allowed, action)}; no request weakens the guard."
        raise Refused(400, message, "gating.guard")
    return action


def _prompt(asked: Asked, terms: Terms, tokenizer: chat.Tokenizer, system: str | None) -> list[int]:
    turns = [{"role": m.role, "content": m.content} for m in asked.messages]
    if len(turns) > terms.limits.messages:
        message = f"messages: {len(turns)} are given, and at most {terms.limits.messages} are taken."
        raise Refused(400, message, "messages")
    if system is not None and turns[0]["role"] == "system":
        message = "messages: the condition that gating.steer names brings a system message of its own; leave yours out."
        raise Refused(400, message, "messages")
    own = system if system is not None else terms.system
    if own is not None and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": own})
    try:
        ids = chat.encode_turns(tokenizer, turns, terms.template)
    except TemplateError as e:
        raise Refused(400, f"messages: the model's chat template refuses them ({shown(e, 120)}).", "messages") from None
    if len(ids) > terms.limits.prompt_tokens or len(ids) >= (terms.context or len(ids) + 1):
        most = min(terms.limits.prompt_tokens, (terms.context or len(ids)) - 1)
        message = f"messages: they are {len(ids):,} tokens, and at most {most:,} are taken."
        raise Refused(400, message, "messages", "context_length_exceeded")
    return ids


def _most(asked: Asked, terms: Terms, prompt: int) -> int:
    """Tokens of the answer, at most."""
    room = terms.limits.new_tokens if terms.context is None else min(terms.limits.new_tokens, terms.context - prompt)
    given = asked.max_completion_tokens or asked.max_tokens
    if given is not None and given > terms.limits.new_tokens:
        name = "max_tokens" if asked.max_completion_tokens is None else "max_completion_tokens"
        raise Refused(400, f"{name}={given}: at most {terms.limits.new_tokens} are made here.", name)
    return min(given or terms.default_tokens, room)
