"""Bad input gives one paragraph that names the culprit and the remedy, exit code 2, and leaves nothing behind."""

import errno
import importlib
import sys

import pytest
import xarray as xr
import yaml

from tests.bad_input_cases import cases
from tests.bad_inputs import run, warm
from tests.judged_runs import a_run

GOOD = {
    "name": "mine",
    "description": "Likes tests.",
    "positive": ["You like tests."],
    "negative": ["You hate tests."],
    "questions": ["What is a test?"],
}

# overrides, and what the message must hold: the culprit first, then what is allowed or the remedy
COMMANDS = [
    (["steer.coeff=3"], ["steer.coeff", "steer.coef"]),
    (["sed=3"], ["sed", "seed"]),
    (["data.harmfull=x.csv"], ["data.harmfull", "data.harmful"]),
    (["model.steer.layer=3"], ["model.steer.layer", "layers"]),
    (["model=gpt9"], ["model=gpt9", "qwen"]),
    (["data=mine"], ["data=mine", "shipped"]),
    (["label_rule=gpt"], ["label_rule=gpt", "rule"]),
    (["backend=cloud"], ["backend=cloud", "local"]),
    (["steer=complaint"], ["complaint", "compliant"]),
    (["steer=no/such.yaml"], ["no/such.yaml"]),
    (["seed=abc"], ["seed", "abc"]),
    (["seed=-1"], ["seed=-1", "0"]),
    (["controls.random=many"], ["controls.random", "many"]),
    (["controls.random=-2"], ["controls.random=-2"]),
    (["controls.reverse=perhaps"], ["controls.reverse", "perhaps"]),
    (["dry_run=ja"], ["dry_run", "ja"]),
    (["max_new_tokens=0"], ["max_new_tokens=0", "1"]),
    (["backend.batch_rows=0"], ["backend.batch_rows=0"]),
    (["backend.name=vllm"], ["backend.name", "local"]),
    (["steer.op=subtract"], ["steer.op", "add, ablate"]),
    (["steer.layers=40"], ["steer.layers=40", "relative depth"]),
    (["steer.layers=5-2"], ["steer.layers", "lower block first"]),
    (["steer.layers=middle"], ["steer.layers", "0.55"]),
    (["steer.layers=[]"], ["steer.layers", "empty axis"]),
    (["steer.coef=strong"], ["steer.coef", "finite number"]),
    (["steer.coef=.nan"], ["steer.coef", "finite number"]),
    (["steer.coef=[1,1]"], ["steer.coef", "twice"]),
    (["steer.norm=l2"], ["steer.norm", "natural"]),
    (["steer.scope=answer"], ["steer.scope", "response"]),
    (["steer.read=next"], ["steer.read", "previous"]),
    (["steer.direction=compliant@first"], ["compliant@first", "response_mean"]),
    (["directions.position=middle"], ["directions.position", "last"]),
    (["directions.position=-40"], ["directions.position", "-1 to"]),
    (["readouts.extra=[cosine]", "readouts.last=false"], ["readouts.extra", "readouts.last=true"]),
    (["directions.method=svm"], ["directions.method", "mean, probe or pca"]),
    (["directions.harmful=nowhere.csv"], ["directions.harmful", "nowhere.csv"]),
    (["data.split=train"], ["data.split", "test"]),
    (["data.n=0"], ["data.n=0"]),
    (["data.harmful=null", "data.harmless=null"], ["data.harmful", "data.borderline"]),
    (["data.harmful=nowhere.jsonl"], ["data.harmful", "nowhere.jsonl"]),
    (["data.harmful=harmfull"], ["data.harmful", "harmful"]),
    (["data.harmful=harmless"], ["data.harmful", "data.harmless"]),
    (["data.harmless=advbench"], ["data.harmless", "data.harmful=advbench"]),
    (["data.split=extract"], ["extraction", "data.allow_overlap=true"]),
    (["label_rule.max_repetition=2"], ["label_rule.max_repetition"]),
    (["judge=wildguard"], ["judge=wildguard", "learned", "gating.rejudge"]),
    (["judge.max_nll=5"], ["judge.max_nll=5", "write label_rule.max_nll=5", "judge=NAME"]),
    (["+judge.max_nll=5"], ["+judge.max_nll=5", "write +label_rule.max_nll=5"]),
    (["model=hf"], ["model.id", "org/name"]),
    (["model=hf", "model.id=/no/such/folder"], ["/no/such/folder"]),
    (["model=hf", "model.id=org/absent"], ["org/absent", "hf download"]),
    (["model=gguf"], ["model.gguf_file"]),
    (["model.device=tpu"], ["model.device", "cuda"]),
    (["model.dtype=int8"], ["model.dtype", "bfloat16"]),
    (["model.architecture=bert"], ["model.architecture", "llama"]),
    (["model.adapter=no-such"], ["model.adapter", "no-such"]),
    (["+conditions.x=5"], ["conditions.x", "list"]),
    (["+conditions.x=[{direction:compliant}]"], ["conditions.x", "layers"]),
    (["+conditions.x=[{direction:compliant,layers:2,strength:4}]"], ["conditions.x", "strength"]),
    (["+conditions.baseline=[{direction:compliant,layers:2}]"], ["conditions.baseline", "another"]),
    (["steer.coef=[1,2"], ["steer.coef"]),
    (["=3"], ["=3"]),
]  # fmt: skip

