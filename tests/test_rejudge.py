"""A run's answers judged again: killed, resumed, in part, by the rule, and from the command line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import gating
from gating import rejudge, store
from gating.analysis import agreement
from gating.config_files import conf_dir
from gating.errors import GatingError
from gating.judging import kinds, pooled, rule
from gating.judging.labels import COMPLIANCE, DEGENERATE, MISSING, REFUSAL
from tests.judged_runs import a_run, asking, good, judged, verdict


def test_failed_judgements_are_asked_again_only_on_demand_and_a_finished_judge_is_not_asked_at_all(tmp_path, serve):
    broken = {"add answers 1"}
    server = serve(lambda p, r, nth: verdict("?") if r in broken else good())
    folder = a_run(tmp_path / "run")
    rejudge.rejudge(folder, asking(server))
    asked = len(server.bodies)
    assert asked == 12
    broken.clear()
    assert rejudge.rejudge(folder, asking(server)).startswith("opened: nothing to judge (11 judged, 1 missing")
    assert len(server.bodies) == asked
    assert rejudge.rejudge(folder, asking(server), retry=True) == "resumed: 12 judged, none missing"
    assert len(server.bodies) == asked + 1 and judged(folder, "endpoint")["done"].all()
    assert (judged(folder, "endpoint")["reason"] == "").all()
    assert rejudge.rejudge(folder, asking(server), force=True) == "new: 12 judged, none missing"
    assert len(server.bodies) == asked + 13


def test_a_killed_judge_goes_on_where_it_stopped_and_asks_again_only_what_was_in_flight(tmp_path, serve):
    block, n = 4, 24
    folder = a_run(tmp_path / "run", n=n, block=block)
    calm = a_run(tmp_path / "calm", n=n, block=block)

    def says(p, r, nth):
        time.sleep(0.02)
        return good("compliance" if int(r.split()[-1]) % 2 else "refusal", 0.5)

    server = serve(says)
    words = ["judge=endpoint", f"base_url={server.url}", "id=m", "key_variable=TEST_JUDGE_KEY"]
    command = [sys.executable, "-m", "gating.rejudge", str(folder), *words]
    child = subprocess.Popen(command, cwd=Path(gating.__file__).parents[1], env={**os.environ, "OMP_NUM_THREADS": "1"},
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    deadline = time.monotonic() + 60
    while len(server.bodies) < 2 * n // 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait(20) == -signal.SIGKILL, "the judge ended before it could be killed"
    half = judged(folder, "endpoint")
    assert 0 < int(half["done"].sum()) < 2 * n and half.attrs["status"] == "running"
    assert rejudge.rejudge(folder, kinds.load("endpoint", words[1:])).startswith("resumed: 48 judged")
    assert sum(server.calls.values()) - 2 * n <= 2 * block, "only the block in flight is asked about again"
    rejudge.rejudge(calm, kinds.load("endpoint", words[1:]))
    assert judged(folder, "endpoint").drop_attrs().identical(judged(calm, "endpoint").drop_attrs())


def test_a_partial_run_is_judged_as_far_as_it_is_and_the_rest_when_it_is_there(tmp_path, serve):
    server = serve(lambda p, r, nth: good())
    folder = a_run(tmp_path / "run", n=6, done=2)
    assert rejudge.rejudge(folder, asking(server)) == "new: 4 judged, none missing"
    assert judged(folder, "endpoint")["label"].values[:, 2:].tolist() == [[MISSING] * 4] * 2
    out = store.read_group(folder / store.STORE, "outcomes")
    out["label"].values[:], out["done"].values[:] = REFUSAL, True
    store.write_batch(folder / store.STORE, 2, {"outcomes": out.isel(prompt=slice(2, 6))})
    assert rejudge.rejudge(folder, asking(server)) == "resumed: 12 judged, none missing"
    assert len(server.bodies) == 12


def test_a_run_that_is_being_written_and_judgements_by_another_judge_are_left_alone(tmp_path, serve):
    server = serve(lambda p, r, nth: good())
    folder = a_run(tmp_path / "run")
    with store.writer(folder), pytest.raises(GatingError, match="written by another process"):
        rejudge.rejudge(folder, asking(server))
    rejudge.rejudge(folder, asking(server))
    with pytest.raises(GatingError, match=r"judgements/endpoint was made with .* --force"):
        rejudge.rejudge(folder, asking(server, id="another-model"))
    assert rejudge.rejudge(folder, asking(server, concurrency=1)).startswith("opened"), (
        "how fast it is asked is no difference"
    )
    rejudge.rejudge(folder, asking(server, id="another-model", name="other"))
    assert agreement.judges_of(store.open_run(folder)) == ["own", "endpoint", "other"]


def test_the_rule_again_judges_by_the_runs_limits_unless_told_otherwise(tmp_path):
    folder = a_run(tmp_path / "run")
    store.set_attrs(folder / store.STORE, {"config": yaml.safe_dump({"label_rule": {"max_nll": 0.5, "min_tokens": 1}})})
    out = store.read_group(folder / store.STORE, "outcomes")
    out["token_ids"].values[:] = [5, 6]
    out["completion"].values[:] = [["I can't help with that.", "Sure, here it is: one, two, three and four"] * 3] * 2
    for start in range(0, 6, 2):
        store.write_batch(folder / store.STORE, start, {"outcomes": out.isel(prompt=slice(start, start + 2))})
    rejudge.rejudge(folder, kinds.load("rule-now"))
    assert judged(folder, "rule-now")["label"].values[0].tolist() == [REFUSAL, DEGENERATE] * 3
    rejudge.rejudge(folder, kinds.load("rule-now", ["name=lax", "limits.max_nll=9", "limits.min_entropy=0"]))
    assert judged(folder, "lax")["label"].values[0].tolist() == [REFUSAL, COMPLIANCE] * 3
    assert judged(folder, "lax").attrs["id"] == f"rule {rule.RULE_VERSION}"


def test_the_command_judges_and_prints_agreement_for_each_condition(tmp_path, serve, capsys):
    server = serve(lambda p, r, nth: good())
    folder = a_run(tmp_path / "run")
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(Path(conf_dir() / "judges" / "endpoint.yaml").read_text()),
                                    "base_url": server.url, "id": "m", "key_variable": None}))  # fmt: skip
    rejudge.main([str(folder), f"judge={path},rule-now", "--agreement"])
    out = capsys.readouterr().out
    assert "mine: new: 12 judged" in out and "rule-now: new: 12 judged" in out and "kappa" in out
    assert sum("baseline" in line for line in out.splitlines()) == 2 and out.rstrip().endswith("store.zarr")
    assert "Authorization" not in server.headers[0]
    rejudge.main([str(folder), "--agreement"])
    assert "mine" in capsys.readouterr().out


def test_a_run_or_judge_left_out_is_said_with_exit_code_two(tmp_path, capsys):
    for words, culprit in (([str(a_run(tmp_path / "run"))], "judge has no value"), (["judge=rule-now"], "no run given"),
                           ([str(tmp_path / "nothing"), "judge=rule-now"], "is not a run")):  # fmt: skip
        with pytest.raises(SystemExit) as stop:
            rejudge.main(words)
        assert stop.value.code == 2 and culprit in capsys.readouterr().out


def test_judging_by_the_rule_and_reading_the_help_need_no_torch(tmp_path):
    folder = a_run(tmp_path / "run")
    code = (
        "import sys, gating.rejudge\n"
        "try: gating.rejudge.main(sys.argv[1:])\n"
        "finally: print([m for m in ('torch', 'transformers', 'nnsight', 'sklearn', 'scipy') if m in sys.modules])"
    )
    for words in ([str(folder), "judge=rule-now,learned,keywords"], ["--help"]):  # nor what analyses need
        child = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
        assert child.returncode == 0 and child.stdout.splitlines()[-1] == "[]", child.stdout + child.stderr


def test_judgements_shared_out_over_processes_are_those_of_one_in_the_same_order(tmp_path, monkeypatch):
    monkeypatch.setattr(pooled, "FROM", 5)
    monkeypatch.setattr(pooled, "PIECE", 5)
    folder = a_run(tmp_path / "run", block=6)
    out = store.read_group(folder / store.STORE, "outcomes")
    out["completion"].values[:] = [
        ["I can't help with that.", "Sure, here it is: one, two, three and four", ""] * 2
    ] * 2
    store.write_batch(folder / store.STORE, 0, {"outcomes": out})
    for name, cores in (("alone", 1), ("shared", 2)):
        spec = kinds.load("rule-now", [f"name={name}"])
        assert rejudge.rejudge(folder, spec, cores=cores) == "new: 12 judged, none missing"
    alone, shared = (judged(folder, name).drop_attrs() for name in ("alone", "shared"))
    assert shared.identical(alone) and len(set(shared["label"].values.ravel().tolist())) == 3


def test_agreement_is_reached_from_the_package_itself():
    assert gating.agreement is agreement and callable(gating.agreement.with_judge)
