"""Settings of a user's own: a model's file named by its path, and a folder of them given as --config-dir."""

import json
import sys

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra

import gating
from gating import train

MINE = {
    "name": "mine", "kind": "tiny", "architecture": "llama", "max_new_tokens": 2, "first_token_openings": ["No"],
    "steer": {"layers": 1, "coef": 3.0},
}  # fmt: skip


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/experiment").mkdir()
    for path in ("mine.yaml", "it's, mine.yaml", "smollm.yaml", "conf/model/other.yaml"):
        (tmp_path / path).write_text(yaml.safe_dump(MINE))
    (tmp_path / "conf/experiment/short.yaml").write_text("# @package _global_\ndata: {n: 1}\n")


def test_a_models_file_is_a_choice_of_the_model_group(mine, command):
    small = ("data.n=2", "directions.n=4", "directions.questions=2", "controls.random=0")
    code, lines = command("model=./mine.yaml", *small)
    assert code == 0, lines
    run = gating.open_run(lines[-1].removeprefix("store: "))
    config = yaml.safe_load(run.attrs["config"])
    assert config["model"]["first_token_openings"] == ["No"] and config["model"]["architecture"] == "llama"
    assert run["conditions"]["iv_layers"].sel(condition="compliant").values.tolist() == ["1"]
    assert json.loads(run.attrs["choices"])["model"] == "mine"


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        (("model=it's, mine.yaml",), "it-s--mine-compliant"),  # a path's commas and quotes are its own
        (("model=smollm.yaml",), "smollm-file-compliant"),  # not the shipped one of that name
        (("--config-dir", "conf", "model=other", "experiment=short"), "other-short"),
        (("-cd=conf", "model=other"), "other-compliant"),
        (("-m", "model=mine.yaml,tiny-qwen"), "tiny-qwen-compliant"),
    ],
)
def test_paths_and_folders_are_taken_as_they_are_written(mine, command, words, folder):
    code, lines = command(*words, "dry_run=true")
    assert code == 0, lines
    assert lines[-1].startswith(f"store: runs/{folder}-")


@pytest.mark.parametrize(
    ("content", "words", "why"),
    [
        ("- 1\n", ["model=bad.yaml"], "the file must hold settings"),
        ("name: [\n", ["model=bad.yaml"], "not valid YAML"),
        ("kind: tiny\nlayer: 3\n", ["model=bad.yaml"], "model.layer is not a setting"),
        ("", ["model=absent.yaml"], "there is no file absent.yaml"),
        ("", ["--config-dir", "absent"], "there is no folder absent"),
        ("", ["--config-dir", "conf", "model=absent"], "or tiny-qwen"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, mine, command, content, words, why):
    (tmp_path / "bad.yaml").write_text(content)
    code, lines = command(*words, "dry_run=true")
    assert code == 2 and why in " ".join(" ".join(lines).split())


def test_a_folders_choice_with_a_shipped_name_is_refused(tmp_path, mine, command):
    (tmp_path / "conf/model/smollm.yaml").write_text(yaml.safe_dump(MINE))
    code, lines = command("--config-dir", "conf", "dry_run=true")
    assert code == 2 and "there is a model=smollm already" in " ".join(lines)


def test_training_takes_a_models_file_too(mine, command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gating.train", "model=mine.yaml", "blocks=[99]"])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as stop:
        train.main()
    assert stop.value.code == 2 and "blocks of the model, 0 to 4" in " ".join(capsys.readouterr().err.split())
