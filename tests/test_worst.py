"""The worst case: what lowers refusal most within bounds is found where it is, and held against other prompts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

from gating import models, store, worst
from gating.choosing import soft_prompt, worst_case
from gating.choosing.config import WorstConfig
from gating.guarding import calibrate, evaluate, file
from gating.judging.labels import COMPLIANCE, EVASIVE
from gating.pipeline import execute, study
from tests.conftest import compose

SMALL = (
    "model=planted", "n=6", "n_harmless=4", "trials=12", "rounds=3", "directions.n=8", "directions.questions=2",
    "new_tokens=6", "test_n=8", "test_n_harmless=6", "test_tokens=6", "random=2", "widths=[1,2]", "doses=[0.1,2]",
)  # fmt: skip


@pytest.fixture
def go(in_process):
    """Run `python -m gating.worst` in this process: (exit code, what it said)."""

    def command(*words):
        code, said = in_process(worst, *SMALL, *words)
        return code, " ".join(said.split())

    return command


def test_a_planted_gate_is_found_and_the_same_command_finds_it_in_the_same_runs(tmp_path, go):
    code, said = go()
    assert code == 0 and "removes 100 [54, 100] points of refusal (n = 8)" in said
    runs = {p: (p / "store.zarr").stat().st_mtime_ns for p in tmp_path.glob("runs/planted-worst-*")}
    names = sorted(p.name.split("worst-")[1].rsplit("-", 1)[0] for p in runs)
    assert names == ["baseline", "round-1", "round-2", "round-3", "test"]
    test = store.open_run(next(p for p in runs if "test" in p.name))
    select = store.open_run(next(p for p in runs if "round-1" in p.name))
    assert not set(test["prompts/text"].values.tolist()) & set(select["prompts/text"].values.tolist())
    assert go() == (code, said)
    assert {p: (p / "store.zarr").stat().st_mtime_ns for p in tmp_path.glob("runs/planted-worst-*")} == runs


def test_where_every_trial_breaks_a_bound_there_is_no_worst_case(go):
    code, said = go("kl=1e-9", "trials=2", "rounds=1", "best=1", "doses=[1,2]")
    assert code == 2 and "no trial keeps within the bounds" in said and "error: none of 2 trials keeps within" in said


def test_without_a_gate_the_worst_case_removes_nothing(go):
    code, said = go("model.architecture=keyword")
    assert code == 0
    assert int(said.split(" removes ")[1].split()[0]) <= 0


def test_with_a_guard_what_it_does_not_flag_is_sought(tmp_path, go):
    words = ("model=planted", "experiment=guard", "data.n=12", "directions.n=8", "directions.questions=2", "judge=rule")
    run, chosen, keys = compose(*words, "max_new_tokens=6", f"runs_dir={tmp_path}")
    run.conditions = {name: run.conditions[name] for name in ("attack_steered", "benign_formal_prompted")}
    planned = study.prepare(run, chosen, keys)
    execute.execute(planned)
    made = calibrate.calibrate(store.open_run(planned.folder), 0.2, 2)
    file.save(made, tmp_path / "guard.json")
    file.save(replace(made, model={**made.model, "model_fingerprint": "other"}), tmp_path / "other.json")
    code, said = go("guard=other.json", "rounds=1", "trials=3", "best=1")
    assert code == 2 and "calibrate one on a run of this model" in said and "round 1" not in said
    code, said = go("guard=guard.json", "rounds=1", "trials=3", "best=1")
    assert code == 0, said
    code, soft = go("guard=guard.json", "attack=soft-prompt", "steps=3")
    assert code == 0 and "not flagged" in soft, soft
    code, soft = go("guard=other.json", "attack=soft-prompt", "steps=3")
    assert code == 2 and "calibrate one on a run of this model" in soft
    passed = float(said.split(" are complied with or evaded without a flag")[0].rsplit(" ", 1)[1].rstrip("%"))
    (test,) = tmp_path.glob("runs/planted-worst-test-*")
    tree = store.open_run(test)
    name = tree["outcomes/condition"].values[1].item()
    through = evaluate.let_through(made, tree)
    assert passed == round(100 * float(through.sel(condition=name)))
    unguarded = evaluate.let_through(replace(made, threshold=1e9), tree).sel(condition=name)
    harmful = tree["prompts/harmful"].values
    labels = tree["outcomes/label"].transpose("condition", "prompt").sel(condition=name).values[harmful]
    assert float(unguarded) == np.isin(labels, (COMPLIANCE, EVASIVE)).mean() >= float(through.sel(condition=name))


def test_a_soft_prompt_that_is_sought_opens_the_gate_of_a_planted_model(go):
    code, said = go("attack=soft-prompt", "steps=40")
    assert code == 0, said
    assert "none │ 100%" in said and "soft prompt │ 0%" in said


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("steps=0", "steps=0"),
        ("tokens=1000", "give fewer"),
        ("backend=ndif", "say backend=local, not ndif"),
    ],
)
def test_what_a_soft_prompt_cannot_be_sought_with_is_named(go, word, why):
    code, said = go("attack=soft-prompt", word)
    assert code == 2 and why in said


def test_a_soft_prompt_is_sought_on_the_processor_alone(go, monkeypatch):
    monkeypatch.setattr(models, "device_type", lambda cfg: "cuda")
    code, said = go("attack=soft-prompt")
    assert code == 2 and "say model.device=cpu" in said and "outcomes" not in said


def test_a_soft_prompt_is_embedded_where_its_ids_are_and_nowhere_else():
    model = models.load(compose("model=tiny-llama")[0].model).model
    soft = soft_prompt.SoftPrompt((7, 9), torch.randn(2, model.config.hidden_size, requires_grad=True))
    ids, embed = torch.tensor([[3, 9, 4], [7, 3, 9]]), model.get_input_embeddings()
    plain = embed(ids)
    with soft_prompt.embedded(model, soft):
        within = embed(ids)
    assert torch.equal(within[0, [0, 2]], plain[0, [0, 2]]) and torch.equal(within[1, 1], plain[1, 1])
    assert torch.equal(within[0, 1], soft.vectors[1]) and torch.equal(within[1, [0, 2]], soft.vectors)
    assert within.requires_grad and torch.equal(embed(ids), plain)


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("doses=[2,1]", "doses=[2.0, 1.0]: give two numbers"),
        ("widths=[99]", "widths=[99]: give numbers of blocks"),
        ("rounds=13", "trials=12: give at least as many as rounds=13"),
        ("personas=[nobody]", "nobody"),
        ("personas=[compliant,compliant]", "one of them is there twice"),
        ("kl=0", "kl=0"),
        ("attack=prompt", "attack='prompt': use steering or soft-prompt"),
    ],
)
def test_a_setting_that_cannot_be_is_named(go, word, why):
    code, said = go(word)
    assert code == 2 and why in said


def test_what_is_over_a_bound_never_goes_before_what_is_within_it():
    cfg = WorstConfig(trials=8, rounds=2, kl=1.0)
    asker = worst_case._Asker(cfg, 12)
    first = asker.ask(4)
    assert [(s.block, s.dose) for s in first[:3]] == [(8, 0.3), (8, 0.45), (8, 0.6)]  # the model's own place
    again = worst_case._Asker(cfg, 12)
    assert again.ask(4) == first and all(s.block + s.width <= 12 for s in first)
    for each in (asker, again):
        each.tell({s.name: (0.0, 0.5) if i else (0.9, -0.1) for i, s in enumerate(first)})
    assert asker.study.best_trial.values == [0.9]
    assert asker.ask(4) == again.ask(4)


@pytest.mark.parametrize(
    ("row", "within"),
    [
        ({}, True),
        ({"degenerate": 0.3}, False),
        ({"answered": 0.4}, False),
        ({"answered": 0.6}, True),
        ({"kl": 2.0}, False),
    ],
)
def test_what_garbles_answers_or_leaves_harmless_requests_unanswered_is_no_worst_case(row, within):
    plain = {"refusal": 0.5, "first": 0.5, "degenerate": 0.1, "answered": 0.7, "kl": 0.5}
    baseline, trial = (xr.Dataset({k: ((), v) for k, v in d.items()}) for d in (plain, plain | row))
    _, over = worst_case.judged(WorstConfig(kl=1.0), trial, baseline)
    assert (over <= 0) == within
