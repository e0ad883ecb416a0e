"""A run's key covers the contents of all that determines its result, and nothing else."""

import json
import os
import shutil
from pathlib import Path

import pytest
import safetensors.torch

from gating import models, personas, store
from gating.errors import GatingError
from gating.models import digests
from gating.pipeline import execute, key, study
from tests.conftest import compose

SETTINGS = ("data.n=3", "controls.random=1", "directions.questions=2", "max_new_tokens=3")
DATED = "{{ strftime_now('%d %b %Y') }}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A tiny Llama saved as a model folder, with its chat template in a file; digests are kept in a folder of ours."""
    monkeypatch.setenv("GATING_CACHE", str(tmp_path / "cache"))
    loaded = models.load(compose("model=tiny-llama")[0].model)
    for part in (loaded.model, loaded.tokenizer):
        part.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "chat_template.jinja").is_file()
    yield tmp_path / "model"
    models.forget()


@pytest.fixture
def plan(folder, tmp_path):
    prompts = tmp_path / "asked.jsonl"
    prompts.write_text("".join(f'{{"prompt": "What is {i} + {i}?"}}\n' for i in range(5)))

    def go(*overrides):
        mine = (
            "model=hf",
            f"model.id={folder}",
            "data=file",
            f"data.harmful={prompts}",
            f"runs_dir={tmp_path / 'runs'}",
        )
        return study.prepare(*compose(*mine, *SETTINGS, *overrides))

    return go


def negate_weights(folder):
    path = folder / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    size = path.stat().st_size
    safetensors.torch.save_file({k: -v for k, v in weights.items()}, path, metadata={"format": "pt"})
    assert path.stat().st_size == size


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


CONTENTS = {
    "weights": negate_weights,
    "chat template": lambda f: edit(f / "chat_template.jinja", "assistant", "Assistant"),
    "tokenizer": lambda f: edit(f / "tokenizer.json", '"normalizer": null', '"normalizer": {"type": "Lowercase"}'),
    "model configuration": lambda f: edit(f / "config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'),
    "prompts": lambda f: edit(f.parent / "asked.jsonl", "What", "Why"),
    "when generation stops": lambda f: edit(f / "generation_config.json", '"eos_token_id": 2', '"eos_token_id": 3'),
}


@pytest.mark.parametrize("what", CONTENTS)
def test_other_contents_under_the_same_names_are_a_run_of_their_own(folder, plan, what):
    before = plan().key
    CONTENTS[what](folder)
    assert plan().key != before


@pytest.mark.parametrize("name", ["numpy", "scikit-learn", "torch", "transformers", "nnsight"])
def test_another_version_of_what_computes_is_a_run_of_its_own(plan, monkeypatch, name):
    before, installed = plan().key, store.versions()
    monkeypatch.setattr(store, "versions", lambda: {**installed, name: "0.0.1"})
    assert plan().key != before


def test_code_that_computes_otherwise_gives_another_digest_and_a_comment_does_not():
    source = '"""Doc."""\nX = 1  # one\n\n\ndef f(x):\n    """What."""\n    return x + 1\n'
    same = 'X = 1\n\n# more\ndef f(x):\n    """How."""\n\n    return (x +\n        1)\n'
    assert key._without_words(source) == key._without_words(same)
    assert key._without_words(source) != key._without_words(same.replace("1)", "2)"))


def test_every_module_that_computes_is_in_the_digest(monkeypatch):
    assert all((key.PACKAGE / part).exists() for part in (*key.CODE, *key.NOT_CODE))
    names = {p.relative_to(key.PACKAGE).as_posix() for p in key.code_files()}
    assert {"chat.py", "steering/ops.py", "judging/refusals.py", "pipeline/extract.py", "models/parts.py"} <= names
    before = key.code()
    monkeypatch.setattr(key, "CODE", key.CODE[1:])
    key.code.cache_clear()
    assert key.code() != before
    key.code.cache_clear()


def test_a_judge_that_filters_is_in_the_key_by_its_content(plan, tmp_path):
    judge = tmp_path / "judge.yaml"
    judge.write_text("kind: rule\nname: mine\n")
    before = plan(f"directions.filter={judge}").key
    judge.write_text("kind: rule\nname: mine\nprompts: harmful\n")
    assert plan(f"directions.filter={judge}").key != before


def test_a_persona_file_is_in_the_key_by_its_content(plan, tmp_path):
    persona, shipped = tmp_path / "mine.yaml", Path(personas.__file__).parent / "compliant.yaml"
    text = shipped.read_text().replace("name: compliant", "name: mine")
    persona.write_text(text)
    before = plan("steer=persona", f"steer.direction={persona}").key
    persona.write_text(text.replace("You are", "You were"))
    assert plan("steer=persona", f"steer.direction={persona}").key != before


def test_what_does_not_determine_a_result_is_not_in_its_key(folder, plan, tmp_path):
    before = plan().key
    (folder / "README.md").write_text("A model.")
    os.utime(folder / "model.safetensors")
    moved, asked = tmp_path / "elsewhere", tmp_path / "other name.jsonl"
    shutil.copytree(folder, moved)
    shutil.copy(tmp_path / "asked.jsonl", asked)
    for same in (
        (), ("runs_dir=other",), ("full_text=true",), ("force=true",), ("dry_run=true",), ("model.device=cpu",),
        ("model.dtype=float32",), (f"model.id={moved}",), ("model.name=short",), (f"data.harmful='{asked}'",),
        ("backend.deadline=9",), ("backend.attempts=2",), ("data.allow_overlap=true",),
    ):  # fmt: skip
        assert plan(*same).key == before, same


def test_the_order_of_a_prompt_file_changes_what_is_compared_only_where_it_changes_who_is_asked(plan, tmp_path):
    before = plan().key
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(reversed(asked.read_text().splitlines(keepends=True))))
    assert plan().key == before


