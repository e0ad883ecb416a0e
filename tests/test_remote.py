"""Remote execution without a server: taking turns, the ledger, what a refusal says, what results may hold."""

import io
import json
import stat
from typing import cast

import httpx
import numpy as np
import pytest
import torch
import zstandard

from gating import cli
from gating.errors import GatingError, TooLarge
from gating.remote import preflight, results
from gating.remote.jobs import digest
from gating.remote.ledger import Ledger
from gating.remote.wire import Lost, Passing, Wire
from gating.steering import ops
from gating.steering.calls import Call
from gating.steering.room import in_halves

KEY = "12345678-aaaa-4bbb-8ccc-123456789abc"


# ------------------------------------------------------------------------------------------------------------ ledger
def test_a_job_is_found_again_after_a_kill_that_cut_a_line_short(tmp_path):
    first = Ledger(tmp_path)
    first.sent("call", "job-1", "rows", 100)
    first.sent("other", "job-2", "rows", 50)
    first.lost("other", "expired")
    with first.path.open("a") as f:
        f.write('{"call": "cut')
    again = Ledger(tmp_path)
    assert again.job("call") == "job-1"
    assert again.job("other") is None
    assert again.total == {"jobs": 2, "bytes_up": 150, "bytes_down": 0, "resubmitted": 1, "collected": 0}


def test_only_the_owner_can_read_the_ids_of_jobs_and_a_complete_run_keeps_none(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.sent("call", "job-1", "rows", 1)
    assert stat.S_IMODE(ledger.path.stat().st_mode) == 0o600
    ledger.close()
    assert not ledger.path.exists()


def test_a_call_is_known_by_its_content_and_not_by_when_it_came():
    def call(value, about="rows"):
        return Call(
            "read",
            ({"input_ids": torch.tensor([[1, 2]])}, {3: [{"op": "add", "write": torch.full((2,), value)}]}),
            about,
        )

    assert digest(call(1.0)) == digest(call(1.0, "said otherwise"))
    assert digest(call(1.0)) != digest(call(1.0 + 2**-23))
    assert digest(Call("a", (1, [2]), "")) != digest(Call("a", (1, 2), ""))


# -------------------------------------------------------------------------------------------------------------- wire
class Body(httpx.AsyncByteStream):
    def __init__(self, content: bytes) -> None:
        self.content = content

    async def __aiter__(self):
        yield self.content


def answering(status: int, body: object) -> Wire:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, stream=Body(json.dumps(body).encode()))

    return Wire("http://host", KEY, transport=httpx.MockTransport(answer))


@pytest.mark.parametrize(("status", "detail", "error", "says"), [
    (401, "Missing or invalid API key.", GatingError, "NDIF_API_KEY"),
    (400, f"Invalid API key format: '{KEY}'.", GatingError, "NDIF_API_KEY"),
    (403, "Invalid API key.", GatingError, "NDIF_API_KEY"),
    (400, "Client nnsight version 0.8.1 is below the minimum supported 9.", GatingError, "below the minimum"),
    (413, "too big", TooLarge, "no job of this size"),
    (429, "slow down", Passing, "429"),
    (503, "reconnecting", Passing, "reconnecting"),
])  # fmt: skip
def test_a_refusal_says_who_can_mend_it_and_never_the_key(status, detail, error, says):
    with pytest.raises(error, match=says) as e:
        answering(status, {"detail": detail}).submit("model", b"payload", {}, 5)
    assert KEY not in str(e.value)
    assert KEY not in repr(Wire("http://host", KEY))


def test_a_job_that_is_not_known_is_none_and_not_an_error():
    assert answering(404, {"detail": "No response"}).state("id", 5) is None


def packed(value) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return zstandard.ZstdCompressor().compress(out.getvalue())


def test_a_result_is_tensors_and_plain_values():
    got = results.unpack(
        packed({"out": torch.arange(3), "read": {"score": {"block": torch.tensor([1])}}, "dtype": "torch.float32"}), 100
    )
    assert torch.equal(cast(torch.Tensor, got["out"]), torch.arange(3))


class Evil:
    def __reduce__(self):
        return (__import__("os").mkdir, ("made-by-a-server",))


def test_a_result_with_code_in_it_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Passing, match="cannot be read"):
        results.unpack(packed({"out": Evil()}), 100)
    with pytest.raises(Passing):
        results.unpack(b"not a result", 100)
    assert not list(tmp_path.iterdir())


