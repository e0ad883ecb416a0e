"""`python -m tests.load_serve`: what the endpoint costs and stands, against a server of its own on loopback.

Rates are ratios measured in one run, over alternating repeats; processor time is the server's. Then clients that
stream, leave midway, and send garbage, for a while: every answer must be the one that the same request has alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import psutil

from gating import chat, event_loop, models, prompts
from gating.guarding.file import Guard, packed
from gating.models import Loaded
from gating.serving.answers import Text
from gating.serving.batch import Batch
from gating.serving.rows import Row
from gating.serving.steering import lower
from gating.steering import decode
from gating.steering.backend import Backend
from gating.steering.interventions import Condition
from tests.bench import model_config

STREAMS = 16
URL = "/v1/chat/completions"


class Server:
    """A server in a process of its own."""

    def __init__(self, model: str, words: list[str]) -> None:
        command = [sys.executable, "-m", "gating.serve", f"model={model}", "port=0", *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            found = re.search(r"serving .*: (http://\S+)/v1", line)
            if found:
                break
        else:
            raise SystemExit("the server did not start")
        self.url, self.ps = found[1], psutil.Process(self.process.pid)

    def cpu(self) -> float:
        """Processor seconds so far."""
        used = self.ps.cpu_times()
        return used.user + used.system

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(60)


async def ask(client: httpx.AsyncClient, body: dict[str, Any], leave: int | None = None) -> str | None:
    """The text of a streamed answer; None where this client left after `leave` pieces."""
    text, pieces = [], 0
    async with client.stream("POST", URL, json={**body, "stream": True}) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            delta = json.loads(line[6:])["choices"][0]["delta"]
            text.append(delta.get("content", ""))
            pieces += 1
            if pieces == leave:
                return None
    return "".join(text)


def rates(args: argparse.Namespace, server: Server, backend: Backend, texts: list[str]) -> dict[str, list[float]]:
    """Wall and processor seconds of one round of the same requests: packed in one batch, streamed at once, and one
    streamed alone (per request)."""
    ids = [chat.encode(backend.loaded.tokenizer, text) for text in texts]
    bodies = [_body(args, text) for text in texts]
    out: dict[str, list[float]] = {"packed": [], "streams": [], "one": [], "cpu packed": [], "cpu streams": [],
                                   "cpu one": []}  # fmt: skip

    async def streams(which: list[dict[str, Any]]) -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:
            await asyncio.gather(*(ask(client, body) for body in which))

    sides: list[tuple[str, Callable[[], float], Callable[[], object]]] = [
        ("packed", time.process_time, lambda: backend.generate(ids, {}, args.tokens)),
        ("streams", server.cpu, lambda: asyncio.run(streams(bodies))),
        ("one", server.cpu, lambda: asyncio.run(streams(bodies[:1]))),
    ]
    for repeat in range(args.repeats + 1):
        for name, cpu, do in sides:
            wall, used = time.perf_counter(), cpu()
            do()
            if repeat:  # the first warms up
                out[name].append(time.perf_counter() - wall)
                out[f"cpu {name}"].append(cpu() - used)
    return out


def _body(args: argparse.Namespace, text: str, **more: Any) -> dict[str, Any]:
    return {"model": args.model, "messages": [{"role": "user", "content": text}], "max_tokens": args.tokens, **more}


def guard_overhead(loaded: Loaded, ids: list[list[int]], steps: int) -> float:
    """What a guard adds to a step's processor time, as a share: medians over alternating steps of two batches."""
    rng = np.random.default_rng(0)
    layers = list(range(loaded.n_layers))  # the most that a guard reads
    n = 8  # attacks with a score each
    drawn = rng.standard_normal((n * len(layers), loaded.hidden))
    drawn /= np.linalg.norm(drawn, axis=-1, keepdims=True)
    ones = [[[1.0] for _ in layers] for _ in range(n)]
    guard = Guard(
        {}, layers, 8, 1e9, 0.01, ["a"], [str(k) for k in range(n)], ones, [0.0] * n, packed(drawn), layers[-6],
        packed(drawn[:1]), 0.0, 1.0,
    )  # fmt: skip
    steering = lower([Condition("baseline")], None, 0)
    used: dict[bool, list[float]] = {True: [], False: []}
    with decode.unwrapped(loaded.model):
        batches = {on: Batch(loaded, steering, len(ids), guard if on else None) for on in used}
        for on, batch in batches.items():
            draws = [lambda logits: 100] * len(ids)  # no row ends
            batch.join(batch.read_in([Row(i, 10**6, action="note" if on else "none", draw=d)
                                      for i, d in zip(ids, draws, strict=True)]))  # fmt: skip
        for step in range(steps):
            for on in (True, False) if step % 2 else (False, True):
                start = time.process_time()
                batches[on].step()
                used[on].append(time.process_time() - start)
        for batch in batches.values():
            batch.close()
    return statistics.median(used[True]) / statistics.median(used[False]) - 1


