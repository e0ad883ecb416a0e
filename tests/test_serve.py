"""The endpoint: requests share one batch and get the tokens that each has alone; limits refuse, guards act by row."""

import asyncio
import json
import signal
import socket
import threading
import time
from types import SimpleNamespace

import httpx
import numpy as np
import openai
import pytest
import torch
import uvicorn

from gating import chat, models, serve
from gating.errors import GatingError
from gating.guarding import evaluate, rows
from gating.guarding.file import Guard, packed
from gating.serving import api, asked, config, start, steering
from gating.serving.answers import Text
from gating.serving.batch import Batch
from gating.serving.config import LimitsConfig, ServeConfig
from gating.serving.desk import Desk
from gating.serving.record import Decisions, Figures
from gating.serving.rows import Draw, Row
from gating.steering import decode, lowering
from gating.steering.backend import Backend
from gating.steering.interventions import Condition, Intervention
from gating.steering.readouts import Readouts
from tests.conftest import compose
from tests.test_backend import two_directions

NEW, WINDOW = 24, 3
TEXTS = ("Hi", "Tell me about boats.", "Why is the sky blue? " * 3, "One more.", "x" * 40, "How are you? " * 50)
CONDITIONS = [
    Condition("baseline"),
    Condition("added", "named", (Intervention("add", "a", (2,), 0.4, "residual"),)),
    Condition("ablated", "named", (Intervention("ablate", "b", (1, 2), 1.0),)),
    Condition("later", "named", (Intervention("add", "b", (1,), 0.4, "residual", scope="generated"),)),
    Condition("gated", "named", (Intervention("add", "a", (1,), 0.4, "residual", gate="a", threshold=0.5),)),
    Condition("spoken", "named", (), system="You are brief."),
]


def made(name):
    """A tiny model, two directions, and what the conditions are in a server."""
    m = models.load(compose(f"model={name}")[0].model)
    backend = Backend(m, 64)
    ids = [chat.encode(m.tokenizer, text) for text in TEXTS]
    directions = two_directions(m, backend.capture(ids, ["last"])[1])
    return SimpleNamespace(
        m=m, backend=backend, ids=ids, directions=directions, steering=steering.lower(CONDITIONS, directions, 0)
    )


@pytest.fixture(scope="module")
def tiny_llama():
    return made("tiny-llama")


def alone(t, ids, name, most, coef=1.0, watch=None):
    """The tokens that a run gives."""
    (condition,) = [c for c in CONDITIONS if c.name == name]
    edits = lowering.lower([condition], t.directions, 0, {name: coef})
    return t.backend.generate([ids], edits, most, watch=watch).tokens[0]


def served(batch, waiting, at_once=2):
    """Run a batch until every row has its end; rows join two at a time, while others are under way."""
    waiting = list(waiting)
    try:
        while waiting or batch.rows:
            room = min(at_once, batch.capacity - len(batch.rows))
            if waiting and room:
                batch.join(batch.read_in(waiting[:room]))
                del waiting[:room]
            if batch.rows:
                batch.step()
    finally:
        batch.close()


# ----------------------------------------------------------------------------------------------------------- the batch
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma"])
def test_rows_that_join_midway_under_different_conditions_get_the_tokens_that_each_has_alone(name):
    t = made(name)
    t.m.model.generation_config.eos_token_id = alone(t, t.ids[1], "added", 9)[8]  # some end early
    wanted = [Row(t.ids[i % 6], 4 + i, i % 5, 1.0 if i < 6 else 0.5) for i in range(12)]
    expected = [alone(t, r.prompt, CONDITIONS[r.condition].name, r.most, r.coef) for r in wanted]
    assert len({len(tokens) for tokens in expected}) > 4 and len(set(map(tuple, expected))) > 10
    with decode.unwrapped(t.m.model):
        served(Batch(t.m, t.steering, 5), wanted)
    assert [r.tokens for r in wanted] == expected
    assert {r.finish for r in wanted} == {"stop", "length"}
