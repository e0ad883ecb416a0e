"""Inspect evals run under a condition of a run, and a run is a log that Inspect reads."""

import pytest

import gating
from gating import export
from gating.errors import GatingError
from gating.judging.labels import LABELS

pytest.importorskip(
    "inspect_ai", reason="the extra inspect needs fsspec and python-dateutil below constraints.txt: its own environment"
)

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.log import list_eval_logs, read_eval_log
from inspect_ai.solver import generate

import gating.inspect as door

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect")
    small = {"max_new_tokens": 4, "directions": {"n": 4, "questions": 2}, "steer.layers": 1, "steer.coef": 4.0}
    conditions = {"led": [{"direction": "compliant", "op": "ablate", "layers": 1, "reference": "own"}]}
    return gating.run(
        model="tiny-llama", steer="compliant", data={"n": 3}, conditions=conditions, runs_dir=folder, **small
    )


def asked(made, tmp_path, condition, task=None):
    texts = made.tree["prompts"]["text"].to_series()
    task = task or Task([Sample(t, id=h) for h, t in texts.items()], solver=generate())
    name = made.tree.attrs["model_id"]
    args = {"run": str(made.folder), "condition": condition}
    (log,) = eval(task, f"gating/{name}", model_args=args, log_dir=str(tmp_path), display="none")
    assert log.status == "success", log.error
    return log


def test_an_eval_under_a_condition_gets_the_tokens_that_the_run_has(made, tmp_path):
    kept = made.tree["outcomes"]["token_ids"]
    for condition in ("baseline", "compliant", "led", "compliant-random-0"):
        log = asked(made, tmp_path, condition)
        for sample in log.samples:
            ids = kept.sel(prompt=sample.id, condition=condition).values
            assert sample.output.metadata["token_ids"] == ids[ids >= 0].tolist(), condition
    differ = (kept.sel(condition="baseline") != kept.sel(condition="compliant")).any()
    assert bool(differ)


def test_the_task_asks_our_prompts_and_scores_with_our_judge(made, tmp_path):
    log = asked(made, tmp_path, "compliant", door.refusal(n=2))
    assert len(log.samples) == 2 and all(s.scores["refused"].answer for s in log.samples)


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("tiny-llama", {}, "there is no run"),
        ("tiny-llama", {"condition": "nothing"}, "this run has"),
        ("other", {"condition": "baseline"}, "say --model gating/"),
    ],
)
def test_another_model_condition_or_no_run_is_refused_in_a_sentence(made, name, args, said):
    with pytest.raises(GatingError, match=said):
        door.Steered(name, **(args and {"run": str(made.folder), **args}))


def test_other_weights_than_the_runs_are_refused(made, monkeypatch):
    from gating import models

    real = models.load
    monkeypatch.setattr(models, "load", lambda cfg: __import__("dataclasses").replace(real(cfg), fingerprint="0" * 16))
    with pytest.raises(GatingError, match="give a run of this model"):
        door.Steered("tiny-llama", run=str(made.folder))


def test_a_runs_log_reads_back_with_its_labels_and_openings_alone(made, tmp_path):
    path = export.export(made.folder, "inspect", tmp_path / "a.eval")
    assert [info.name for info in list_eval_logs(str(tmp_path))] == [path.as_uri()]  # as `inspect view` looks for them
    with pytest.raises(GatingError, match=r"Inspect lists logs that end in \.eval"):
        export.export(made.folder, "inspect", tmp_path / "a.json")
    log, outcomes = read_eval_log(str(path)), made.tree["outcomes"]
    assert log.status == "success" and len(log.samples) == outcomes["label"].size
    texts = made.tree["prompts"]["text"].values.tolist()
    shown = log.model_dump_json()
    assert not any(t in shown for t in texts if len(t.split()) > 6)
    sample = log.samples[0]
    at = {k: sample.metadata[k] for k in ("prompt", "condition")}
    assert sample.scores["label"].value == LABELS[int(outcomes["label"].sel(at))]
    whole = export.export(made.folder, "inspect", tmp_path / "b.eval", full_text=True)
    assert {s.input for s in read_eval_log(str(whole)).samples} == set(texts)