def test_an_edited_template_is_never_mixed_into_a_run_that_was_killed_halfway(folder, plan):
    begun = plan()
    execute.execute(begun)
    store.set_attrs(begun.store, {"status": "running"})
    edit(folder / "chat_template.jinja", "assistant", "Assistant")
    edited = plan()
    assert edited.folder != begun.folder
    assert execute.execute(edited) == "new"


def test_a_finished_run_in_a_folder_that_was_renamed_is_not_opened_as_another(plan):
    finished = plan()
    execute.execute(finished)
    other = plan("seed=1")
    finished.folder.rename(other.folder)
    with pytest.raises(GatingError, match="renamed"):
        execute.execute(other)


def test_a_template_with_todays_date_says_that_tomorrow_is_another_run(folder, plan):
    assert not any("date" in w for w in plan().warnings)
    template = folder / "chat_template.jinja"
    template.write_text(DATED + template.read_text())
    assert any("writes today's date" in w for w in plan().warnings)


def test_a_run_stores_its_threads_and_the_gpus_model(plan):
    planned = plan()
    execute.execute(planned)
    machine = json.loads(store.read_attrs(planned.store)["machine"])
    assert machine["threads"] >= 1 and machine["gpu"] is None


# -------------------------------------------------------------------------------------------------------------- digests
def test_files_are_read_once_and_again_when_they_change_even_if_size_and_mtime_stay(folder, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED", 0.0)
    reads, real = [], digests._hash
    monkeypatch.setattr(digests, "_hash", lambda piece: reads.append(piece) or real(piece))
    first = digests.folder(folder)
    n = len(reads)
    assert digests.folder(folder) == first and n == len(reads) > 3
    weights = folder / "model.safetensors"
    times = weights.stat()
    negate_weights(folder)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert digests.folder(folder) != first
    assert len(reads) == n + 1


def test_a_file_that_was_written_just_now_is_read_again_the_next_time(folder):
    first = digests.folder(folder)
    negate_weights(folder)
    assert digests.folder(folder) != first


def test_a_damaged_memory_of_digests_and_one_that_cannot_be_written_cost_time_only(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED", 0.0)
    first = digests.folder(folder)
    (kept,) = (tmp_path / "cache" / "digests").iterdir()
    for content in ("", "[1]", '{"a": 1}', "\x00", '{"a": [[1], 2]}'):
        kept.write_text(content)
        assert digests.folder(folder) == first
    monkeypatch.setenv("GATING_CACHE", "/dev/null")
    assert digests.folder(folder) == first


def test_a_file_of_several_pieces_is_digested_over_all_of_them_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "PIECE", 4)
    path, out = tmp_path / "x", set()
    for content in (b"aaaabbbbc", b"bbbbaaaac", b"aaaabbbb", b"", b"aaaabbbbd"):
        path.write_bytes(content)
        out.add(digests.file(path))
    assert len(out) == 5


def test_who_labels_the_answers_is_part_of_the_key(plan):
    assert plan().identity.name == plan("judge=learned").identity.name != plan("judge=rule").identity.name
