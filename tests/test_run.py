"""The command line from end to end, on a tiny model."""

import json
import shlex

import numpy as np
import pytest

import gating
from gating import models, store
from gating.analysis.claims import digest
from gating.models import loading
from gating.pipeline import key
from gating.reporting import again

SMALL = ("model=tiny-llama", "data.n=3", "directions.questions=2", "directions.n=4", "controls.random=1")


def test_a_run_prints_a_table_and_where_the_report_and_the_store_are(tmp_path, command):
    code, lines = command(*SMALL)
    assert code == 0
    path = tmp_path / lines[-1].removeprefix("store: ")
    assert path.name == "store.zarr" and (path.parent / "report.html").is_file() and list(path.parent.glob("*.png"))
    assert any("compliant" in line and "%" in line for line in lines)
    tree = gating.open_run(path)
    assert tree.attrs["status"] == "complete" and tree["outcomes"]["done"].all()
    assert {"prompts", "conditions", "model", "outcomes", "readouts", "directions"} == set(tree.children)
    for name in (
        "config",
        "versions",
        "git_revision",
        "model_fingerprint",
        "template_hash",
        "dtype",
        "device",
        "seed",
        "finished_at",
    ):
        assert tree.attrs[name] not in (None, "")
    assert json.loads(tree.attrs["overrides"])[0] == "model"
    assert json.loads(tree.attrs["pace"])["rows"] == tree["outcomes"]["done"].size
    _, said = command(*SMALL, "data.n=6", "dry_run=true")
    assert any(line.startswith("time: about") and path.parent.name in line for line in said)
    begun = again.command(tree)
    assert (
        begun.startswith("python -m gating.run model=tiny-llama ")
        and begun in (path.parent / "report.html").read_text()
    )
    _, said = command(*shlex.split(begun)[3:], "dry_run=true")
    assert said[-1] == lines[-1]  # the same key
    _, said = command("model=tiny-qwen", *SMALL[1:], "dry_run=true")
    assert any("time: not known before a first run of this model" in line for line in said)


def test_the_stored_tokens_decode_to_the_stored_text_and_the_controls_have_the_steered_norm(tmp_path, command):
    _, lines = command(*SMALL, "steer.coef=[0,0.5]", "activations=true")
    tree = gating.open_run(lines[-1].removeprefix("store: "))
    out = tree["outcomes"].to_dataset()
    tokenizer = models.tokenizer_only(models.ModelConfig(kind="tiny", architecture="llama"))
    row = out.isel(condition=3, prompt=2)
    ids = row["token_ids"].values
    assert tokenizer.decode(ids[ids >= 0], skip_special_tokens=True) == row["completion"].item()
    assert int((ids >= 0).sum()) == row["n_tokens"]
    zero = out.sel(condition="compliant[coef=0]")
    assert (zero["token_ids"] == out.sel(condition="baseline")["token_ids"]).all()
    states = tree["activations"]["resid_post"]
    unit = tree["directions"]["vector"].sel(direction="compliant")
    unit = unit / np.sqrt((unit**2).sum("hidden"))
    read = tree["readouts"]["projection"].sel(condition="baseline", direction="compliant")
    assert np.allclose((states * unit).sum("hidden").transpose(*read.dims), read, atol=1e-3)


def test_a_multirun_loads_the_model_once_and_its_stores_join_along_the_overrides(tmp_path, command, monkeypatch):
    models.forget()
    loads, real = [], loading._load
    monkeypatch.setattr(loading, "_load", lambda cfg: loads.append(1) or real(cfg))
    code, lines = command("-m", *SMALL, "steer.coef=0,1", "steer=compliant,uncompliant")
    assert code == 0 and len(loads) == 1
    assert len([line for line in lines if line.startswith("store: ")]) == 4 and lines[-1].startswith("store: ")
    joined = gating.open_runs("runs")
    assert joined.attrs["axes"] == ["steer", "steer.coef"]
    rates = gating.refusal_rate(joined, harmful=True)
    assert {"steer", "steer.coef", "condition"} <= set(rates["rate"].dims)
    assert rates["n"].sel({"steer": "compliant", "steer.coef": 1, "condition": "uncompliant"}) == 0


def test_a_failed_job_of_a_multirun_does_not_cost_the_others(tmp_path, command):
    code, lines = command("-m", *SMALL, "steer.layers=2,99,3")
    assert code == 2
    assert len([line for line in lines if line.startswith("store: ")]) == 2
    assert any("steer.layers=99" in line for line in lines)


