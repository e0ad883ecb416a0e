"""The endpoint: requests share one batch and get the tokens that each has alone; limits refuse, guards act by row."""

import json
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import openai
import pytest
import torch
import uvicorn
from transformers import MambaConfig, MambaForCausalLM

from gating import chat, models, serve
from gating.errors import GatingError
from gating.guarding import file, monitor
from gating.guarding import rows as answers
from gating.guarding.file import Guard, packed
from gating.judging.labels import COMPLIANCE, REFUSAL
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


def guarding(t):
    """A guard that flags most answers, some sooner than others."""
    unit = np.ascontiguousarray(t.directions["vector"].transpose("layer", "direction", "hidden").values)
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    if not hasattr(t, "cut"):
        read = t.backend.generate(t.ids, {}, NEW, Readouts(unit, (), None, ("step_projection",)))
        windows = answers.windowed(read.read["step_projection"][:, 1:, 1:3, 0].sum(-1), WINDOW)
        t.cut = float(np.nanmin(np.nanmax(windows, axis=1))) - 1e-3
    vectors, persona = packed(unit[1:3, 0]), packed(unit[2:3, 1])
    model, weights = {"model_fingerprint": t.m.fingerprint}, [[[1.0], [1.0]]]
    return Guard(model, [1, 2], WINDOW, t.cut, 0.01, ["a"], ["attack"], weights, [0.0], vectors, 2, persona, 0.25, 0.5)


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


def test_rows_are_guarded_one_by_one_as_each_would_be_alone(tiny_llama):
    t = tiny_llama
    guard = guarding(t)
    actions = ("stop", "note", "restore", "none", "stop", "restore")
    wanted = [Row(ids, NEW, action=a) for ids, a in zip(t.ids, actions, strict=True)]
    served(Batch(t.m, t.steering, 4, guard), wanted, at_once=1)
    for row, action in zip(wanted, actions, strict=True):
        watch = monitor.watch(guard, [action])
        assert row.tokens == alone(t, row.prompt, "baseline", NEW, watch=watch)
        assert row.flagged == int(watch.flagged[0]) and (row.finish == "content_filter") == (action == "stop")
    assert len({row.flagged for row in wanted}) > 2


def test_a_second_judge_that_reads_a_refusal_takes_the_flag_back_of_its_row_alone(tiny_llama, monkeypatch):
    t, seen = tiny_llama, []

    def labels(pairs):
        seen.extend(pairs)
        return [REFUSAL if prompt == "refuses" else COMPLIANCE for prompt, _ in pairs]

    monkeypatch.setattr(monitor, "labels_of", labels)
    wanted = [Row(ids, NEW, action="stop", asked=("refuses", "complies")[i % 2]) for i, ids in enumerate(t.ids)]
    served(Batch(t.m, t.steering, 4, guarding(t), cascade=True), wanted)
    for i, row in enumerate(wanted):
        assert (row.flagged > 0) == (row.finish == "content_filter") == bool(i % 2)
    answers_read = {t.m.tokenizer.decode(row.tokens, skip_special_tokens=True) for row in wanted[1::2]}
    assert answers_read <= {answer for prompt, answer in seen if prompt == "complies"}


def test_the_second_judge_is_shown_the_rows_own_request_and_answer_so_far(tiny_llama):
    """The learned judge itself, on tokens of an answer that refuses and of one that does not."""
    t, said = tiny_llama, ("I'm sorry, but I can't help with that.", "Sure! First, take two cups of flour and mix.")
    batch = Batch(t.m, t.steering, 2, guarding(t), cascade=True)
    ids = [t.m.tokenizer(text, add_special_tokens=False)["input_ids"] for text in said]
    batch.rows = [Row([1], 9, tokens=own, slot=i, asked="How do I bake bread?") for i, own in enumerate(ids)]
    assert [batch._counts(i, []) for i in (0, 1)] == [False, True]
    batch.close()


def test_a_row_that_takes_anothers_place_inherits_nothing(tiny_llama):
    t = tiny_llama
    batch = Batch(t.m, t.steering, 1, guarding(t))
    first, second = Row(t.ids[0], NEW, 1, action="restore"), Row(t.ids[0], NEW)
    served(batch, [first, second], at_once=1)
    assert first.flagged and not second.flagged
    assert second.tokens == alone(t, second.prompt, "baseline", NEW) != first.tokens


