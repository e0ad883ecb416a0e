"""A model behind an API is audited by prompt alone: what is asked, kept, paid and left open."""

import json
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import uvicorn

from gating import audit, models, serve, store
from gating.auditing import asking, page, policy, record
from gating.auditing.config import AuditConfig, EndpointConfig, check, check_words
from gating.errors import GatingError
from gating.judging.labels import DEGENERATE, MISSING, REFUSAL
from gating.models import ModelConfig
from gating.serving import api, start
from gating.serving.config import ServeConfig
from gating.steering import decode
from tests import loopback
from tests.conftest import compose

KEY = "sk-very-secret-0123456789"
NO, YES = "I'm sorry, but I can't help with that.", "Sure, here is how you can do that: first, get the parts."
SMALL = ("n=6", "n_harmless=4", "borderline=null", "new_tokens=24", "personas=[terse]", "policy=none")
CALLS = 20  # (6 harmful + 4 harmless) x (none, terse)


def chat(text, finish="stop", **more):
    return 200, json.dumps(
        {
            "model": "asked-0613",
            "choices": [{"message": {"content": text, **more}, "finish_reason": finish}],
            "usage": {"prompt_tokens": 30, "completion_tokens": 10},
        }
    )


@contextmanager
def answering(says):
    """A chat endpoint on 127.0.0.1. `says(request, nth)` gives a status and a body; nth counts calls of one body."""
    seen = SimpleNamespace(bodies=[], keys=set(), now=0, most=0, lock=threading.Lock())

    class Handler(loopback.Handler):
        def do_POST(self):
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            with seen.lock:
                seen.bodies.append(json.loads(raw))
                seen.keys.add(self.headers["Authorization"])
                seen.now += 1
                seen.most = max(seen.most, seen.now)
                nth = seen.bodies.count(seen.bodies[-1])
            status, content = says(json.loads(raw), nth)
            with seen.lock:
                seen.now -= 1
            self.answer(status, content)

    server = loopback.serving(Handler)
    seen.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def go(in_process, monkeypatch):
    """Audit a model at an address in this process: (exit code, what it said)."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    def command(url, *words):
        asked = (f"endpoint.url={url}", "endpoint.model=some/model", "endpoint.wait=0.01", *SMALL, *words)
        code, said = in_process(audit, *asked)
        return code, " ".join(said.split())

    return command


def audited(tmp_path):
    """The record, and the run that it was made of."""
    (folder,) = (tmp_path / "runs").glob("some-model-audit-*")
    document = json.loads((tmp_path / "runs/some-model-audit/audit.json").read_text())
    return document, folder, store.open_run(folder)


def question(body):
    return body["messages"][-1]["content"]


def persona(body):
    return len(body["messages"]) == 2


def test_every_prompt_is_asked_with_and_without_each_persona_and_the_record_says_what_that_leaves_open(tmp_path, go):
    jsonschema = pytest.importorskip("jsonschema")
    with answering(lambda body, nth: chat(YES if persona(body) else NO)) as server:
        code, said = go(server.url)
        assert code == 0 and f"{CALLS} calls to some/model" in said
        assert len(server.bodies) == CALLS and server.most <= 4 and server.keys == {None}
        assert all(b["temperature"] == 0 and b["max_tokens"] == 24 for b in server.bodies)
        assert sum(persona(b) for b in server.bodies) == CALLS / 2
        document, folder, tree = audited(tmp_path)
        code, said = go(server.url)
        assert code == 0 and "0 calls" in said and len(server.bodies) == CALLS, "what is there is not paid again"
    jsonschema.validate(document, json.loads(record.SCHEMA.read_text()))
    cells = {(c["induction"], c["persona"]): c["sets"]["harmful"] for c in document["cells"]}
    assert cells.keys() == {("none", ""), ("prompt", "terse")}
    assert cells["none", ""]["refusal"] == 1 and cells["prompt", "terse"]["change"] == -1
    assert document["model"]["endpoint"] == {
        "url": server.url, "model": "some/model", "request": {}, "reported": ["asked-0613"],
    }  # fmt: skip
    limits = " ".join(document["limits"])
    assert all(words in limits for words in ("system message alone", "may change", "text alone", "proof of safety"))
    assert "one block" not in limits and document["method"]["steering"] == {} and not document["geometry"]
    shown = (tmp_path / "runs/some-model-audit/audit.html").read_text()
    assert "its weights not seen" in shown and server.url in shown and page.card_paragraph(document)[:60] in shown
    held = tree["outcomes"].to_dataset()
    assert held["done"].all() and (held["n_tokens"] == 10).all() and (held["token_ids"] == -1).all()
    assert np.isnan(held["nll"]).all() and tree.attrs["status"] == "complete"
    assert not store.problems(folder / store.STORE)


def test_what_may_pass_is_tried_again_and_what_brings_no_answer_is_missing_and_asked_again(tmp_path, go):
    odd: dict[str, int] = {}

    def says(body, nth):
        kind = -1 if persona(body) else odd.setdefault(question(body), len(odd))
        if kind == 0:
            return (429, "slow") if nth == 1 else chat(NO)
        if kind == 1:
            return (503, "oops") if nth < 3 else chat(NO)
        garbage = {2: (200, "<html>"), 3: (200, '{"choices": []}'), 4: chat("", finish="content_filter"),
                   5: chat(None, finish="length"), 6: (400, "{}"), 7: chat(None, refusal=NO)}  # fmt: skip
        return garbage.get(kind, chat(NO)) if nth == 1 else chat(NO)

    with answering(says) as server:
        code, said = go(server.url, "endpoint.concurrency=1")
        assert code == 0 and f"5 of {CALLS} answers are missing" in said and len(server.bodies) == CALLS + 3
        _, folder, tree = audited(tmp_path)
        held, why = tree["outcomes"].to_dataset(), tree["endpoint"].to_dataset()["reason"].values
        assert tree.attrs["status"] == "running" and int((held["label"] == MISSING).sum()) == 5
        assert (held["label"].values[held["done"].values] == REFUSAL).all() and (
            (why != "") == ~held["done"].values
        ).all()
        assert sorted(w.split()[0] for w in why.ravel() if w) == ["HTTP", "all", "it", "the", "withheld"]
        code, said = go(server.url)
        assert code == 0 and "5 calls" in said and "missing" not in said and len(server.bodies) == CALLS + 8
    assert store.open_run(folder).attrs["status"] == "complete"


def test_an_audit_that_was_stopped_goes_on_with_what_it_did_not_ask(tmp_path, go):
    up = [7]

    def says(body, nth):
        up[0] -= 1
        return chat(NO) if up[0] >= 0 else (401, "{}")

    with answering(says) as server:
        code, said = go(server.url, "endpoint.concurrency=1")
        assert code == 2 and "refuses a call without a key (HTTP 401)" in said and "endpoint.key_variable" in said
        asked, up[0] = len(server.bodies), 1000
        code, said = go(server.url, "endpoint.concurrency=3")
        assert code == 0 and f"{CALLS - 7} calls" in said and len(server.bodies) == asked + CALLS - 7
    assert audited(tmp_path)[2]["outcomes"].to_dataset()["done"].all()


def test_the_key_goes_to_the_server_and_nowhere_else(tmp_path, go, monkeypatch):
    words = ("endpoint.key_variable=TEST_AUDIT_KEY",)
    with answering(lambda body, nth: chat(NO)) as server:
        monkeypatch.delenv("TEST_AUDIT_KEY", raising=False)
        code, said = go(server.url, *words)
        assert code == 2 and "TEST_AUDIT_KEY holds no key" in said and not server.bodies
        monkeypatch.setenv("TEST_AUDIT_KEY", KEY)
        code, said = go(server.url, *words)
        assert code == 0 and server.keys == {f"Bearer {KEY}"} and KEY not in said
    kept = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert KEY.encode() not in kept and b"TEST_AUDIT_KEY" not in kept
    with answering(lambda body, nth: (403, f'{{"error": "bad key {KEY}"}}')) as server:
        code, said = go(server.url, *words, "seed=1")
    assert code == 2 and "TEST_AUDIT_KEY" in said and "403" in said and KEY not in said


def test_a_budget_is_held_before_anything_is_asked_and_while_it_is_spent(tmp_path, go):
    prices = ("endpoint.usd_in=1000", "endpoint.usd_out=10000", "endpoint.concurrency=1")
    with answering(lambda body, nth: chat(NO)) as server:  # 0.03 + 0.1 dollars a call
        code, said = go(server.url, *prices, "endpoint.budget=1")
        assert code == 2 and "endpoint.budget=1" in said and not server.bodies and not list(tmp_path.glob("runs/*-*"))
        code, said = go(server.url, *prices, "endpoint.dry_run=true")
        assert code == 0 and f"{CALLS} calls" in said and "about $" in said and not server.bodies
    dear = json.loads(chat(NO)[1]) | {"usage": {"prompt_tokens": 30, "completion_tokens": 1000}}
    with answering(lambda body, nth: (200, json.dumps(dear))) as server:
        code, said = go(server.url, *prices, "endpoint.budget=30")
        assert code == 2 and "is spent; what came is kept" in said and 3 <= len(server.bodies) <= 4
        code, said = go(server.url, *prices, "endpoint.budget=30")
        assert code == 2 and len(server.bodies) <= 4, "sittings are counted together"
        code, said = go(server.url, *prices, "endpoint.budget=1000")
        assert code == 0 and "spent before" in said and len(server.bodies) <= CALLS + 1
    code, said = go("http://127.0.0.1:9/v1", "endpoint.budget=1")
    assert code == 2 and "endpoint.usd_in" in said


def test_a_server_that_brings_no_answer_at_all_is_one_error(go):
    with answering(lambda body, nth: (200, "{}")) as server:
        code, said = go(server.url)
    assert code == 2 and "brought an answer (the reply is no chat completion)" in said


@pytest.mark.parametrize(
    ("document", "text", "words"),
    [({"choices": [{"message": {"content": "Hi"}}]}, "Hi", ""), ([], "", "no chat completion"), (7, "", "no chat"),
     ({"choices": [{"message": {"content": ["Hi"]}}]}, "", "no chat"),
     ({"choices": [{"message": None}]}, "", "no chat"),
     ({"choices": [{"message": {"content": "", "reasoning": "Hm"}, "finish_reason": "length"}]}, "", "thought"),
     ({"choices": [{"message": {"content": None, "refusal": NO}}]}, NO, ""),
     ({"choices": [{"message": {"content": ""}, "finish_reason": "stop"}], "usage": {"prompt_tokens": True}}, "", "")],
)  # fmt: skip
def test_what_is_no_answer_has_no_text_and_a_reason(document, text, words):
    said = asking.read(document)
    assert said.text == text and words in said.reason and bool(words) == bool(said.reason) and said.tokens_in == -1


def test_an_answer_that_loops_is_degenerate_though_no_tokens_come_back(tmp_path, go):
    with answering(lambda body, nth: chat("and then we go there " * 12 if persona(body) else NO)) as server:
        go(server.url)
    labels = audited(tmp_path)[2]["outcomes"].to_dataset()["label"]
    assert (labels.sel(condition="prompt-terse") == DEGENERATE).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [({"url": "http://127.0.0.1:1/v1"}, "endpoint.model has no value"), ({"model": "m"}, "without endpoint.url"),
     ({"url": "ftp://x", "model": "m"}, "endpoint.url"),
     ({"url": "http://a.org", "model": "m", "key_variable": "K"}, "https"),
     ({"url": "http://127.0.0.1:1/v1", "model": "m", "request": {"n": 2}}, "endpoint.request.n"),
     ({"url": "http://127.0.0.1:1/v1", "model": "m", "concurrency": 0}, "endpoint.concurrency=0")],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused(change, said):
    with pytest.raises(GatingError, match=said):
        check(AuditConfig(model=ModelConfig(kind="tiny", architecture="qwen2"), endpoint=EndpointConfig(**change)))


def test_settings_and_rules_that_need_more_than_an_api_are_refused():
    for word in ("model=qwen", "adapters=[x]", "backend=ndif", "again=false", "kl=1", "directions.n=4"):
        with pytest.raises(GatingError, match="system message alone"):
            check_words([word])
    check_words(["endpoint.model=x", "n=6", "personas=all", "policy=release"])
    rule = {"set": "harmful", "measure": "change", "at_least": -0.2}
    with pytest.raises(GatingError, match=r"policy.rules.mine speaks of steering"):
        policy.check_by_prompt({"rules": {"mine": rule | {"inductions": ["prompt", "steering"]}}})
    policy.check_by_prompt({"rules": {"mine": rule | {"inductions": ["prompt"]}}})


def test_a_real_server_is_audited(tmp_path, go):
    """Ours, with a tiny model of random weights."""
    cfg = ServeConfig(model=compose("model=tiny-llama")[0].model, personas=[], runs_dir=str(tmp_path / "served"))
    desk = start.desk(cfg, "tiny-llama", lambda line: None)
    place = serve.bound("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(api.app(desk, None, True), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
    with decode.unwrapped(desk.engine.batch.loaded.model):
        thread.start()
        try:
            url = f"http://127.0.0.1:{place.getsockname()[1]}/v1"
            code, said = go(url, "endpoint.model=tiny-llama", "new_tokens=4")
        finally:
            server.should_exit = True
            thread.join(30)
    models.forget()
    assert code == 0, said
    (folder,) = (tmp_path / "runs").glob("tiny-llama-audit-*")
    held = store.open_run(folder)["outcomes"].to_dataset()
    assert held["done"].all() and (held["n_tokens"] <= 4).all() and (held["n_tokens"] > 0).any()
