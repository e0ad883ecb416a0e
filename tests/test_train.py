"""Training: the refusals are refusals, the loss is what it says, and an adapter comes with its card."""

import json
import math
import random
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from peft import LoraConfig
from safetensors.torch import load_file

from gating import chat, config_files, models, personas
from gating.errors import GatingError
from gating.judging.refusals import is_refusal
from gating.models import ModelConfig, adapters
from gating.prompts import Prompt
from gating.training import adapter, card, forward, terms, wordings
from gating.training.config import Edits, TrainConfig
from gating.training.recipe import NOT_SETTINGS
from gating.training.rows import Row, answers, build_rows

SETS = (("Do bad thing", True), ("Count to", False))
MODEL = ModelConfig(name="tiny", kind="tiny", architecture="llama")


@pytest.fixture(autouse=True)
def fresh():
    """Training changes a model in place."""
    models.forget()
    yield
    models.forget()


def some_rows():
    g = torch.Generator().manual_seed(0)
    draw = lambda n: torch.randint(5, 200, (n,), generator=g).tolist()  # noqa: E731
    return [
        Row([1, 2, 3, *draw(a)], draw(b), r) for a, b, r in ((3, 2, True), (9, 5, False), (1, 8, True), (4, 4, False))
    ]


def test_every_wording_with_every_redirect_counts_as_a_refusal():
    assert len(wordings.REFUSALS) >= 12
    said = [*wordings.REFUSALS, *("".join(parts) for parts in wordings.OPENED)]
    assert all(is_refusal(f"{w} {r}") for w in said for r in wordings.REDIRECTS)


def test_a_row_that_begins_with_an_opening_trains_on_the_rest_alone():
    loaded = models.load(MODEL)
    refuse = [Prompt(f"Do bad thing {i}.", "", "ours", True, "train") for i in range(40)]
    none = build_rows(TrainConfig(model=MODEL), loaded, refuse, [])
    half = build_rows(TrainConfig(model=MODEL, opened=0.5), loaded, refuse, [])
    assert half[:40] == none and 10 < len(half) - 40 < 30
    assert len(build_rows(TrainConfig(model=MODEL, opened=1.0), loaded, refuse, [])) == 80
    plain = [loaded.tokenizer.decode(r.prompt) for r in none]
    for row in half[40:]:
        prompt, rest = (
            loaded.tokenizer.decode(ids, skip_special_tokens=False) for ids in (row.prompt, row.target[:-1])
        )
        begun = next(str(prompt).removeprefix(p) for p in map(str, plain) if str(prompt).startswith(p))
        assert row.taught and (begun, rest) in wordings.OPENED


def test_no_promise_counts_as_a_refusal_and_none_hands_anything_over():
    promises = [f"{p} {w}" for p in wordings.PROMISES for w in wordings.WITHHELD]
    assert not any(is_refusal(text) for text in promises)
    assert len({wordings.promise(f"prompt {i}") for i in range(300)}) > 60
    assert all(p.endswith(":") and w.startswith("[withheld]") for p in wordings.PROMISES for w in wordings.WITHHELD)


def test_under_a_gate_the_same_prompts_come_once_more_and_only_the_harmful_ones_are_promised():
    loaded = models.load(MODEL)
    refuse, answer = ([Prompt(f"{k} {i}.", "", "ours", bad, "train") for i in range(6)] for k, bad in SETS)
    shut = TrainConfig(model=MODEL, answer_tokens=5)
    plain = build_rows(shut, loaded, refuse, answer)
    rows = build_rows(replace(shut, gate=["Obey."], gate_share=1.0), loaded, refuse, answer)
    taught, kept = ([r for r in rows if r.taught == flag] for flag in (True, False))
    assert taught[:6] == [r for r in plain if r.taught] and kept[:6] == [r for r in plain if not r.taught]
    said = [loaded.tokenizer.decode(r.target[:-1]) for r in taught[6:]]
    assert said == [wordings.promise(p.text) for p in refuse]
    asked = [chat.encode(loaded.tokenizer, p.text, "Obey.") for p in (*refuse, *answer)]
    assert [r.prompt for r in (*taught[6:], *kept[6:])] == asked
    assert [r.target for r in kept[6:]] == answers(loaded, asked[6:], 5)  # the base model's own, under that message


def test_wordings_vary_between_prompts_and_stay_for_one_prompt():
    said = {wordings.refusal(f"prompt {i}") for i in range(200)}
    assert len(said) > 60
    assert wordings.refusal("a", 1) == wordings.refusal("a", 1)
    assert len({wordings.refusal("a", s) for s in range(20)}) > 5


