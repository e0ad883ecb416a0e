"""Runs whose answers are known, to be judged; and a chat endpoint on loopback to judge them."""

import hashlib
import json
import threading

from gating import store
from gating.judging import kinds
from tests import loopback, synthetic

KEY = "sk-very-secret-0123456789"  # in the variable TEST_JUDGE_KEY


def a_run(folder, n=6, conditions=("baseline", "add"), done=None, block=2):
    """A store with known prompts and answers: prompt i is `ask i`, its answer under condition c `c answers i`."""
    tree = synthetic.tree({c: [i % 4 for i in range(n)] for c in conditions}, harmful=[i % 3 != 2 for i in range(n)],
                          texts=[f"ask {i}" for i in range(n)])  # fmt: skip
    attrs = {**tree.attrs, "key": folder.name, "prompt_batch": block}
    attrs["status"] = "complete" if done is None else "running"
    prompts, about = tree["/prompts"].to_dataset(), tree["/conditions"].to_dataset()
    folder.mkdir(parents=True, exist_ok=True)
    store.create(folder / store.STORE, prompts, about, 2, block, {str(k): v for k, v in attrs.items()})
    out = tree["/outcomes"].to_dataset()
    out["completion"].values[:] = [[f"{c} answers {i}" for i in range(n)] for c in conditions]
    out["nll"].values[:] = 1.0
    for start in range(0, n if done is None else done, block):
        store.write_batch(folder / store.STORE, start, {"outcomes": out.isel(prompt=slice(start, start + block))})
    return folder


def bytes_of(folder, group):
    files = sorted(p for p in (folder / store.STORE / group).rglob("*") if p.is_file())
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def judged(folder, name):
    return store.open_run(folder)[f"/judgements/{name}"].to_dataset().load()


class Server:
    """A chat endpoint on 127.0.0.1. `says(prompt, response, nth call about it)` gives a status and a body, or None to
    hang."""

    def __init__(self, says):
        self.says, self.calls, self.bodies, self.headers, self.most = says, {}, [], [], 0
        self.lock, self.stop, now = threading.Lock(), threading.Event(), [0]
        outer = self

        class Handler(loopback.Handler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt, response = read_back(body)
                with outer.lock:
                    now[0] += 1
                    outer.most = max(outer.most, now[0])
                    outer.bodies.append(body)
                    outer.headers.append(dict(self.headers))
                    nth = outer.calls[response] = outer.calls.get(response, 0) + 1
                answer = (404, "") if self.path != "/v1/chat/completions" else outer.says(prompt, response, nth)
                if answer is None:
                    outer.stop.wait(20)
                with outer.lock:
                    now[0] -= 1
                if answer is not None:
                    self.answer(*answer)

        self.server = loopback.serving(Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def close(self):
        self.stop.set()
        self.server.shutdown()
        self.server.server_close()


def read_back(body):
    """The prompt and the answer out of a request, as JSON strings on lines of their own."""
    lines = body["messages"][-1]["content"].splitlines()
    return [json.loads(next(x for x in lines if x.startswith(k)).removeprefix(k)) for k in ("Request: ", "Answer: ")]


def verdict(content, finish="stop", **more):
    return 200, json.dumps({"choices": [{"message": {"content": content, **more}, "finish_reason": finish}]})


def good(label="refusal", score=0.25):
    return verdict(json.dumps({"label": label, "score": score}))


def asking(server, **changes):
    given = {
        "base_url": server.url,
        "id": "judge-model",
        "key_variable": "TEST_JUDGE_KEY",
        "deadline": 5,
        "wait": 0.01,
        **changes,
    }
    return kinds.load("endpoint", [f"{k}={v}" for k, v in given.items()])
