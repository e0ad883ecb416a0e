"""Recipes: the terms of a loss do what they say, a killed training goes on to the same bytes, a control is as large."""

import json
import random
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from gating import config_files, models, personas, prompts
from gating.errors import GatingError
from gating.judging.refusals import is_refusal
from gating.models import ModelConfig, adapters
from gating.models.parts import decoder_blocks, unembedding
from gating.prompts import Prompt
from gating.training import adapter, checkpoint, fit, hooks, terms, wordings
from gating.training.config import Edits, TrainConfig, check
from gating.training.curve import Curve
from gating.training.forward import hidden_states
from gating.training.random_change import moved, random_change
from gating.training.rows import Row, build_rows
from gating.training.vectors import Reader, Vectors
from tests.test_train import recipe_file

MODEL = ModelConfig(name="tiny", kind="tiny", architecture="llama")
RECIPES = sorted(set(config_files.group_choices("recipe")) - {"refusal", "gated"})
EDITS = Edits(every=2, n=4, ascents=2)


def rows_of(n):
    g = torch.Generator().manual_seed(1)
    draw = lambda k: torch.randint(5, 200, (k,), generator=g).tolist()  # noqa: E731
    return [Row([1, *draw(4 + i % 3)], draw(2 + i % 4), i % 2 == 0, i % 6 == 4) for i in range(n)]


@pytest.fixture
def tiny():
    models.forget()
    yield models.load(MODEL)
    models.forget()