def test_draws_are_a_rows_own_whatever_is_beside_it(tiny_llama):
    t = tiny_llama

    def drawn(seed, others):
        own = Row(t.ids[1], 12, draw=Draw(1.5, seed, 0.9))
        served(Batch(t.m, t.steering, 4), [*(Row(t.ids[2], 5, draw=Draw(1.0, i)) for i in range(others)), own])
        return own.tokens

    assert drawn(1, 0) == drawn(1, 3) != drawn(2, 3)
    few = Draw(1.0, 0, top_p=0.5)
    assert {few(torch.tensor([2.0, 1.9, 0.0])) for _ in range(50)} == {0, 1}


def test_a_number_that_is_none_ends_its_row_and_no_other(tiny_llama):
    t = tiny_llama
    (added,) = [edit for edit in t.steering.one[2] if edit["op"] == "add"]
    lost = replace(t.steering, one={2: [{**added, "write": added["write"] * 1e30}]}, dose={2: [added["strength"] != 0]})
    wanted = [Row(t.ids[0], 6, 1, 1e20), Row(t.ids[1], 6)]
    served(Batch(t.m, lost, 2), wanted)
    assert wanted[0].finish == "lost" and wanted[1].tokens == alone(t, t.ids[1], "baseline", 6)


def test_a_condition_that_needs_other_rows_is_refused(tiny_llama):
    own = Condition("own", "named", (Intervention("ablate", "a", (1,), 1.0, reference="own"),))
    with pytest.raises(GatingError, match=r"conditions\.own: .*depends on other rows"):
        steering.lower([*CONDITIONS, own], tiny_llama.directions, 0)


def test_a_family_that_keeps_more_than_keys_and_values_is_refused(tiny_llama):
    small = MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4)
    with torch.random.fork_rng(devices=[]):
        mamba = MambaForCausalLM(small).eval()
    with pytest.raises(GatingError, match=r"model\.id: the family mamba .*cannot be served"):
        start.check_family(replace(tiny_llama.m, model=mamba), tiny_llama.steering)
    start.check_family(tiny_llama.m, tiny_llama.steering)


def test_text_comes_in_whole_characters_and_adds_up_to_the_whole(tiny_llama):
    tokenizer = tiny_llama.m.tokenizer
    said = "Grüße, 世界 🙂!"
    tokens = tokenizer(said, add_special_tokens=False)["input_ids"]
    text = Text(tokenizer)
    pieces = [text.more([token], last=i == len(tokens) - 1) for i, token in enumerate(tokens)]
    assert "".join(pieces) == said and "�" not in "".join(pieces) and "" in pieces
    assert Text(tokenizer).more(tokens[:-2], last=True) == "Grüße, 世界 �"


# ------------------------------------------------------------------------------------------------------------ over HTTP
class Serving:
    """A server on loopback, in a thread of this process."""

    def __init__(self, t, limits, log: Path | None = None, key=None):
        self.log, figures = log, Figures()
        guard = guarding(t)
        terms = asked.Terms("tiny", t.steering, "note", limits, 4096, NEW, {})
        batch = Batch(t.m, t.steering, limits.rows, guard)
        self.desk = Desk(batch, terms, t.m.tokenizer, Decisions(None if log is None else str(log), figures), figures)
        place = serve.bound("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{place.getsockname()[1]}"
        app = api.app(self.desk, key, True)
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=20))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [place]})
        self.thread.start()
        self.http = httpx.Client(base_url=self.url, timeout=60)
        wait(lambda: self.server.started)

    def client(self, key="none"):
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def figure(self, name):
        lines = self.http.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    def close(self):
        self.server.should_exit = True
        self.thread.join(30)
        self.http.close()
        assert not self.thread.is_alive() and not self.desk.engine.alive


def wait(until, seconds=20):
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def serving(tiny_llama, tmp_path_factory):
    log = tmp_path_factory.mktemp("serve") / "said.jsonl"
    limits = LimitsConfig(rows=4, waiting=1, body=20_000, messages=3, prompt_tokens=1500, new_tokens=2000, seconds=60)
    server = Serving(tiny_llama, limits, log)
    yield server
    server.close()


def messages(text, system=None):
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": text}]


def coef(name):
    return {"coef": 0.5} if name in ("added", "later", "gated") else {}


