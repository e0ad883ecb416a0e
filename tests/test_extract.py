"""Directions from a model: roles, answers, filters and missing rows, against the same read off by hand."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import xarray as xr

from gating import chat, store
from gating.errors import GatingError
from gating.models import load
from gating.pipeline import extract, responses, study
from gating.steering.backend import Backend
from tests.conftest import compose
from tests.judged_runs import good

SMALL = ("model=tiny-llama", "data.n=2", "directions.questions=2", "directions.n=4", "controls.random=0")


def prepared(tmp_path, *overrides):
    """A study with an empty store, and its model."""
    planned = study.prepare(*compose(*SMALL, f"runs_dir={tmp_path}", *overrides))
    planned.folder.mkdir(parents=True)
    prompts, conditions = (xr.Dataset(coords={d: np.array(["one"])}) for d in ("prompt", "condition"))
    store.create(planned.store, prompts, conditions, 1, 1, {})
    return planned, Backend(load(planned.run.model), planned.batch_rows)


def state(backend, ids, position):
    """resid_post of every block but the last at one position, one row, no padding: what transformers itself reports."""
    with torch.no_grad():
        hidden = backend.loaded.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    return torch.stack(hidden[1:-1])[:, 0, position].double().numpy()


def test_the_user_persona_is_read_where_an_answer_is_the_users_message_and_i_thou_is_the_difference(tmp_path):
    planned, backend = prepared(tmp_path, "steer.direction=[compliant,'compliant:user','compliant:i_thou']")
    made, _ = extract.extract(planned, backend)
    (contrast,) = [c for c in planned.direction_specs if c.name == "compliant"]
    tokenizer, sides = backend.loaded.tokenizer, {}
    for name, side in (("positive", contrast.positive), ("negative", contrast.negative)):
        model, user = [], []
        for system, question in side:
            ids = chat.encode(tokenizer, question, system)
            answer = backend.generate([ids], {}, planned.run.directions.response_tokens).tokens[0]
            quote = tokenizer.decode(answer, skip_special_tokens=True)
            model.append(state(backend, ids, -1))
            user.append(state(backend, chat.encode(tokenizer, quote, planned.run.model.system), -1))
        sides[name] = np.mean(model, axis=0), np.mean(user, axis=0)
    mp, up = (sides["positive"][i] - sides["negative"][i] for i in (0, 1))
    for name, expected in (("compliant", mp), ("compliant:user", up), ("compliant:i_thou", mp - up)):
        found = made["vector"].sel(direction=name).values[:-1]
        assert np.allclose(found, expected, atol=2e-3), name
    assert made["role"].values.tolist() == ["model", "user", "i_thou", "refusal"]


def test_a_response_mean_averages_over_the_answers_own_tokens(tmp_path):
    planned, backend = prepared(tmp_path, "steer.direction=compliant@response_mean")
    made, _ = extract.extract(planned, backend)
    sides = []
    for side in (planned.direction_specs[0].positive, planned.direction_specs[0].negative):
        means = []
        for system, question in side:
            ids = chat.encode(backend.loaded.tokenizer, question, system)
            answer = backend.generate([ids], {}, planned.run.directions.response_tokens).tokens[0]
            means.append(state(backend, ids + answer, slice(len(ids), None)).mean(axis=1))
        sides.append(np.mean(means, axis=0))
    assert np.allclose(made["vector"].values[0, :-1], sides[0] - sides[1], atol=2e-3)


def test_samples_of_a_prompt_count_once_where_only_the_prompt_is_read(tmp_path):
    more = ("directions.samples=3", "directions.temperature=1.0")
    planned, backend = prepared(tmp_path, "steer.direction=[compliant@last,compliant@response_mean]", *more)
    made, _ = extract.extract(planned, backend)
    by = made.set_coords("position").swap_dims(direction="position")
    n = len(planned.direction_specs[0].positive)
    assert made["n_positive"].values[:2].tolist() == [n, 3 * n]
    assert made["n_distinct_positive"].values[0] == n < made["n_distinct_positive"].values[1] <= 3 * n
    assert by.sizes["position"] == 3


def test_sampled_answers_are_the_same_when_a_killed_extraction_goes_on(tmp_path, monkeypatch):
    more = ("steer.direction=compliant@response_mean", "directions.temperature=1.0", "backend.batch_rows=4")
    whole, backend = prepared(tmp_path / "a", *more)
    chats = list(dict.fromkeys((*whole.direction_specs[0].positive, *whole.direction_specs[0].negative)))
    expected = responses.answers(whole, backend, "responses", chats)
    killed, backend = prepared(tmp_path / "b", *more)
    real, calls = backend.generate, []

    def dies(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(backend, "generate", dies)
    with pytest.raises(KeyboardInterrupt):
        responses.answers(killed, backend, "responses", chats)
    monkeypatch.setattr(backend, "generate", real)
    counted = []
    monkeypatch.setattr(backend, "generate", lambda *a, **k: counted.append(1) or real(*a, **k))
    assert responses.answers(killed, backend, "responses", chats) == expected
    assert len(counted) == -(-len(chats) // 4) - 2  # what was written is not generated again


def test_an_empty_or_looping_answer_takes_its_partner_with_it(tmp_path, monkeypatch):
    planned, backend = prepared(tmp_path, "steer.direction=compliant@response_mean", "directions.filter=fluent")
    real = responses.answers

    def some_bad(*args):
        out = real(*args)
        out[0], out[3] = [], [7] * 20  # nothing, and a loop
        return out

    monkeypatch.setattr(responses, "answers", some_bad)
    made, _ = extract.extract(planned, backend)
    n = len(planned.direction_specs[0].positive)
    assert made["n_positive"].values[0] == made["n_negative"].values[0]
    assert made["n_positive"].values[0] <= n - 1


def test_where_no_answer_is_left_the_error_says_what_to_do(tmp_path, monkeypatch):
    planned, backend = prepared(tmp_path, "steer.direction=compliant@response_mean")
    monkeypatch.setattr(responses, "answers", lambda s, b, group, chats: [[] for _ in chats])
    with pytest.raises(GatingError, match=r"directions\.position=last"):
        extract.extract(planned, backend)


def test_permuted_labels_are_kept_as_a_null_for_cosines(tmp_path):
    planned, backend = prepared(tmp_path, "steer=compliant", "directions.permutations=20")
    made, geometry = extract.extract(planned, backend)
    assert geometry["permuted_cosine"].sizes == {
        "direction": 2,
        "other": 2,
        "permutation": 20,
        "layer": made.sizes["layer"],
    }
    own = geometry["permuted_cosine"].sel(direction="compliant", other="compliant")
    assert abs(float(own.mean())) < 0.3 and float(np.abs(own).max()) < 1  # the label is what makes the direction


def test_a_judge_puts_each_answer_on_its_side_and_a_failed_judgement_is_missing_never_a_middle_score(
    tmp_path, monkeypatch
):
    from gating.judging import Judgement
    from gating.judging.rule_judge import RuleSpec

    planned, backend = prepared(tmp_path, "steer.direction=compliant@last", "directions.filter=rule-now")
    n = len(planned.direction_specs[0].positive)
    scores = {0: float("nan"), 1: 0.2}  # the first answer could not be judged, the second does not show the trait

    class Told:
        fingerprint = "none"

        def judge(self, items, advance):
            positive = set(planned.direction_specs[0].positive)
            chats = list(dict.fromkeys((*planned.direction_specs[0].positive, *planned.direction_specs[0].negative)))
            return [Judgement(score=scores.get(i, 1.0 if chats[i] in positive else 0.0)) for i in range(len(items))]

    monkeypatch.setattr(RuleSpec, "build", lambda spec, limits: Told())
    made, _ = extract.extract(planned, backend)
    assert made["n_positive"].values[0] == made["n_negative"].values[0] == n - 2
    kept = store.read_group(planned.store, "responses_judged")
    assert np.isnan(kept["score"].values[0]) and kept.attrs["judge"] == "rule-now"


def test_answers_are_filtered_by_a_chat_endpoint_in_a_process_of_its_own(tmp_path, serve):
    """In a fresh process, because what an endpoint needs must be importable after a model was loaded."""
    server = serve(lambda prompt, response, nth: good("compliance", 0.9 if len(response) % 2 else 0.1))
    (tmp_path / "trait.yaml").write_text(
        f"kind: endpoint\nsays: whether an answer shows the trait\nid: m\nbase_url: {server.url}\nkey_variable: null\n"
        "template: |-\n  Request: {prompt}\n  Answer: {response}\nanswers: {compliance: compliance, refusal: refusal}\n"
    )
    small = ("model=tiny-llama", "data.n=2", "directions.n=4", "directions.questions=2", "controls.random=1")
    answers = ("directions.response_tokens=4", f"directions.filter={tmp_path / 'trait.yaml'}", f"runs_dir={tmp_path}")
    ran = subprocess.run([sys.executable, "-m", "gating.run", *small, *answers], capture_output=True, text=True)
    assert "Traceback" not in ran.stderr + ran.stdout, ran.stderr[-2000:]
    (path,) = tmp_path.glob("*/store.zarr")
    scores = store.read_group(path, "responses_judged")["score"]
    assert scores.size and np.isfinite(scores).all() and len(server.bodies) == scores.size