def test_an_expired_result_is_lost_and_not_merely_late():
    with pytest.raises(Lost, match="404"):
        answering(404, "gone").fetch("http://store/x", 5, 100)


# --------------------------------------------------------------------------------------------------------- preflight
def test_versions_that_clash_are_an_error_and_others_a_warning(monkeypatch):
    monkeypatch.setattr(
        preflight, "version", lambda name: {"nnsight": "0.8.1", "torch": "2.13.0+cpu", "transformers": "5.23.0"}[name]
    )
    assert preflight.compare({"nnsight": "0.8.1", "torch": "2.13.0", "transformers": "5.23.0"}) == []
    assert "5.20.0" in preflight.compare({"nnsight": "0.8.0", "torch": "2.13.0", "transformers": "5.20.0"})[1]
    with pytest.raises(GatingError, match=r"pip install nnsight==0\.7\.2"):
        preflight.compare({"nnsight": "0.7.2"})


def test_the_public_server_without_a_key_is_refused_before_anything_is_sent():
    with pytest.raises(GatingError, match="NDIF_API_KEY has no value"):
        preflight.check(Wire("https://api.ndif.us", ""), "org/name", None, "auto", False)


@pytest.mark.parametrize(("url", "key", "warned"), [
    ("http://gpu.example.org:8401", KEY, True), ("http://gpu.example.org:8401", "", False),
    ("http://127.0.0.1:8401", KEY, False),
    ("https://gpu.example.org", KEY, False),
])  # fmt: skip
def test_a_key_that_would_travel_in_the_clear_is_warned_of(url, key, warned, monkeypatch):
    served = {"repo_id": "org/name", "revision": None, "dtype": "torch.bfloat16", "application_state": "RUNNING"}
    told = {"/ping": "pong", "/env": {}, "/status": {"deployments": {"a": served}}}
    one = Wire(url, key)
    monkeypatch.setattr(one, "get", told.__getitem__)
    found = preflight.check(one, "org/name", None, "auto", False)
    assert found.dtype == "bfloat16"
    assert any("not encrypted" in w for w in found.warnings) == warned


def test_a_model_key_is_the_one_that_nnsight_makes(monkeypatch):
    from nnsight.modeling import huggingface

    from gating import models
    from gating.steering.backend import Backend
    from tests.conftest import compose

    lm = Backend(models.load(compose("model=tiny-llama")[0].model), 4).lm
    monkeypatch.setitem(huggingface._ID_CACHE, "org/name", "org/name")
    lm.repo_id, lm.revision = "org/name", None
    assert lm.to_model_key() == preflight.model_key("org/name", None)


@pytest.mark.parametrize(("given", "becomes"), [
    ("backend=http://127.0.0.1:8401", ["backend=ndif", "backend.host='http://127.0.0.1:8401'"]),
    ("backend=https://host.org/x", ["backend=ndif", "backend.host='https://host.org/x'"]),
    ("backend=ndif", ["backend=ndif"]),
])  # fmt: skip
def test_a_hosts_address_is_a_choice_of_backend(given, becomes):
    assert cli.backend_sugar([given, "data.n=2"]) == [*becomes, "data.n=2"]


def test_a_dry_run_says_what_would_be_sent_and_asks_no_server(command):
    code, lines = command("model=llama", "backend=ndif", "backend.host=http://127.0.0.1:9", "dry_run=true")
    assert code == 0
    assert any(line.startswith("up: at most") for line in lines)
    assert any("answers: 6 of at most 32 rows" in line for line in lines)


def test_a_model_without_a_hub_id_is_refused_with_the_remedy(command, tmp_path):
    folder = tmp_path / "a-model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    code, lines = command("model=hf", f"model.id={folder}", "backend=ndif", "dry_run=true")
    assert code == 2
    assert "model.remote has no value" in " ".join(lines)


