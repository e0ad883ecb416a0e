"""Shared fixtures: tiny models made on the spot, the composed configuration, no network, few threads."""

from __future__ import annotations

import os
from types import ModuleType

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest

TINY = ("tiny-llama", "tiny-qwen", "tiny-gemma")
DRAWN = (
    "test_run.py::test_every_experiment", "test_run.py::test_a_run_prints", "test_figures", "test_gallery",
    "test_report", "test_mediation_report", "test_hostile_names", "test_drawn",
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_picture(request, monkeypatch):
    """A page has its first picture alone, but where tests are about pages: drawing took a fifth of all test time."""
    if not any(name in request.node.nodeid for name in DRAWN):
        from gating.figures import gallery

        monkeypatch.setattr(gallery, "REGISTRY", gallery.REGISTRY[:1])


def compose(*overrides: str):
    """The configuration that the command line would give: (RunConfig, chosen files, overridden keys)."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import open_dict

    from gating import cli, config_files
    from gating.pipeline import config

    cli.register()
    with initialize_config_dir(str(config_files.conf_dir()), version_base="1.3"):
        cfg = hydra_compose("config", list(overrides), return_hydra_config=True)
    choices = {k: v for k, v in cfg.hydra.runtime.choices.items() if "hydra" not in k}
    with open_dict(cfg):
        del cfg["hydra"]
    return config.typed(cfg), choices, [o.split("=")[0] for o in overrides]


@pytest.fixture(params=TINY)
def tiny(request):
    """Each tiny architecture, loaded."""
    from gating import models

    return models.load(compose(f"model={request.param}")[0].model)


@pytest.fixture
def in_process(tmp_path, monkeypatch, capsys):
    """Run a command that Hydra configures in this process, in a folder of its own: (exit code, what it printed)."""
    import sys

    from hydra.core.global_hydra import GlobalHydra

    monkeypatch.chdir(tmp_path)

    def go(module: ModuleType, *words: str) -> tuple[int, str]:
        GlobalHydra.instance().clear()
        for kept in ("failures", "broken"):
            getattr(module, kept, []).clear()
        monkeypatch.setattr(sys, "argv", [module.__name__, *words])
        with pytest.raises(SystemExit) as stop:
            module.main()
        return int(stop.value.code or 0), capsys.readouterr().out

    return go


@pytest.fixture
def command(in_process):
    """Run `python -m gating.run` in this process, in a folder of its own: (exit code, the lines it printed)."""
    from gating import run

    def go(*overrides: str) -> tuple[int, list[str]]:
        code, said = in_process(run, *overrides)
        return code, said.strip().splitlines()

    return go


@pytest.fixture
def serve(monkeypatch):
    """Start a chat endpoint for a function; closed at the end. The key's variable is set."""
    from tests.judged_runs import KEY, Server

    started = []
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    def go(says):
        started.append(Server(says))
        return started[-1]

    yield go
    for server in started:
        server.close()


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without pictures, which take most of a page's time."""
    from gating.reporting import drawings

    monkeypatch.setattr(drawings, "draw", lambda *_: [])