def said(loaded: Loaded, tokens: list[int]) -> str:
    return Text(loaded.tokenizer).more(tokens, last=True)


async def storm(args: argparse.Namespace, server: Server, wanted: list[tuple[dict[str, Any], str]]) -> Counter[str]:
    """Clients for `args.seconds`: each stream must be as it is alone, some are left, some requests are no requests."""
    seen: Counter[str] = Counter()
    until = time.monotonic() + args.seconds

    async def client(number: int) -> None:
        draw = random.Random(number)
        async with httpx.AsyncClient(base_url=server.url, timeout=600) as http:
            while time.monotonic() < until:
                body, expected = draw.choice(wanted)
                kind = draw.choices(("stream", "plain", "left", "garbage", "oversized"), (5, 2, 3, 2, 1))[0]
                seen[await _one(http, kind, body, expected, draw)] += 1

    await asyncio.gather(*(client(i) for i in range(STREAMS)))
    return seen


async def _one(http: httpx.AsyncClient, kind: str, body: dict[str, Any], expected: str, draw: random.Random) -> str:
    if kind in ("stream", "plain"):
        if kind == "stream":
            text = await ask(http, body)
        else:
            text = (await http.post(URL, json=body)).json()["choices"][0]["message"]["content"]
        return f"{kind}, {'as alone' if text == expected else 'DIFFERS'}"
    if kind == "left":
        await ask(http, body, leave=draw.randint(1, 8))
        return "left midway"
    garbage = [b"\xff\xfe", b"[" * 100_000, b'{"model": 3}', json.dumps({**body, "n": 7}).encode(),
               draw.randbytes(2000), json.dumps({**body, "messages": []}).encode()]  # fmt: skip
    content = b"x" * 3_000_000 if kind == "oversized" else draw.choice(garbage)
    try:
        answer = await http.post(URL, content=content, headers={"Content-Type": "application/json"})
    except (httpx.WriteError, httpx.ReadError):  # it does not read on
        return f"{kind}, connection closed"
    return f"{kind}, {answer.status_code}"


def main() -> None:
    """Print the rates, then what the storm saw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=120)
    args = parser.parse_args()
    event_loop.ready()
    backend = Backend(models.load(model_config(args.model)), STREAMS)
    texts = [p.text for p in prompts.load("harmless", False, "select")][:STREAMS]
    ids = [chat.encode(backend.loaded.tokenizer, text) for text in texts]
    for rows in (1, STREAMS):
        share = [guard_overhead(backend.loaded, ids[:rows], args.steps) for _ in range(args.repeats)]
        print(f"a guard adds to a step of {rows} rows: {statistics.median(share):.1%} of its processor time "
              f"({min(share):.1%} to {max(share):.1%}, n = {len(share)})", flush=True)  # fmt: skip
    server = Server(args.model, [f"limits.rows={STREAMS}", "log=/dev/null"])
    try:
        measure(args, server, backend, texts)
    finally:
        server.close()


def measure(args: argparse.Namespace, server: Server, backend: Backend, texts: list[str]) -> None:
    found = rates(args, server, backend, texts)
    for a, b, factor in (("packed", "streams", 1), ("one", "streams", STREAMS)):
        for kind in ("", "cpu "):
            each = [factor * x / y for x, y in zip(found[kind + a], found[kind + b], strict=True)]
            print(f"{kind}tokens/s at {STREAMS} streams / {a}: {statistics.median(each):.2f} "
                  f"({min(each):.2f} to {max(each):.2f}, n = {len(each)})", flush=True)  # fmt: skip
    print({name: np.round(values, 2).tolist() for name, values in found.items()})
    ids = [chat.encode(backend.loaded.tokenizer, text) for text in texts]
    alone = [backend.generate([row], {}, args.tokens).tokens[0] for row in ids]
    wanted = [(_body(args, t), said(backend.loaded, tokens)) for t, tokens in zip(texts, alone, strict=True)]
    before = server.ps.memory_info().rss
    seen = asyncio.run(storm(args, server, wanted))
    after = server.ps.memory_info().rss
    print(f"{args.seconds:g} s of {STREAMS} clients: {dict(sorted(seen.items()))}")
    print(
        f"resident: {before / 1e6:.0f} MB before, {after / 1e6:.0f} after; {httpx.get(server.url + '/healthz').json()}"
    )


if __name__ == "__main__":
    main()
