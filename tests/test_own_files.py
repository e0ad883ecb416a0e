"""Settings of a user's own: a model's file named by its path, and a folder of them given as --config-dir."""

import sys

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra

from gating import cli, train
from gating.errors import GatingError
from tests.conftest import compose

MINE = {
    "name": "mine", "kind": "tiny", "architecture": "llama", "max_new_tokens": 2, "first_token_openings": ["No"],
    "steer": {"layers": 1, "coef": 3.0},
}  # fmt: skip


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/experiment").mkdir()
    for path in ("mine.yaml", "it's, mine.yaml", "smollm.yaml", "conf/model/other.yaml"):
        (tmp_path / path).write_text(yaml.safe_dump(MINE))
    (tmp_path / "conf/experiment/short.yaml").write_text("# @package _global_\ndata: {n: 1}\n")
    yield
    cli.words([])  # the folders of this command line are no other's


def test_a_models_file_is_a_choice_of_the_model_group():
    run, chosen, _ = compose(*cli.words(["model=./mine.yaml"]))
    assert chosen["model"] == "mine"
    assert run.model.first_token_openings == ["No"] and run.model.architecture == "llama"
    assert (run.steer.layers, run.model.steer.coef, run.model.batch_rows) == (1, 3.0, 64)


def test_a_folder_of_choices_is_known_with_its_models_and_experiments(command):
    code, lines = command("--config-dir", "conf", "model=other", "experiment=short", "dry_run=true")
    assert code == 0, lines
    assert lines[-1].startswith("store: runs/other-short-") and any("rows: 16 = 2 prompts" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "become"),
    [
        (["model=it's, mine.yaml"], ["model=it-s--mine"]),  # a path's commas and quotes are its own
        (["model=smollm.yaml"], ["model=smollm-file"]),  # not the shipped one of that name
        (["-m", "model=mine.yaml,tiny-qwen"], ["-m", "model=mine,tiny-qwen"]),
        (["-cd", "conf", "model=other"], ["--config-dir=conf", "model=other"]),
    ],
)
def test_paths_and_folders_are_taken_as_they_are_written(words, become):
    assert cli.words(words) == become


@pytest.mark.parametrize(
    ("content", "words", "why"),
    [
        ("- 1\n", ["model=bad.yaml"], "the file must hold settings"),
        ("name: [\n", ["model=bad.yaml"], "not valid YAML"),
        ("", ["model=absent.yaml"], "there is no file absent.yaml"),
        ("", ["--config-dir", "absent"], "there is no folder absent"),
        ("", ["--config-dir", "conf", "model=absent"], "or tiny-qwen"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, content, words, why):
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(GatingError, match=why):
        cli.words(words)


def test_a_key_of_the_file_that_nothing_reads_is_refused(tmp_path, command):
    (tmp_path / "bad.yaml").write_text("kind: tiny\nlayer: 3\n")
    code, lines = command("model=bad.yaml", "dry_run=true")
    assert code == 2 and "model.layer is not a setting" in " ".join(lines)


def test_a_folders_choice_with_a_shipped_name_is_refused(tmp_path):
    (tmp_path / "conf/model/smollm.yaml").write_text(yaml.safe_dump(MINE))
    with pytest.raises(GatingError, match="there is a model=smollm already"):
        cli.words(["--config-dir", "conf"])


def test_training_takes_a_models_file_too(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gating.train", "model=mine.yaml", "blocks=[99]"])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as stop:
        train.main()
    assert stop.value.code == 2 and "blocks of the model, 0 to 4" in " ".join(capsys.readouterr().err.split())