PERSONAS = [
    ({"questions": []}, ["questions"]),
    ({"positive": ["a", "b"]}, ["positive", "negative"]),
    ({"positive": "a"}, ["positive", "list"]),
    ({"questions": ["x", 3]}, ["questions"]),
    ({"question": ["x"]}, ["question"]),
    ({"description": None}, ["description"]),
    ({"name": "other"}, ["name"]),
    ({"reverse_of": "mine"}, ["reverse_of"]),
]

FILES = [
    ("a.csv", "wrong\nx\n", ["prompt"]),
    ("a.jsonl", '{"prompt": "x"}\n{oops\n', ["line"]),
    ("a.json", "{}", ["list"]),
    ("a.jsonl", "", ["no prompts"]),
    ("a.jsonl", '{"prompt": 3}\n', ["entry 1"]),
    ("a.txt", "x", [".jsonl"]),
]


def check(tmp_path, command, overrides, expected):
    model = [] if any(o.startswith("model=") for o in overrides) else ["model=tiny-llama"]
    code, lines = command(*model, *overrides)
    said = " ".join(" ".join(lines).split())
    assert code == 2, said
    assert "error:" in said and "Traceback" not in said
    for part in expected:
        assert part in said
    assert not list(tmp_path.glob("runs/*"))


def test_a_sample_of_the_attack_of_600_bad_inputs_over_every_command_is_refused():
    attack = cases()
    assert len(attack) >= 600 and len({c.command for c in attack}) == 10
    warm()  # else every fork imports torch
    outcomes = [run(case) for case in attack[::70]]
    assert {str(o.case): o.said[-500:] for o in outcomes if o.verdict != "refused"} == {}


@pytest.mark.parametrize(("overrides", "expected"), COMMANDS, ids=lambda v: " ".join(v)[:40])
def test_a_bad_command_names_the_key_and_what_is_allowed(tmp_path, command, overrides, expected):
    check(tmp_path, command, overrides, expected)


@pytest.mark.parametrize(("change", "expected"), PERSONAS, ids=lambda v: next(iter(v)))
def test_a_bad_persona_file_is_named_with_its_key(tmp_path, command, change, expected):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **change}))
    check(tmp_path, command, [f"steer={path}"], [str(path), *expected])


@pytest.mark.parametrize(("name", "content", "expected"), FILES)
def test_a_bad_prompt_file_is_named_with_its_line(tmp_path, command, name, content, expected):
    path = tmp_path / name
    path.write_text(content)
    check(tmp_path, command, ["data=file", f"data.harmful={path}"], [str(path), *expected])


@pytest.mark.parametrize("name", ["report", "selection"])
def test_a_full_disk_under_a_reader_is_one_paragraph_that_names_the_place(tmp_path, monkeypatch, capsys, name):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    a_run(tmp_path / "r")
    module = importlib.import_module(f"gating.{name}")
    monkeypatch.setattr(sys, "argv", [name, str(tmp_path / "r")])
    monkeypatch.setattr("gating.swap.write", full)
    monkeypatch.setattr("pandas.DataFrame.to_csv", full)
    monkeypatch.setattr("gating.selection.candidates", lambda *a: xr.Dataset({"x": ("y", [1])}))
    monkeypatch.setattr("gating.selection.candidates_table", lambda ranked: "")
    with pytest.raises(SystemExit) as stop:
        module.main()
    said = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 2 and f"error: {tmp_path / 'r'}" in said and "free some disk space" in said