def test_requests_at_once_by_stream_and_whole_get_what_each_has_alone(tiny_llama, serving):
    t = tiny_llama
    client = serving.client()

    def asking(i):
        name, text = CONDITIONS[i % 6].name, TEXTS[i % 5]
        own = {"model": "tiny", "messages": messages(text), "max_tokens": 10 + i}
        own |= {} if name == "baseline" else {"extra_body": {"gating": {"steer": name, **coef(name)}}}
        if i % 2:
            return client.chat.completions.create(**own).choices[0].message.content
        said = list(client.chat.completions.create(**own, stream=True, stream_options={"include_usage": True}))
        assert said[-1].usage.completion_tokens == 10 + i and said[-2].gating["steer"] == name
        return "".join(c.choices[0].delta.content or "" for c in said if c.choices)

    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(asking, range(12)))
    for i, answer in enumerate(answers):
        condition = CONDITIONS[i % 6]
        ids = chat.encode(t.m.tokenizer, TEXTS[i % 5], condition.system)
        tokens = alone(t, ids, condition.name, 10 + i, *coef(condition.name).values())
        assert answer == Text(t.m.tokenizer).more(tokens, last=True), i
    assert serving.figure("gating_rows") == 0 and len(set(answers)) == 12


def test_a_guard_acts_on_its_request_alone_and_is_written_down_without_what_was_said(serving):
    client = serving.client()
    ask = partial(client.chat.completions.create, model="tiny", messages=messages(TEXTS[1], "Be brief."))
    noted, stopped = ask(), ask(extra_body={"gating": {"guard": "stop"}})
    k = noted.gating["flagged"]
    assert k and stopped.gating == {**noted.gating, "guard": "stop"}
    assert noted.usage.completion_tokens == NEW and noted.choices[0].finish_reason == "length"
    assert stopped.usage.completion_tokens == k and stopped.choices[0].finish_reason == "content_filter"
    lines = [json.loads(line) for line in serving.log.read_text().splitlines()]
    assert [(line["id"], line["flagged"], line["end"], line["guard"]) for line in lines[-2:]] == [
        (noted.id, k, "length", "note"), (stopped.id, k, "content_filter", "stop")]  # fmt: skip
    held = {"time", "id", "model", "steer", "coef", "guard", "flagged", "end", "sampled", "seconds"}
    assert all(set(line) == held | set(noted.usage.to_dict()) for line in lines)


def test_the_same_seed_draws_the_same_answer(serving):
    def drawn(seed):
        asked = serving.client().chat.completions.create(
            model="tiny", messages=messages("Hi"), temperature=1.5, top_p=0.9, seed=seed, max_tokens=8
        )
        return asked.choices[0].message.content

    assert drawn(1) == drawn(1) != drawn(2)


GOOD = {"model": "tiny", "messages": messages("Hi"), "max_tokens": 1}
BAD = [
    (b"\xff\xfe{", 400, "not valid JSON"),
    (b"[" * 9000, 400, "levels"),
    (b'{"model": NaN}', 400, "NaN"),
    (b"[]", 400, "the request"),
    (b"x" * 30_000, 413, "more than 20,000 bytes"),
    ({}, 400, "model"),
    ({"model": "other"}, 404, "is not served here"),
    ({"messages": []}, 400, "messages"),
    ({"messages": messages("Hi", "Be brief.") * 2}, 400, "4 are given, and at most 3"),
    ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages.0.role"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, 400, "messages.0.content"),
    ({"messages": messages("x" * 1500)}, 400, "at most 1,500 are taken"),
    ({"tools": []}, 400, "tools is not supported"),
    ({"n": 2}, 400, "n: "),
    ({"max_tokens": 0}, 400, "max_tokens"),
    ({"max_tokens": 2001}, 400, "at most 2000"),
    ({"max_tokens": "7"}, 400, "max_tokens"),
    ({"temperature": 3}, 400, "temperature"),
    ({"gating": {"steer": "evil"}}, 400, "this server has baseline, added"),
    ({"gating": {"steer": "added", "coef": 3}}, 400, "a number from -2 to 2"),
    ({"gating": {"coef": 1.5}}, 400, "without gating.steer"),
    ({"gating": {"steer": "ablated", "coef": 0.5}}, 400, "adds nothing that it could multiply"),
    ({"top_p": 0.9}, 400, "top_p without a temperature"),
    ({"stream_options": {}}, 400, "without stream=true"),
    ({"gating": {"guard": "none"}}, 400, "no request weakens the guard"),
    ({"gating": {"steer": "spoken"}, "messages": messages("Hi", "Be long.")}, 400, "leave yours out"),
]