# --------------------------------------------------------------------------------------------------- what travels, ops
def test_edits_and_projections_are_exact_under_autocast():
    """As an NDIF server on a GPU runs a job."""
    g = torch.Generator().manual_seed(0)
    h, u = torch.randn(2, 3, 64, generator=g), torch.nn.functional.normalize(torch.randn(2, 1, 64, generator=g), dim=-1)
    edit = {
        "op": "ablate",
        "scope": "all",
        "write": u,
        "measure": u,
        "strength": torch.ones(2),
        "target": torch.zeros(2, 1),
        "of": torch.tensor([1, -1]),
        "gate": None,
    }
    mask, weights = torch.ones(2, 3, dtype=torch.long), torch.ones(2, 1, 3) / 3

    plan = {
        "prompt_mask": mask, "last_mask": mask, "kept": {}, "ids": mask,
    }  # fmt: skip

    def all_of_it():
        return (
            ops.apply_edits(h, [edit], 0, plan, 0), ops.read_projection({"last": h[:, -1], "probes": u[0]}),
            ops.pool(h, weights),
        )  # fmt: skip

    plain = all_of_it()
    with torch.autocast("cpu", torch.bfloat16):
        assert (h @ u[0, 0]).dtype == torch.bfloat16  # autocast is on here
        under = all_of_it()
    for a, b in zip(plain, under, strict=True):
        assert torch.equal(a, b)


def test_a_groups_sum_is_that_of_its_rows_and_a_missing_position_reaches_only_who_asks_for_it():
    pooled = torch.arange(12.0).reshape(3, 2, 2)
    pooled[2, 1] = torch.nan
    groups = torch.zeros(2, 3, 2, dtype=torch.float64)
    groups[0, 0, 0], groups[0, 1, 0] = 0.5, 0.5
    groups[1, 2, 1] = 1.0
    out = ops.side_sums(pooled, groups)
    assert out[0].tolist() == [2.0, 3.0]
    assert out[1].isnan().all()


def test_a_batch_without_room_is_done_in_halves_down_to_one_row():
    def do(rows):
        if len(rows) > 2:
            raise TooLarge("too large")
        return [r * 2 for r in rows]

    assert [v for _, part in in_halves(do, [1, 2, 3, 4, 5]) for v in part] == [2, 4, 6, 8, 10]

    def never(rows):
        raise TooLarge("never")

    with pytest.raises(TooLarge):
        in_halves(never, [1, 2])


def test_the_ledgers_lines_are_json(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.sent("call", "job", "prompts a to b", 7)
    ledger.done("call", 9)
    assert [json.loads(x)["call"] for x in ledger.path.read_text().splitlines()] == ["call", "call"]


def test_a_simulated_server_gives_what_this_process_gives(tmp_path):
    """In processes of its own: the simulation leaves sys.path in another order."""
    import os
    import subprocess
    import sys

    import gating

    stores = []
    for backend in ("local", "simulation"):
        asked = ("model=tiny-llama", "data.n=2", "controls.random=1", f"backend={backend}", f"runs_dir={tmp_path}")
        command = [sys.executable, "-m", "gating.run", *asked]
        out = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ})
        assert out.returncode == 0, out.stdout + out.stderr
        stores.append(gating.open_run(out.stdout.strip().splitlines()[-1].removeprefix("store: ")))
    here, there = stores
    assert (here["outcomes"]["token_ids"] == there["outcomes"]["token_ids"]).all()
    np.testing.assert_allclose(here["readouts"]["projection"], there["readouts"]["projection"], atol=1e-4)


@pytest.mark.parametrize("more", [
    [], ["steer.iso_kl=0.5"], ["steer.direction=compliant:i_thou@response_mean"], ["directions.method=probe"],
    ["activations=true", "backend.batch_rows=8"],
])  # fmt: skip
def test_a_dry_run_counts_the_jobs_that_a_run_would_send(more, tmp_path, monkeypatch):
    """Counted on traces that run here, as they would there: one trace is one job."""
    from gating.pipeline import dryrun, estimate, execute, study
    from gating.steering.backend import Backend
    from tests.conftest import compose

    small = ("directions.questions=2", "directions.n=4", "directions.response_tokens=4", "max_new_tokens=4", "data.n=3")
    planned = study.prepare(*compose("model=tiny-llama", "controls.random=1", *small, f"runs_dir={tmp_path}", *more))
    sent = []
    monkeypatch.setattr(execute, "Backend", lambda loaded, rows: Backend(loaded, rows, lambda call: None))
    for name in ("_read", "_generate", "_score"):
        real = getattr(Backend, name)
        monkeypatch.setattr(Backend, name, lambda self, *a, real=real: (sent.append(1), real(self, *a))[1])
    execute.execute(planned)
    stated = sum(j.n for j in estimate.jobs(planned, dryrun.prompt_tokens(planned)[0]))
    assert len(sent) <= stated <= len(sent) + 3
