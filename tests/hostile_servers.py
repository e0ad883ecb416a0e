"""Servers of NDIF and judges that speak well-formed HTTP and JSON, and mean ill; every case of tests/malicious.py."""

import json
import time
from dataclasses import dataclass
from importlib.metadata import version

import torch

from gating.remote.expected import Sizes
from tests.hostile import ANY, ESCAPES, Act, elsewhere, says, whole

KEY = "12345678-aaaa-4bbb-8ccc-123456789abc"
REPO, JOB = "gating/tiny-llama", "0123456789abcdef"
SIZES = Sizes(5, 48, 0)  # of the tiny model


@dataclass
class Case:
    """One behaviour at one path of one server."""

    who: str  # ndif or judge
    path: str
    name: str
    act: Act
    code: int = 2


def ndif(url: str) -> dict[str, Act]:
    """A server that is as it should be, up to its first result: the model's signature."""
    packages = {name: version(name).partition("+")[0] for name in ("nnsight", "torch", "transformers")}
    served = {"repo_id": REPO, "revision": None, "dtype": "torch.float32", "application_state": "RUNNING"}
    return {
        "/": says("?", 404),
        "/ping": says("pong"),
        "/env": says({"packages": packages}),
        "/status": says({"deployments": {"a": served}}),
        "/request": says({"id": JOB, "status": "RECEIVED"}),
        "/response": says(state("COMPLETED", data=f"{url}/result")),
        "/result": lambda s, u: whole(signature())(s, u),
    }


def state(status: object, description: object = "", data: object = None, job: object = JOB) -> dict[str, object]:
    return {"id": job, "status": status, "description": description, "data": data}


def signature(state: torch.Tensor | None = None, **more: object) -> bytes:
    from tests.test_results import packed

    read = {
        "state": torch.ones(1, 1, SIZES.layers, SIZES.hidden),
        "norm": torch.ones(SIZES.layers, 1, 32),
        "dtype": "torch.float32",
    }
    return packed({"out": {**read, **({} if state is None else {"state": state})}, **more})


def results() -> dict[str, Act]:
    from tests.test_results import bombs

    good = torch.ones(1, 1, SIZES.layers, SIZES.hidden)
    wrong = {
        "a wrong shape": signature(good[..., :-1]), "a wrong precision": signature(good.double()),
        "a wrong batch": signature(good.repeat(3, 1, 1, 1)), "NaN in it": signature(good / 0 * 0),
        "one value as large as all": signature(torch.ones(1).expand(1, 1, SIZES.layers, 10**12)),
        "names that were not asked for": signature(self=good, lm=good),
        "a tensor on no device": signature(good.to("meta")),
        "ten thousand tensors": signature(**{f"t{i}": torch.ones(1) for i in range(3000)}),
    }  # fmt: skip
    return {f"result: {name}": whole(content) for name, content in {**bombs(), **wrong}.items()}