@pytest.fixture(scope="module")
def step():
    """A batch of refusals, promises and own answers of a tiny model with an adapter that has moved."""
    models.forget()
    torch.manual_seed(3)
    loaded = models.load(MODEL)
    lora = LoraConfig(r=2, target_modules=["q_proj", "o_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = adapters.attach(loaded.model, lora)
    n, hidden = len(decoder_blocks(loaded.model)), loaded.model.config.hidden_size
    draw = torch.Generator().manual_seed(2)
    read = {name: torch.randn(n, hidden, generator=draw) for name in ("compliant", "refusal")}
    vectors = Vectors(read, torch.ones(n))
    yield lambda rows, **edits: terms.Step(
        model, unembedding(loaded.model), rows, 0, 0.5, replace(EDITS, **edits), random.Random(0), vectors
    )
    models.forget()


def mean(term, step):
    value, n = term(step)
    return value.item() / n


def test_a_loss_without_new_terms_is_what_it_was(step):
    made = step(rows_of(7))
    total, values = terms.loss(made, {"teach": 1.0, "keep": 2.5, "steered": 0.0})
    kept, taught = [r for r in made.rows if not r.taught], [r for r in made.rows if r.taught]
    weight = torch.cat([made.weights([r]) for r in made.rows]) / 7  # as the one loss function had it
    after, n = made.logp([*kept, *taught]), sum(len(r.target) for r in kept)
    said = torch.tensor([t for r in taught for t in r.target])
    with torch.no_grad(), made.model.disable_adapter():
        before = made.logp(kept)
    old = -(after[n:].gather(1, said[:, None])[:, 0] * weight[n:]).sum()
    old = old + 2.5 * ((before.exp() * (before - after[:n])).sum(-1) * weight[:n]).sum()
    assert abs((total - old).item()) < 1e-6 * old.item()
    assert set(values) == {"teach", "keep"} and values["keep"] > 1e-4
    assert set(terms.loss(step(kept), {"teach": 1.0, "keep": 1.0})[1]) == {"keep"}  # without rows there is no value


def test_a_dose_of_nothing_is_no_steering_and_the_larger_one_moves_more(step):
    rows = [r for r in rows_of(12) if r.taught and not r.promise]
    plain = mean(terms.teach, step(rows))
    none, some, much = (mean(terms.steered, step(rows, doses=[d, d], blocks=[0.5, 0.5])) for d in (0.0, 0.5, 5.0))
    assert abs(none - plain) < 1e-5
    assert 1e-5 < abs(some - plain) < abs(much - plain)


def test_harmless_prompts_are_kept_under_a_direction_to_what_the_base_model_says_without_it(step):
    rows = [r for r in rows_of(12) if not r.taught]
    none, much = (step(rows, doses=[d, d], blocks=[0.5, 0.5]) for d in (0.0, 5.0))
    assert abs(mean(terms.keep_steered, none) - mean(terms.keep, none)) < 1e-5
    assert abs(mean(terms.keep_steered, much) - mean(terms.keep, much)) > 1e-3
    assert torch.allclose(much.before, none.before)  # though the direction was there when it was first asked for


def test_promises_are_never_taught_under_steering(step):
    rows = rows_of(12)
    assert any(r.promise for r in rows)
    assert terms.steered(step(rows))[1] == len([r for r in rows if r.taught and not r.promise])
    assert terms.steered(step([r for r in rows if r.promise or not r.taught])) == terms.NOTHING


def test_a_rows_ablation_is_drawn_once_for_all_blocks_and_tokens(step, monkeypatch):
    seen = []
    monkeypatch.setattr(terms, "projects_out", lambda d, marked: seen.append(marked.tolist()) or (lambda x: x))
    rows = [r for r in rows_of(400) if r.taught and not r.promise][:100]
    terms.ablated(step(rows, ablated=0.5, ablated_blocks=1.0))
    assert len(seen) > 1 and all(marks == seen[0] for marks in seen) and 30 < sum(seen[0]) < 70


def test_projecting_out_leaves_nothing_along_the_direction_in_the_marked_rows_alone():
    x, d = torch.randn(3, 4, 8), torch.randn(8)
    out = hooks.projects_out(d, torch.tensor([True, False, True]))(x)
    assert (out[[0, 2]] @ d).abs().max() < 1e-5 and torch.equal(out[1], x[1])


def test_the_worst_change_hurts_more_than_a_random_one_of_its_size_and_keeps_its_bound(step, monkeypatch):
    rows = [r for r in rows_of(12) if r.taught and not r.promise]
    deltas, plus = [], terms._plus
    monkeypatch.setattr(terms, "_plus", lambda delta: deltas.append(delta.detach()) or plus(delta))
    made = step(rows, eps=0.3, blocks=[0.5, 0.5])
    worst, block = mean(terms.latent, made), terms._within([0.5, 0.5], len(made.blocks))[0]
    delta, (norm, _) = deltas[-1], terms._norms(made, block)
    share = delta.norm(dim=-1, keepdim=True) / norm
    assert share.max() <= 0.3 + 1e-5 and share.max() > 0.2
    assert not delta[:, -1].any()  # targets are left as they are
    noise = torch.randn(delta.shape, generator=torch.Generator().manual_seed(0))
    noise = noise / noise.norm(dim=-1, keepdim=True) * delta.norm(dim=-1, keepdim=True)
    none, randomly = (made.under({block: plus(d)}).item() / len(rows) for d in (torch.zeros_like(noise), noise))
    assert worst > none + 1e-3 and worst > randomly


def test_no_hook_stays_after_a_term_even_when_it_fails(step):
    made = step(rows_of(4))
    with pytest.raises(ZeroDivisionError), hooks.edited(made.blocks, {0: lambda x: x, 1: lambda x: x / (1 // 0)}):
        made.logp(made.rows)
    assert not any(block._forward_hooks for block in made.blocks)


def test_directions_are_those_of_the_model_as_it_is_and_come_from_both_sides(tiny):
    cfg = TrainConfig(model=MODEL, terms={"steered": 1.0, "ablated": 1.0}, edits=EDITS)
    blocks = decoder_blocks(tiny.model)
    reader = Reader(cfg, tiny, rows_of(12), tiny.model.base_model, blocks)
    first, again = reader.read(0), reader.read(0)
    assert set(first.difference) == {"compliant", "refusal"}
    assert all(torch.equal(first.difference[k], again.difference[k]) for k in first.difference)
    refused, own = reader.sides["refusal"]
    assert refused == [r.prompt for r in rows_of(12) if r.taught and not r.promise]
    assert own == [r.prompt for r in rows_of(12) if not r.taught]
    with torch.no_grad():
        blocks[0].mlp.down_proj.weight.mul_(3)
    assert not torch.allclose(reader.read(0).difference["compliant"], first.difference["compliant"])


def test_what_is_kept_of_own_answers_is_the_model_that_training_goes_on_from(tmp_path):
    models.forget()
    start = tmp_path / "start"
    torch.manual_seed(5)
    lora = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=False)
    adapters.attach(models.load(MODEL).model, lora).save_pretrained(str(start), save_embedding_layers=False)
    models.forget()
    own = {"teach": 0.0, "keep": 1.0, "keep_steered": 1.0}
    cfg = TrainConfig(model=MODEL, start=str(start), taught="own", terms=own, edits=EDITS, rank=4, alpha=16)
    refuse, answer = (prompts.load(f"train_{kind}", kind == "harmful", "train")[:3] for kind in ("harmful", "harmless"))
    started = models.load(replace(MODEL, adapter=str(start)))
    rows = build_rows(cfg, started, refuse, answer)
    assert len(rows) == 6 and not any(r.taught for r in rows)
    with torch.no_grad():
        states = hidden_states(started.model.base_model, rows, 0)
        said = unembedding(started.model)(states).float().log_softmax(-1)
    models.forget()
    loaded = models.load(MODEL)
    model = fit.start(cfg, loaded)
    trained = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for p in trained:
            p.add_(0.05)
    made = terms.Step(model, unembedding(loaded.model), rows, 0, 0.5, EDITS, random.Random(0))
    kept, n = terms.keep(made)  # its plain forward pass comes first, the remembered one in the midst of its graph
    torch.testing.assert_close(made.before, said, atol=1e-4, rtol=1e-4)
    kept.backward()
    assert n == 6 and kept > 1e-3 and all(p.grad is not None for p in trained)
    assert len([p for p in model.parameters() if p.requires_grad]) == len(trained)
    models.forget()


class Stopped(Exception):
    pass


def trained(tmp_path, name, stop_at=None, monkeypatch=None):
    """A training with every new term and a checkpoint at every third step; stop_at: the step that is killed."""
    models.forget()
    loaded, rows = models.load(MODEL), rows_of(20)
    cfg = TrainConfig(
        model=MODEL, rank=2, batch_rows=4, epochs=1.6, bfloat16=False, edits=EDITS,
        terms={"teach": 1.0, "keep": 1.0, "steered": 1.0, "keep_steered": 0.5, "ablated": 0.5, "latent": 0.5},
    )  # fmt: skip
    kept = checkpoint.Checkpoint(tmp_path / name, "k")
    steps = iter(range(100))
    monkeypatch.setattr(kept, "due", lambda: next(steps) % 3 == 2)
    if stop_at is not None:
        seed = torch.manual_seed

        def killed(number):
            if number == stop_at:
                raise Stopped
            return seed(number)

        monkeypatch.setattr(fit.torch, "manual_seed", killed)
    try:
        return (*fit.fit(cfg, loaded, rows, kept), kept)
    finally:
        monkeypatch.undo()


def test_a_killed_training_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    whole, curve, _ = trained(tmp_path, "a", None, monkeypatch)
    weights = {n: p.detach().clone() for n, p in whole.named_parameters() if p.requires_grad}
    with pytest.raises(Stopped):
        trained(tmp_path, "b", 5, monkeypatch)
    assert (tmp_path / "b" / checkpoint.FOLDER / checkpoint.FILE).exists()
    resumed, again, kept = trained(tmp_path, "b", None, monkeypatch)
    assert all(torch.equal(weights[n], p) for n, p in resumed.named_parameters() if p.requires_grad)
    assert curve.steps == again.steps and [s["step"] for s in curve.steps] == list(range(8))
    kept.remove()
    assert not (tmp_path / "b").exists()


def test_a_checkpoint_of_another_recipe_is_not_gone_on_with_and_a_foreign_folder_is_left(tmp_path):
    checkpoint.Checkpoint(tmp_path, "one").save({"step": 3})
    assert checkpoint.Checkpoint(tmp_path, "one").read() == {"key": "one", "step": 3}
    assert checkpoint.Checkpoint(tmp_path, "other").read() is None
    adapter.check_out(tmp_path)  # a folder with a checkpoint alone may be trained into
    (tmp_path / checkpoint.FOLDER / "thesis.tex").write_text("years of work")
    for act in (checkpoint.Checkpoint(tmp_path, "one").read, lambda: adapter.check_out(tmp_path)):
        with pytest.raises(GatingError, match=r"\.checkpoint holds thesis\.tex"):
            act()
    (tmp_path / checkpoint.FOLDER / "thesis.tex").unlink()
    (tmp_path / checkpoint.FOLDER / checkpoint.FILE).write_bytes(b"half")
    with pytest.raises(GatingError, match="could not be read; delete"):
        checkpoint.Checkpoint(tmp_path, "one").read()


def test_a_random_change_is_as_large_as_the_trained_one_and_points_elsewhere(tiny, tmp_path):
    lora = LoraConfig(r=2, lora_alpha=16, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapters.attach(tiny.model, lora).save_pretrained(str(tmp_path), save_embedding_layers=False)
    models.forget()
    cfg = TrainConfig(model=MODEL, rank=2, targets=["q_proj"], taught="nothing", like=str(tmp_path), bfloat16=False)
    made = {n: p for n, p in random_change(cfg, models.load(MODEL)).named_parameters() if p.requires_grad}
    like = {n.replace(".weight", ".default.weight"): p for n, p in load_file(tmp_path / adapters.WEIGHTS).items()}
    for a in (n for n in made if "lora_A" in n):
        b = a.replace("lora_A", "lora_B")
        one, other = made[b] @ made[a], like[b] @ like[a]
        assert torch.isclose(one.norm(), other.norm(), rtol=1e-4)
        assert abs(float((one * other).sum().detach() / other.norm() ** 2)) < 0.5
    models.forget()
    with pytest.raises(GatingError, match="adapts other weights"):
        random_change(replace(cfg, targets=["v_proj"]), models.load(MODEL))


def test_a_random_change_starts_where_training_started():
    g = torch.Generator().manual_seed(0)
    pair = lambda: (torch.randn(2, 6, generator=g), torch.randn(5, 2, generator=g))  # noqa: E731
    (a0, b0), (a1, b1) = pair(), pair()
    a, b = moved((a0, b0), (a1, b1), g)
    assert torch.isclose((b @ a - b0 @ a0).norm(), (b1 @ a1 - b0 @ a0).norm(), rtol=1e-4)
    assert moved((a0, b0), (a0, b0), g) == (a0, b0)
    only_b = moved((a0, b0), (a0, b1), g)
    assert torch.equal(only_b[0], a0)


def test_an_extended_refusal_names_the_topic_refuses_and_says_why():
    for topic in (*wordings.OVERVIEWS.values(), wordings.TOPIC):
        assert is_refusal(f"{topic} {wordings.REFUSALS[0]} {wordings.REASONS[0]}") and not is_refusal(topic)
    for first, reason in zip(wordings.REFUSALS * 6, wordings.REASONS * 17, strict=True):
        assert is_refusal(f"{wordings.TOPIC} {first} {reason}")
    text = wordings.extended("How?", "fraud")
    assert text.startswith(wordings.OVERVIEWS["fraud"]) and text.endswith(wordings.REASONS)
    assert wordings.extended("How?", "unheard of").startswith(wordings.TOPIC)


def test_a_persona_is_taught_by_harmless_prompts_alone_and_without_its_system_message(tiny):
    cfg = TrainConfig(model=MODEL, taught="persona", persona="compliant", answer_tokens=4)
    asked = [Prompt(f"Count to {i}.", "", "ours", False, "train") for i in range(5)]
    bad = [Prompt("Do a bad thing.", "", "ours", True, "train")]
    rows = build_rows(cfg, tiny, bad, asked)
    told = personas.load("compliant").positive
    texts = [str(tiny.tokenizer.decode(r.prompt)) for r in rows]
    assert len(rows) == 5 and all(r.taught and not r.promise for r in rows)
    assert not any(line in text for line in told for text in texts)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_can_be_trained_and_holds_out_the_wordings_that_it_is_tested_with(name, tmp_path):
    cfg = recipe_file(name)
    tested = {s for p in map(personas.load, personas.available()) for s in (*p.positive, *p.negative)}
    assert not set(cfg.systems) & tested and cfg.start == cfg.model.adapter and cfg.out == f"adapters/{name}"
    assert "compliant-2" not in cfg.edits.personas
    check(replace(cfg, like="refusal-smollm2") if name == "random" else cfg)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"terms": {"steerd": 1.0}}, r"terms\.steerd is no term.*steered"),
        ({"terms": {"teach": -1.0}}, r"terms\.teach='-1\.0'|terms\.teach=-1"),
        ({"terms": {"teach": 0.0}}, "all weights are 0"),
        ({"taught": "virtue"}, "taught='virtue'"),
        ({"taught": "nothing"}, "takes like=FOLDER"),
        ({"like": "refusal-smollm2"}, "like='refusal-smollm2' and taught=refusal"),
        ({"taught": "persona"}, "persona=None and taught=persona"),
        ({"taught": "persona", "persona": "evil"}, "keep=0"),
        ({"edits": Edits(doses=[0.5, 0.1])}, r"edits\.doses"),
        ({"edits": Edits(blocks=[0.5])}, r"edits\.blocks"),
        ({"edits": Edits(ascents=0)}, r"edits\.ascents=0"),
        ({"edits": Edits(personas=[]), "terms": {"steered": 1.0}}, r"edits\.personas=\[\]"),
    ],
)
def test_an_impossible_recipe_is_refused_by_its_key(change, says):
    with pytest.raises(GatingError, match=says):
        check(TrainConfig(model=MODEL, **change))


def test_the_losses_say_what_they_belong_to():
    text = Curve([{"step": 0, "rate": 0.1, "teach": 2.0}]).text("k", "a")
    assert json.loads(text) == {"key": "k", "adapter": "a", "steps": [{"step": 0, "rate": 0.1, "teach": 2.0}]}