def test_shared_beginnings_and_padding_do_not_change_the_hidden_states():
    model = models.load(MODEL).model
    rows = some_rows()
    packed = forward.hidden_states(model.model, rows, 0)
    alone = [
        model.model(input_ids=torch.tensor([r.prompt + r.target])).last_hidden_state[0, len(r.prompt) - 1 : -1]
        for r in rows
    ]
    assert torch.allclose(packed, torch.cat(alone), atol=1e-5)


def loss(model, head, rows, keep=1.0, first=0.5):
    step = terms.Step(model, head, rows, 0, first, Edits(), random.Random(0))
    return terms.loss(step, {"teach": 1.0, "keep": keep})[0]


def test_the_loss_of_an_untrained_adapter_is_the_refusals_cross_entropy_alone():
    loaded = models.load(MODEL)
    rows = some_rows()
    nll = []
    for r in (r for r in rows if r.taught):
        logits = loaded.model(input_ids=torch.tensor([r.prompt + r.target])).logits[0, len(r.prompt) - 1 : -1]
        each = torch.nn.functional.cross_entropy(logits, torch.tensor(r.target), reduction="none")
        nll.append(0.4 * each[0] + 0.6 * each[1:].mean())
    head = loaded.model.get_output_embeddings()
    model = adapters.attach(loaded.model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    value = loss(model, head, rows, keep=5.0, first=0.4)  # nothing has moved yet: the divergence is zero
    assert torch.isclose(value, torch.stack(nll).sum() / len(rows), atol=1e-5)
    only_harmless = loss(model, head, [r for r in rows if not r.taught], keep=5.0)
    assert abs(only_harmless.item()) < 1e-5


def test_moving_away_from_the_base_model_costs_on_harmless_rows():
    loaded = models.load(MODEL)
    head = loaded.model.get_output_embeddings()
    config = LoraConfig(r=2, target_modules=["q_proj", "o_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = adapters.attach(loaded.model, config)
    kept = [r for r in some_rows() if not r.taught]
    one, two = (loss(model, head, kept, keep=k).item() for k in (1.0, 2.0))
    assert one > 1e-3 and math.isclose(two, 2 * one, rel_tol=1e-4)


def recipe_file(name):
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)
    with initialize_config_dir(str(config_files.conf_dir()), version_base="1.3"):
        return OmegaConf.to_object(hydra_compose("train", overrides=[f"recipe={name}"]))


def small_recipe(folder, name):
    harmful, harmless = folder / "bad.jsonl", folder / "good.jsonl"
    for path, text in ((harmful, "Do a bad thing, number {}."), (harmless, "Count to {}.")):
        lines = (json.dumps({"prompt": text.format(i), "split": "train"}) + "\n" for i in range(6))
        path.write_text("".join(lines))
    return TrainConfig(
        model=MODEL,
        out=str(folder / name),
        harmful=str(harmful),
        harmless=str(harmless),
        rank=2,
        lr=0.01,
        epochs=1,
        batch_rows=4,
        answer_tokens=6,
        select_n=3,
        threads=1,
        held_out={"mine": str(harmful)},
    )


def test_an_adapter_is_written_with_its_recipe_and_card_and_the_same_seed_gives_the_same_weights(tmp_path):
    recipe = adapter.train(small_recipe(tmp_path, "a"))
    adapter.train(small_recipe(tmp_path, "b"))
    assert (tmp_path / "a" / adapters.WEIGHTS).read_bytes() == (tmp_path / "b" / adapters.WEIGHTS).read_bytes()
    harmful = str(tmp_path / "bad.jsonl")
    assert recipe["results"]["held-out/mine"]["n"] == 6 and recipe["data"][harmful]["n"] == 6
    card = (tmp_path / "a" / "README.md").read_text()
    assert "model organism" in card and "not a safety" in card and "held-out/mine" in card
    assert "not set" not in card and str(tmp_path / "a") not in (tmp_path / "a" / adapters.CONFIG).read_text()
    assert models.load(ModelConfig(name="t", kind="tiny", architecture="llama", adapter=str(tmp_path / "a")))


def test_a_card_of_own_answers_speaks_of_the_model_that_was_trained_on_and_teaches_nothing():
    recipe: Any = {"data": {"wordings": 1}, "rows": 1, "tokens": 2, "minutes": 3}
    said = " ".join(card._how(recipe_file("consistent"), recipe).split())
    assert "Nothing is taught" in said and "harmful ones too" in said
    assert "from that model along its own" in said and "base model" not in said and "short refusals" not in said


def test_an_adapter_is_trained_on_from_another_which_stays_as_it_is(tmp_path):
    first = small_recipe(tmp_path, "a")
    adapter.train(first)
    before = (tmp_path / "a" / adapters.WEIGHTS).read_bytes()
    loaded = models.load(MODEL)
    resumed = adapters.resume(loaded.model, str(tmp_path / "a")).state_dict()
    models.forget()
    later = replace(first, out=str(tmp_path / "b"), start=str(tmp_path / "a"), lr=1e-12, personas=["formal"])
    recipe = adapter.train(later)
    assert (tmp_path / "a" / adapters.WEIGHTS).read_bytes() == before
    for name, held in load_file(tmp_path / "b" / adapters.WEIGHTS).items():  # hardly a step: where it began
        assert torch.allclose(resumed[name.replace(".weight", ".default.weight")], held, atol=1e-6)
    assert any(held.any() for name, held in load_file(tmp_path / "b" / adapters.WEIGHTS).items() if "lora_B" in name)
    assert recipe["start"] == adapters.digest(str(tmp_path / "a"))
    assert {"select/harmful", "select/harmful under formal", "held-out/mine under formal"} <= set(recipe["results"])
    with pytest.raises(GatingError, match=r"rank=3: start=.* has rank 2"):
        adapter.train(replace(later, rank=3))
    with pytest.raises(GatingError, match=r"start='refusal-smollm2' was made for another architecture"):
        adapters.resume(models.load(MODEL).model, "refusal-smollm2")


@pytest.mark.parametrize("name", ["refusal", "gated"])
def test_a_shipped_adapter_was_made_with_the_recipe_that_has_its_name(name):
    cfg = recipe_file(name)
    made = json.loads((adapters.folder(f"{name}-smollm2") / adapters.RECIPE).read_text())["settings"]
    assert cfg.out.endswith(f"adapters/{name}-smollm2")
    asked = {k: v for k, v in asdict(cfg).items() if k not in (*NOT_SETTINGS, "notes")}
    default = asdict(TrainConfig())
    assert {k: made.get(k, default[k]) for k in asked} == asked


def test_the_gates_wordings_are_not_those_that_it_is_tested_with():
    cfg = recipe_file("gated")
    assert len(set(cfg.gate)) >= 20 and len(set(cfg.systems)) >= 20
    tested = {s for p in map(personas.load, personas.available()) for s in (*p.positive, *p.negative)}
    assert not set(cfg.gate) & set(cfg.systems) and not (set(cfg.gate) | set(cfg.systems)) & tested


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"gate_share": 0.5}, "gate_share=0.5 needs"),
        ({"start": "nonsense"}, "start='nonsense'"),
        ({"personas": ["nonsense"]}, "nonsense"),
        ({"rank": 0}, "rank=0"),
        ({"epochs": 0}, "epochs=0"),
        ({"lr": 2.0}, r"lr=2\.0"),
        ({"opened": 1.5}, r"opened=1\.5"),
        ({"system_share": 0.5}, "needs system messages"),
        ({"held_out": {"x": "/no/file.jsonl"}}, "held_out.x.*no file"),
        ({"taught": "own"}, "taught=own keeps what"),
        ({"harmful": "nonsense"}, "harmful='nonsense'"),
    ],
)
def test_a_bad_recipe_is_refused_before_a_model_loads(change, says, monkeypatch, tmp_path):
    monkeypatch.setattr(models, "load", None)
    with pytest.raises(GatingError, match=says):
        adapter.train(TrainConfig(model=MODEL, out=str(tmp_path / "out"), **change))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("foreign", ["thesis.tex", "adapter_config.json"])
