"""Servers and judges that mean ill, on loopback: `python -m tests.malicious [PART OF A NAME...]`.

Each case runs a command in a process of its own, forked from a warm one, against a server that does one thing wrong.
It must end within the deadline and five seconds, under 1.5 GB, in one error without a traceback or a control
character, with exit code 2. The two honest controls must end with 0.
"""

import contextlib
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
from pathlib import Path

import torch

from tests.hostile import Act, bomb, says
from tests.hostile_servers import KEY, SIZES, Case, cases, ndif

DEADLINE, OVER, MOST = 3.0, 5.0, 1500  # seconds, seconds, megabytes


def answer(listener: socket.socket, acts: dict[str, Act], url: str, contact: Path | None = None) -> None:
    """Serve until killed: the act of the longest path that fits. contact: a file for the time of the first question."""

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
        s, _ = listener.accept()
        if contact and not contact.exists():
            contact.write_text(str(time.monotonic()))
        threading.Thread(target=one, args=(s,), daemon=True).start()


# --------------------------------------------------------------------------------------------------------- running
def prepare() -> None:
    """Import what the commands need, once."""
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
    assert (shape.n_layers, shape.hidden) == SIZES[:2]
    torch.set_num_threads(1)
    for encoding in ("gzip", "gzip, gzip", "deflate", "zstd"):
        bomb(encoding)


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
    words = [f"base_url={url}/v1", "id=m", "key_variable=MALICIOUS_JUDGE_KEY", f"deadline={DEADLINE}", "attempts=2"]
    run_folder = str(a_run(folder / "run", n=1))
    return lambda: rejudge.main([run_folder, "judge=endpoint", "wait=0.1", *words])


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
    seconds: float  # from the first question to a server to the end
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
        server = forked(lambda: answer(listener, {**honest, case.path: case.act}, url, folder / "contact"))
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
    now, contact = time.monotonic(), folder / "contact"
    seconds = now - (float(contact.read_text()) if contact.exists() else began)  # reading the command is not its part
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