@pytest.mark.parametrize(("change", "status", "says"), BAD, ids=lambda x: str(x)[:30])
def test_what_is_no_request_is_refused_in_openais_form(serving, change, status, says):
    body = change if isinstance(change, bytes) else json.dumps({**GOOD, **change} if change else {}).encode()
    answer = serving.http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == status and says in error["message"], error
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"


def test_other_paths_types_hosts_and_clients_errors(serving):
    assert serving.http.get("/v1/nothing").json()["error"]["message"].startswith("Not Found")
    assert serving.http.get("/v1/chat/completions").status_code == 405
    assert serving.http.post("/v1/chat/completions", content=json.dumps(GOOD)).status_code == 415
    elsewhere = serving.http.get("/v1/models", headers={"Host": "evil.example"})
    assert elsewhere.status_code == 403 and "127.0.0.1" in elsewhere.json()["error"]["message"]
    with pytest.raises(openai.BadRequestError, match="tools is not supported"):
        serving.client().chat.completions.create(**GOOD, tools=[{"type": "function", "function": {"name": "f"}}])
    assert [m.id for m in serving.client().models.list()] == ["tiny"]
    assert serving.http.get("/healthz").json() == {"status": "ok"}


def test_a_full_queue_says_when_to_come_again_and_clients_that_leave_make_room(serving, monkeypatch):
    monkeypatch.setattr(serving.desk.engine.batch, "end", frozenset())  # no answer ends by itself
    ended = serving.figure("gating_requests_total")
    long = {"model": "tiny", "messages": messages("Hi"), "max_tokens": 2000}
    left = [serving.client() for _ in range(5)]
    streams = [c.chat.completions.create(**long, stream=True) for c in left]
    for stream in streams[:4]:
        next(iter(stream))
    wait(lambda: serving.figure("gating_waiting") == 1 and serving.figure("gating_rows") == 4)
    with pytest.raises(openai.RateLimitError, match="queue is full") as refused:
        serving.client().chat.completions.create(**long)
    assert refused.value.response.headers["retry-after"] == "1"
    for stream in streams:
        stream.close()
    wait(lambda: serving.figure("gating_rows") == 0 and serving.figure("gating_waiting") == 0)
    with pytest.raises(httpx.TimeoutException):
        serving.http.post("/v1/chat/completions", json={**GOOD, "max_tokens": 2000}, timeout=0.3)
    wait(lambda: serving.figure("gating_rows") == 0 and serving.figure("gating_waiting") == 0)
    wait(lambda: serving.figure("gating_requests_total") == ended + 7)  # five streams, one whole, one refused
    ends = [json.loads(line)["end"] for line in serving.log.read_text().splitlines()[-6:]]
    assert ends == ["cancelled"] * 6


def test_a_key_is_asked_for_and_what_is_under_way_ends_before_the_server_does(tiny_llama):
    server = Serving(tiny_llama, LimitsConfig(rows=2), key="secret")
    try:
        assert server.http.get("/healthz").status_code == 200 and server.http.get("/metrics").status_code == 401
        for key in ("none", "secret2"):
            with pytest.raises(openai.AuthenticationError, match="key is missing or wrong"):
                server.client(key).chat.completions.create(**GOOD)
        client = server.client("secret")
        pieces = iter(client.chat.completions.create(**{**GOOD, "max_tokens": 60}, stream=True))
        next(pieces)
        server.server.should_exit = True
        *_, last = pieces
        assert last.choices[0].finish_reason == "length"
        with pytest.raises(openai.APIConnectionError):
            server.client("secret").chat.completions.create(**GOOD)
    finally:
        server.close()


def test_too_long_a_request_and_a_failing_model_end_with_an_error_and_the_next_is_answered(tiny_llama, monkeypatch):
    server = Serving(tiny_llama, LimitsConfig(rows=2, seconds=0.3, new_tokens=1000))
    try:
        late = server.client().chat.completions.create(**{**GOOD, "max_tokens": 1000}, stream=True)
        with pytest.raises(openai.APIError, match=r"limits\.seconds"):
            list(late)
        with monkeypatch.context() as patch:
            patch.setattr(server.desk.engine.batch, "_logits", lambda *a: 1 / 0)
            with pytest.raises(openai.InternalServerError, match="the model failed"):
                server.client().chat.completions.create(**GOOD)
        assert server.client().chat.completions.create(**GOOD).usage.completion_tokens == 1
    finally:
        server.close()