def test_a_users_persona_and_prompts_are_used_as_the_shipped_ones_are(tmp_path, command):
    (tmp_path / "brave.yaml").write_text(
        "name: brave\ndescription: Fears nothing.\npositive: [You fear nothing.]\nnegative: [You fear everything.]\n"
        "questions: ['What is a lion?', 'How deep is a lake?']\n"
    )
    (tmp_path / "mine.csv").write_text("goal,category\nDo something bad,one\nDo something worse,two\n")
    code, lines = command(*SMALL, "steer=./brave.yaml", "data=file", "data.harmful=mine.csv")
    assert code == 0
    tree = gating.open_run(lines[-1].removeprefix("store: "))
    assert "brave" in tree["outcomes"]["condition"].values and tree["prompts"]["category"].values.tolist() == [
        "one",
        "two",
    ]
    assert tree["directions"]["n_positive"].sel(direction="brave") == 2


@pytest.mark.parametrize("more", [
    ("steer=none",), ("steer=random",), ("steer=refusal", "steer.op=ablate", "steer.layers=all"),
    ("steer.direction=[compliant,evil]",), ("steer.direction=compliant@response_mean",), ("directions.method=probe",),
    ("steer.norm=residual", "steer.coef=0.5", "steer.scope=response"), ("model=tiny-gemma", "steer.layers=1-2"),
    ("+conditions.both=[{direction: compliant, layers: 2, coef: 2}, {direction: compliant, op: ablate, layers: 2-3}]",),
])  # fmt: skip
def test_every_kind_of_steering_runs_end_to_end(command, more):
    small = [s for s in SMALL if not any(m.startswith("model=") for m in more) or not s.startswith("model=")]
    code, lines = command(*small, *more)
    assert code == 0, lines
    run = store.open_run(lines[-1].removeprefix("store: "))
    assert run["outcomes"]["done"].all()
    _, said = command(*shlex.split(again.command(run))[3:], "dry_run=true")
    assert said[-1] == lines[-1]  # the command on its page has its key


def arrays(path):
    """Every array of a store, by group and name."""
    tree = gating.open_run(path)
    return {f"{g}/{name}": v.values for g, ds in tree.children.items() for name, v in ds.to_dataset().variables.items()}


def test_two_runs_with_one_seed_give_identical_stores(tmp_path, command):
    paper = (
        "experiment=paper",
        "model=tiny-llama",
        "data.n=1",
        "data.n_harmless=2",
        "directions.questions=2",
        "directions.n=4",
        "max_new_tokens=4",
    )
    stores = [command(*paper, f"runs_dir={d}")[1][-1].removeprefix("store: ") for d in ("a", "b")]
    first, second = (arrays(s) for s in stores)
    assert first.keys() == second.keys() and len(first) > 40
    for name, value in first.items():
        assert np.array_equal(value, second[name], equal_nan=value.dtype.kind == "f"), name
    claims = json.loads(gating.open_run(stores[0]).attrs["claims"])
    assert claims["family"] == "paper" and len(claims["claims"]) >= 8
    attrs = gating.open_run(stores[0]).attrs
    assert attrs["claims_digest"] == digest(claims) and attrs["code"] == key.code()


def test_conditions_that_do_not_fit_one_batch_are_compared_in_batches_that_each_hold_the_baseline(command):
    small = ("steer.coef=[0.5,1,2]", "controls.random=2")
    runs = [
        gating.open_run(command(*SMALL, *small, f"backend.batch_rows={rows}")[1][-1].removeprefix("store: "))
        for rows in (64, 5)
    ]
    whole, split = (r["outcomes"].to_dataset() for r in runs)
    assert whole["token_ids"].equals(split["token_ids"]) and split["done"].all()
    assert np.allclose(runs[0]["readouts"]["kl"], runs[1]["readouts"]["kl"], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "more"),
    [(n, ()) for n in ("refute", "mediation", "reintroduce", "geometry", "selection", "dose", "layers")]
    + [("nulls", ("conditions.persona.0.random=2",)), ("knockout", ("conditions.ko.1.random=1",))],
)
def test_every_experiment_runs_end_to_end(command, name, more):
    small = (
        "model=tiny-qwen",
        "data.n=1",
        "data.n_harmless=1",
        "directions.questions=1",
        "directions.n=2",
        "controls.random=1",
        "max_new_tokens=2",
    )
    code, lines = command(f"experiment={name}", *small, *more)
    assert code == 0, lines
    run = gating.open_run(lines[-1].removeprefix("store: "))
    assert run.attrs["status"] == "complete" and run["outcomes"]["done"].all()
