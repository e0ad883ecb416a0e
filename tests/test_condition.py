"""One condition of a finished run answers other prompts as the run did: what evals of Inspect stand on."""

import dataclasses

import pytest

import gating
from gating import models
from gating.errors import GatingError
from gating.serving import condition

SMALL = {"max_new_tokens": 4, "directions": {"n": 4, "questions": 2}, "steer.layers": 1, "steer.coef": 4.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    led = [{"direction": "compliant", "op": "ablate", "layers": 1, "reference": "own"}]
    return gating.run(
        model="tiny-llama", steer="compliant", data={"n": 3}, runs_dir=tmp_path_factory.mktemp("condition"),
        conditions={"led": led, "prompted": {"system": "evil", "do": []}}, **SMALL,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["baseline", "compliant", "led", "compliant-random-0", "prompted"])
def test_a_condition_gives_the_tokens_that_the_run_has(made, name):
    of_run, kept = condition.OfRun(made.folder, name), made.tree["outcomes"]["token_ids"].sel(condition=name)
    for prompt, text in made.tree["prompts"]["text"].to_series().items():
        ids = kept.sel(prompt=prompt).values
        assert of_run.answer([{"role": "user", "content": text}], 4).tokens == ids[ids >= 0].tolist()


def test_a_persona_that_was_changed_since_the_run_is_refused(made, monkeypatch):
    real = condition.study.of_store

    def changed(tree):
        now = real(tree)
        others = [dataclasses.replace(c, system="You are kind.") if c.system else c for c in now.conditions]
        return dataclasses.replace(now, conditions=others)

    monkeypatch.setattr(condition.study, "of_store", changed)
    with pytest.raises(GatingError, match="system differs: a persona"):
        condition.OfRun(made.folder, "baseline")


@pytest.mark.parametrize("name", ["nothing", ""])
def test_a_condition_that_the_run_lacks_is_refused(made, name):
    with pytest.raises(GatingError, match="this run has baseline"):
        condition.OfRun(made.folder, name)


def test_other_weights_and_a_run_that_is_not_finished_are_refused(made, monkeypatch):
    real = models.load
    monkeypatch.setattr(models, "load", lambda cfg: dataclasses.replace(real(cfg), fingerprint="0" * 16))
    with pytest.raises(GatingError, match="give a run of this model"):
        condition.OfRun(made.folder, "baseline")
    half = made.tree.copy()
    half.attrs["status"] = "running"
    monkeypatch.setattr(condition.store, "open_run", lambda place: half)
    with pytest.raises(GatingError, match="not finished"):
        condition.OfRun(made.folder, "baseline")