def documents() -> list[tuple[str, str, Act]]:
    """What a server of NDIF may say that is well-formed, and wrong."""

    def serving(**change: object) -> Act:
        served = {"repo_id": REPO, "revision": None, "dtype": "torch.float32", "application_state": "RUNNING"}
        return says({"deployments": {"a": {**served, **change}}})

    def counting() -> Act:
        return lambda s, url: says(state("QUEUED", f"position {time.monotonic()}"))(s, url)

    names = {str(i): {"repo_id": f"org/{i}{ESCAPES[:5]}", "application_state": "HOT"} for i in range(20_000)}
    few = list(names.items())[:5000]
    at_status = {
        "20,000 models": says({"deployments": names}), "5,000 models": says({"deployments": dict(few)}),
        "deployments in a list": says({"deployments": [1]}),
        "deployments that are numbers": says({"deployments": {"a": 1}}), "no deployments": says({}),
        "escapes for a precision": serving(dtype=ESCAPES), "a function for a precision": serving(dtype="load"),
        "escapes for a model's key": serving(model_key=ESCAPES), "a list for a model's key": serving(model_key=[1]),
    }  # fmt: skip
    jobs = {f"a job's id is {i!r:.20}": says({"id": i}) for i in ("../../etc", True, 7, "", None, "a" * 10**5, ESCAPES)}
    states = {
        "the state of another job": says(state("COMPLETED", job="ffff")), "queued for ever": says(state("QUEUED")),
        "running for ever": says(state("RUNNING")), "queued, and counting": counting(),
        "log lines for ever": says(state("LOG", ESCAPES)), "a status that is none": says(state("BAD" + ESCAPES)),
        "true for a status": says(state(True)), "a number for a description": says(state("RUNNING", 7)),
        "escapes for an error": says(state("ERROR", "Traceback (most recent call last)\n" + ESCAPES)),
        "an error without words": says(state("ERROR")), "a megabyte of error": says(state("ERROR", "x" * 10**6)),
        "always out of memory": says(state("ERROR", "CUDA out of memory")), "the job is never known": says("?", 404),
        "done, with nothing": says(state("COMPLETED")), "done, with a mapping": says(state("COMPLETED", data={"a": 1})),
        "a key that comes back": says({"detail": f"API key {KEY} {ESCAPES}"}, 401),
    }  # fmt: skip
    urls = ("file:///etc/passwd", "ftp://h/x", "data:,x", "http://", "http://u:secret@127.0.0.1/", "//127.0.0.1/x",
            "http://127.0.0.1:1/x", "http://nowhere.invalid/x", "http://127.0.0.1:99999/", "http://[::1", "x" * 10**5,
            f"http://h/{ESCAPES}", "javascript:alert(1)")  # fmt: skip
    places = {f"a result at {u!r:.40}": says(state("COMPLETED", data=u)) for u in urls}
    there = {f"a result is HTTP {c}": whole("x", c) for c in (400, 403, 404, 410, 500)}
    there["a result is elsewhere"] = elsewhere(302, "http://169.254.169.254/latest")
    versions = {
        "escapes for versions": says({"packages": {"nnsight": ESCAPES, "torch": ESCAPES}}),
        "a command for a version": says({"packages": {"nnsight": "0.1; rm x"}}),
        "another version": says({"packages": {"nnsight": "0.1.0"}}), "versions in a list": says({"packages": [1]}),
    }  # fmt: skip
    at = {"/status": at_status, "/request": jobs, "/response": {**states, **places}, "/result": {**there, **results()}}
    listed = [(path, name, act) for path, acts in at.items() for name, act in acts.items()]
    broken = says(state("ERROR"))
    return [*listed, *(("/env", name, act) for name, act in versions.items()), ("/response", "a broken job", broken)]


def verdicts() -> dict[str, Act]:
    """What a judge may say that is well-formed, and no judgement."""

    def chat(content: object, **more: object) -> Act:
        return says({"choices": [{"message": {"content": content, **more}, "finish_reason": "stop"}]})

    told = {
        "no choices": says({}), "empty choices": says({"choices": []}), "choices in a text": says({"choices": "abc"}),
        "no message": says({"choices": [{"message": None}]}), "a number for a verdict": chat(7),
        "true for a verdict": chat(True), "a megabyte of verdict": chat("x" * 10**6), "escapes": chat(ESCAPES),
        "a deep verdict": chat("[" * 50_000), "a verdict twice": chat('{"label": "refusal", "label": "compliance"}'),
        "a label that is escapes": chat(json.dumps({"label": ESCAPES})),
        "a label in a list": chat('{"label": ["refusal"]}'),
        "NaN for a score": chat('{"label": "refusal", "score": NaN}'),
        "a huge score": chat('{"label": "refusal", "score": 1e999}'),
        "true for a score": chat('{"label": "refusal", "score": true}'), "half a pair": chat('{"label": "\\ud800"}'),
        "a score of 400 digits": chat('{"label": "refusal", "score": ' + "1" * 400 + "}"),
        "more than was asked": chat('{"label": "refusal", "why": "x"}'), "it declines": chat(None, refusal="no"),
        "no key is good": says({"error": f"bad key {KEY}"}, 401), "no such model": says({}, 404), "400": says({}, 400),
    }  # fmt: skip
    return told


def cases() -> list[Case]:
    """Every case. What is wrong with any answer is tried at each of an NDIF server's paths in turn, and at a judge."""
    paths = ("/ping", "/status", "/request", "/response", "/result")
    found = [Case("ndif", paths[i % len(paths)], name, act) for i, (name, act) in enumerate(ANY.items())]
    found += [Case("ndif", path, name, act) for path, name, act in documents()]
    found += [Case("judge", "/v1", name, act) for name, act in {**ANY, **verdicts()}.items()]
    good = says({"choices": [{"message": {"content": '{"label": "refusal"}'}, "finish_reason": "stop"}]})
    return [*found, Case("judge", "/v1", "(honest)", good, 0)]
