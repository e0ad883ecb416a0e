"""`python -m gating.serve`: an OpenAI-compatible endpoint of one model, whose requests are steered and guarded row by
row in one running batch."""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads that spin slow a shared machine down many times over
os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach `main`, which says them in one paragraph

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from gating import addresses, config_files, configured, extras
from gating.errors import GatingError, cause

if TYPE_CHECKING:
    from gating.serving.config import ServeConfig

console = Console(width=None if sys.stdout.isatty() else 140)
failures: list[str] = []


@hydra.main(version_base="1.3", config_path=str(config_files.conf_dir()), config_name="serve")
def job(cfg: DictConfig) -> None:
    from gating.serving import config

    with configured.kept(failures, console, str(cfg.runs_dir)):
        for package in extras.PACKAGES["serve"]:
            extras.require(package, "gating.serve")
        served = configured.typed(cfg, config.ServeConfig)
        config.check(served)
        key = config.key(served)
        with bound(served.host, served.port) as place:
            run(served, str(HydraConfig.get().runtime.choices["model"]), key, place)


def bound(host: str, port: int) -> socket.socket:
    """A socket at this address, which nobody can connect to yet. Raises GatingError where there can be none."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        place = socket.socket(family, kind, number)
    except OSError as e:
        raise GatingError(f"host={host}: {cause(e)}; give another address.") from None
    try:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(address)
    except OSError as e:
        place.close()
        raise GatingError(f"host={host} port={port}: {cause(e)}; give another address or port.") from None
    return place


def run(served: ServeConfig, label: str, key: str | None, place: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT: what is under way then has `limits.ending` seconds."""
    import uvicorn

    from gating.serving import api, config, start
    from gating.steering import decode

    desk = start.desk(served, label, lambda line: console.print(line, markup=False, soft_wrap=True))
    url = config.url(served.host, place.getsockname()[1])
    server = uvicorn.Server(uvicorn.Config(
        api.app(desk, key, addresses.is_loopback(url)), log_level="warning", access_log=False, server_header=False,
        timeout_graceful_shutdown=max(1, round(served.limits.ending)), limit_concurrency=served.limits.connections,
    ))  # fmt: skip
    print(f"serving {label}: {url}/v1", flush=True)
    with decode.unwrapped(desk.engine.batch.loaded.model):
        server.run(sockets=[place])


def default() -> object:
    from gating.serving.config import ServeConfig

    return ServeConfig()


def main() -> None:
    """Exit code 2 for bad input, else that of the signal that ended it."""
    configured.start("serve", default, job, console)
    sys.exit(2 if failures else 0)


if __name__ == "__main__":
    main()
