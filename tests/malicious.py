"""Servers and judges that mean ill, on loopback: `python -m tests.malicious [PART OF A NAME...]`.

Each case runs a command in a process of its own, forked from a warm one, against a server that does one thing wrong.
It must end within the deadline and five seconds, under 1.5 GB, in one error without a traceback or a control
character, with exit code 2. The two honest controls must end with 0.
"""

import contextlib
import json
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from tests.hostile import ANY, ESCAPES, Act, elsewhere, says, whole

DEADLINE, OVER, MOST = 3.0, 5.0, 1500  # seconds, seconds, megabytes
KEY = "12345678-aaaa-4bbb-8ccc-123456789abc"
REPO, JOB = "gating/tiny-llama", "0123456789abcdef"
LAYERS, HIDDEN = 4, 64  # of the tiny model; `prepare` reads them


@dataclass
class Case:
    """One behaviour at one path of one server."""

    who: str  # ndif or judge
    path: str
    name: str
    act: Act
    code: int = 2


def answer(listener: socket.socket, acts: dict[str, Act], url: str) -> None:
    """Serve until killed: the act of the longest path that fits."""

    def one(s: socket.socket) -> None:
        with contextlib.suppress(OSError), s:
            got = b""
            while b"\r\n\r\n" not in got and (piece := s.recv(65536)):
                got += piece
            header, _, body = got.partition(b"\r\n\r\n")
            if not header:
                return
            length = re.search(rb"content-length: (\d+)", header.lower())
            while length and len(body) < int(length[1]) and (piece := s.recv(65536)):
                body += piece
            path = header.split()[1].decode()
            acts[max((p for p in acts if path.startswith(p)), key=len)](s, url)

    while True:
        threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()


# ------------------------------------------------------------------------------------------------ what servers say
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

    read = {"state": torch.ones(1, 1, LAYERS, HIDDEN), "norm": torch.ones(LAYERS, 1, 32), "dtype": "torch.float32"}
    return packed({"out": {**read, **({} if state is None else {"state": state})}, **more})