# ---------------------------------------------------------------------------------------------------------- the command
def test_a_server_is_made_of_personas_and_a_guard_of_this_very_model(tiny_llama, tmp_path):
    t = tiny_llama
    cfg = ServeConfig(model=compose("model=tiny-llama")[0].model, personas=["evil"], runs_dir=str(tmp_path))
    cfg.directions = replace(cfg.directions, n=2, questions=1)
    cfg.conditions = {"mine": [{"direction": "compliant", "op": "ablate", "layers": "2-3"}]}
    cfg.guard = str(tmp_path / "guard.json")
    file.save(guarding(t), Path(cfg.guard))
    told = []
    desk = start.desk(cfg, "tiny-llama", told.append)
    desk.engine.batch.close()
    assert [c.name for c in desk.terms.steering.conditions] == ["baseline", "evil", "mine"] and "evil" in told[0]
    assert desk.terms.act == "note" and desk.terms.context == 4096
    one = asked.row(asked.parse(json.dumps({**GOOD, "model": "tiny-llama", "gating": {"steer": "evil"}}).encode()),
                    desk.terms, t.m.tokenizer)  # fmt: skip
    assert one.condition == 1 and one.action == "note"
    file.save(replace(guarding(t), model={"model_fingerprint": "other"}), Path(cfg.guard))
    with pytest.raises(GatingError, match="calibrate one on a run of this model"):
        start.desk(cfg, "tiny-llama", told.append)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"act": "stop"}, "there is no guard that could"),
        ({"cascade": True}, "no guard whose flags"),
        ({"act": "kill"}, "use note, restore or stop"),
        ({"host": "0.0.0.0"}, "no key is asked for"),
        ({"host": "not a host"}, "host=http://not a host"),
        ({"limits": LimitsConfig(rows=0)}, "limits.rows=0 is out of range"),
        ({"personas": ["nobody"]}, "no shipped persona"),
    ],
)
def test_what_cannot_be_served_is_refused_before_a_model_loads(change, says):
    with pytest.raises(GatingError) as refused:
        config.check(ServeConfig(model=compose("model=tiny-llama")[0].model, **change))
    assert says in str(refused.value)


def test_a_key_that_is_not_there_a_log_that_cannot_be_and_a_taken_port_are_refused(in_process, monkeypatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(GatingError, match="holds no key"):
        config.key(ServeConfig(key_variable="NO_KEY"))
    with pytest.raises(GatingError, match="log=no/such/folder/x cannot be written"):
        Decisions("no/such/folder/x", Figures())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = in_process(serve, "model=tiny-llama", f"port={port}")
    assert code == 2 and f"port={port}" in said and "give another address or port" in " ".join(said.split())


def test_the_command_serves_until_it_is_told_to_end(in_process, tmp_path, monkeypatch):
    told: list[int] = []
    earlier = signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))  # uvicorn gives it on at its end
    place = serve.bound("127.0.0.1", 0)
    port = place.getsockname()[1]
    place.close()
    url = f"http://127.0.0.1:{port}"

    def up():
        try:
            return httpx.get(f"{url}/healthz").status_code == 200
        except httpx.ConnectError:
            return False

    def ask():
        wait(up)
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        pieces = iter(client.chat.completions.create(**{**GOOD, "model": "tiny-llama", "max_tokens": 60}, stream=True))
        next(pieces)
        os.kill(os.getpid(), signal.SIGTERM)
        return list(pieces)[-1].choices[0].finish_reason

    try:
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask)
            code, said = in_process(serve, "model=tiny-llama", f"port={port}", "log=said.jsonl")
    finally:
        signal.signal(signal.SIGTERM, earlier)
    assert asked.result() == "length" and told == [signal.SIGTERM]
    assert code == 0 and said.strip() == f"serving tiny-llama: {url}/v1"
    (line,) = (tmp_path / "said.jsonl").read_text().splitlines()
    assert json.loads(line)["end"] == "length"
