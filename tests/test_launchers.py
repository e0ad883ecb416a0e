"""A multirun on several processes: what is sent to them, and what comes back from one that fails or is lost."""

import os
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from gating import cli, run, store
from gating.errors import GatingError


def test_a_job_is_sent_as_a_name_that_another_process_finds():
    pytest.importorskip("cloudpickle")
    code = (
        "import cloudpickle; from gating import run; sent = cloudpickle.dumps(run.job.__wrapped__); "
        "assert callable(cloudpickle.loads(sent)) and b'rich' not in sent"
    )  # in a process of its own: other tests' modules are not the command's
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("here", [True, False])
def test_a_failure_in_a_launchers_process_is_raised_for_the_command_to_see(monkeypatch, here):
    monkeypatch.setattr(run, "failures", [])
    monkeypatch.setattr(run, "commanding", [os.getpid() if here else 0])

    def refused():
        raise GatingError("data.n=0 is not allowed")

    monkeypatch.setattr(run.HydraConfig, "get", refused)
    cfg = OmegaConf.create({"runs_dir": "runs"})
    if here:
        run.one(cfg)
    else:
        with pytest.raises(GatingError, match=r"data\.n=0"):
            run.one(cfg)
    assert run.failures == ["data.n=0 is not allowed"]


def test_a_lost_process_and_a_launcher_that_is_not_there_are_said_in_one_paragraph(command):
    lost = type("TerminatedWorkerError", (RuntimeError,), {})("SIGKILL")
    assert "give the same command again" in cli.explain(lost)
    if "hydra_plugins.hydra_joblib_launcher" not in sys.modules:
        code, lines = command("-m", "model=tiny-llama,tiny-qwen", "hydra/launcher=submitit_nowhere")
        assert code == 2 and "gating[slurm]" in " ".join(lines)


def test_two_processes_make_a_run_each_and_extract_once(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ("-m", "model=tiny-llama", "data.n=2", "controls.random=0", "max_new_tokens=4", "directions.questions=2",
             "directions.n=4", "steer.coef=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "gating.run", *words, f"runs_dir={tmp_path}"], capture_output=True)
    assert done.returncode == 0, done.stderr
    runs = store.find_runs(tmp_path)
    taken = ["taken_from" in store.read_group(path, "directions").attrs for path in runs]
    assert len(runs) == 2 and sorted(taken) == [False, True]