def results() -> dict[str, Act]:
    from tests.test_results import bombs

    good = torch.ones(1, 1, LAYERS, HIDDEN)
    wrong = {
        "a wrong shape": signature(good[..., :-1]), "a wrong precision": signature(good.double()),
        "a wrong batch": signature(good.repeat(3, 1, 1, 1)), "NaN in it": signature(good / 0 * 0),
        "one value as large as all": signature(torch.ones(1).expand(1, 1, LAYERS, 10**12)),
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
    at_status = {
        "20,000 models": says({"deployments": names}), "deployments in a list": says({"deployments": [1]}),
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


# --------------------------------------------------------------------------------------------------------- running
def prepare() -> None:
    """Import what the commands need, once, and read the tiny model's sizes."""
    global LAYERS, HIDDEN
    from gating import models, rejudge, run  # noqa: F401 - warm for the processes forked from this one
    from gating.pipeline import dryrun, execute, study  # noqa: F401
    from gating.remote import connection  # noqa: F401
    from gating.reporting import page, tables  # noqa: F401
    from tests.conftest import compose

    os.environ["NDIF_API_KEY"] = KEY
    for name in [n for n in os.environ if n.lower().endswith("_proxy")]:
        del os.environ[name]
    from nnsight.schema.config import CONFIG

    CONFIG.API.APIKEY = KEY
    shape = models.without_weights(compose("model=tiny-llama")[0].model, "", "float32")
    LAYERS, HIDDEN = shape.n_layers, shape.hidden
    torch.set_num_threads(1)


def command(case: Case, url: str, folder: Path) -> Callable[[], object]:
    """What a user runs."""
    if case.who == "ndif":
        from gating import run

        asked = {"deadline": DEADLINE, "outage": 2, "unknown": 1, "stalled": 1.5, "attempts": 2, "in_flight": 2}
        small = ["model=tiny-llama", "data.n=1", "controls.random=0", "max_new_tokens=2", f"runs_dir={folder}"]
        sys.argv = ["gating.run", f"backend={url}", *small, *(f"backend.{k}={v}" for k, v in asked.items())]
        return run.main
    from gating import rejudge
    from tests.judged_runs import a_run

    os.environ["MALICIOUS_JUDGE_KEY"] = KEY
    asked = {"base_url": f"{url}/v1", "id": "m", "key_variable": "MALICIOUS_JUDGE_KEY", "deadline": DEADLINE}
    words = [f"{k}={v}" for k, v in {**asked, "attempts": 2, "wait": 0.1}.items()]
    run_folder = str(a_run(folder / "run", n=1))
    return lambda: rejudge.main([run_folder, "judge=endpoint", *words])


def forked(do: Callable[[], object]) -> int:
    """The id of a process that does this and nothing else."""
    pid = os.fork()
    if pid == 0:
        os._exit(_done(do))
    return pid


def _done(do: Callable[[], object]) -> int:
    import traceback

    code = 0
    try:
        do()
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


@dataclass
class Outcome:
    """How a case ended. faults: what is wrong with that, in words."""

    case: Case
    code: int
    seconds: float
    megabytes: float
    said: str
    kept: str  # all that the folder holds, pressed arrays too
    notes: str  # its texts

    def faults(self) -> Iterator[str]:
        if "Traceback" in self.said:
            yield "traceback"
        if self.code != self.case.code:
            yield f"exit code {self.code}"
        if self.seconds > DEADLINE + OVER:
            yield "hang"
        if self.megabytes > MOST:
            yield "memory"
        if self.case.code and (len(re.findall("^error: ", self.said, re.MULTILINE)) != 1 or len(self.said) > 3000):
            yield "not one paragraph"
        if any(not c.isprintable() for c in self.said.replace("\n", "")):
            yield "control characters"
        if KEY in self.said + self.kept or "secret" in self.said:
            yield "the key is shown"
        if re.search("[\x1b\x07\u202e\u2066]", self.notes):
            yield "control characters are kept"


def attempt(case: Case, folder: Path) -> Outcome:
    """Run one case. The server is a process of its own too, ended by its id."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        honest = ndif(url) if case.who == "ndif" else {"/": says("?", 404)}
        server = forked(lambda: answer(listener, {**honest, case.path: case.act}, url))
    screen = folder / "screen"

    def client() -> None:
        with screen.open("w") as f:
            os.dup2(f.fileno(), 1)
            os.dup2(f.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        command(case, url, folder)()

    began, pid = time.monotonic(), forked(client)
    ended, status, usage = 0, 0, None
    while not ended and time.monotonic() - began < 90:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        time.sleep(0.02)
    seconds = time.monotonic() - began
    if not ended:
        os.kill(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
    os.kill(server, signal.SIGKILL)
    os.waitpid(server, 0)
    files = [
        p for p in folder.rglob("*") if p.is_file() and p.suffix in ("", ".json", ".log", ".jsonl") and p != screen
    ]
    kept = "".join(p.read_bytes().decode("latin-1" if p.suffix == "" else "utf-8", "replace") for p in files)
    texts = [p for end in ("*.log", "*.json", "*.jsonl", "*.html") for p in folder.rglob(end)]
    notes = "".join(p.read_text("utf-8", "replace") for p in texts)
    code = os.waitstatus_to_exitcode(status)
    said = screen.read_text(errors="replace") if screen.exists() else ""
    return Outcome(case, code, seconds, usage.ru_maxrss / 1024 if usage else 0.0, said, kept, notes)


def main() -> None:
    prepare()
    wanted = [c for c in cases() if not sys.argv[1:] or any(w in f"{c.who} {c.path} {c.name}" for w in sys.argv[1:])]
    outcomes, show = [], bool(sys.argv[1:])
    sys.argv[1:] = []
    for case in wanted:
        with tempfile.TemporaryDirectory() as folder:
            one = attempt(case, Path(folder))
        outcomes.append(one)
        wrong, last = ", ".join(one.faults()), one.said.strip().splitlines()[-1:] or [""]
        what = f"{case.who:5} {case.path:9} {case.name[:44]!r:46}"
        print(f"{what} {one.code:3} {one.seconds:5.1f} s {one.megabytes:5.0f} MB {wrong}", flush=True)
        if wrong or show:
            print("     ", ascii("\n".join(one.said.splitlines()[-12:]) if wrong else last[0])[:1500], flush=True)
    counts: dict[str, int] = {}
    for fault in (f for one in outcomes for f in one.faults()):
        counts[fault] = counts.get(fault, 0) + 1
    slowest, largest = max(o.seconds for o in outcomes), max(o.megabytes for o in outcomes)
    codes = {c: sum(o.code == c for o in outcomes) for c in sorted({o.code for o in outcomes})}
    print(f"{len(outcomes)} cases; exit codes {codes}; slowest {slowest:.1f} s; most {largest:.0f} MB; wrong: {counts}")
    sys.exit(1 if counts else 0)


if __name__ == "__main__":
    main()