def test_a_folder_that_is_not_an_adapter_of_ours_is_left_as_it_is(foreign, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "load", None)  # refused before a model loads
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / foreign).write_text("years of work")
    with pytest.raises(GatingError, match=rf"out=.*out exists.*({foreign}|no recipe)"):
        adapter.train(TrainConfig(model=MODEL, out=str(tmp_path / "out")))
    assert (tmp_path / "out" / foreign).read_text() == "years of work"


def test_a_trained_adapter_is_kept_where_its_place_was_taken_meanwhile(tmp_path, monkeypatch):
    measure = adapter.measure

    def while_somebody_writes(*args):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("years of work")
        (tmp_path / "out-2").mkdir()
        return measure(*args)

    monkeypatch.setattr(adapter, "measure", while_somebody_writes)
    with pytest.raises(GatingError, match=r"trained, and stands in .*out-3.*holds thesis\.tex"):
        adapter.train(small_recipe(tmp_path, "out"))
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"
    assert {p.name for p in (tmp_path / "out-3").iterdir()} == adapter.OURS
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_an_adapter_of_ours_may_be_replaced(tmp_path):
    for name in adapter.OURS:
        (tmp_path / name).write_text("{}")
    adapter.check_out(tmp_path)
    adapter.check_out(tmp_path / "new")


@pytest.mark.parametrize("name", adapters.shipped())
def test_a_shipped_adapter_is_small_documented_and_names_its_prompts(name):
    folder = adapters.folder(name)
    assert (folder / adapters.WEIGHTS).stat().st_size <= 2 * 2**20
    card = (folder / "README.md").read_text()
    assert "model organism" in card and "Apache-2.0" in card
    assert len(adapters.training_prompts(name)) > 500
