"""Judges as they are described in files: what is shipped, what is refused, what stays text."""

from collections.abc import Sequence
from typing import Any

import pytest
import yaml

from gating import models
from gating.errors import GatingError
from gating.judging import classifier, kinds
from gating.judging.labels import LABELS

HARM = {"harmbench", "llama-guard", "strongreject"}


def load(name: str, overrides: Sequence[str] = ()) -> Any:
    """A judge of whatever kind it is."""
    return kinds.load(name, overrides)


@pytest.mark.parametrize("name", kinds.available())
def test_each_shipped_judge_is_complete_and_says_what_its_labels_mean(name):
    needs = ["id=m", "base_url=https://127.0.0.1:1/v1"] if name == "endpoint" else []
    spec = load(name, needs)
    assert spec.says and spec.name == name and set(spec.answers.values()) <= set(LABELS)
    if spec.kind == "head":
        assert set(spec.answers.values()) == {"refusal", "compliance"}
    if spec.kind == "classifier":
        assert spec.of_harm or {"refusal", "compliance"} <= set(spec.answers.values())
        config = classifier.model_config(spec)
        if config.adapter:  # an adapter of a base model: without it the base model must not judge in its place
            with pytest.raises(GatingError, match=r"model\.adapter"):
                models.check(config)
        else:
            models.check(config)


def test_the_shipped_judges_are_those_that_are_meant():
    texts, models = (
        {"keywords", "learned", "paper-keywords", "rule-now"},
        {"minos", "qwen3guard", "rejection", "wildguard"},
    )
    assert {n for n in kinds.available() if n != "endpoint" and load(n).of_harm} == HARM
    models |= HARM
    assert set(kinds.available()) == {"endpoint", *texts, *models}


def test_a_published_template_in_a_file_takes_the_place_of_our_words(tmp_path):
    (tmp_path / "t.txt").write_text("B: {prompt} G: {response} [/INST]")
    ours, theirs = load("harmbench"), load("harmbench", [f"template_file={tmp_path / 't.txt'}"])
    assert ours.paraphrase and not theirs.paraphrase and theirs.template == "B: {prompt} G: {response} [/INST]"
    assert ours.digest != theirs.digest and ours.prompt_hash != theirs.prompt_hash


@pytest.mark.parametrize(
    ("name", "overrides", "culprit"),
    [
        ("harmbnech", [], "did you mean harmbench"),
        ("harmbench", ["templat=x"], "did you mean template"),
        ("harmbench", ["kind=oracle"], "kind='oracle'"),
        ("harmbench", ["template=hello"], "must hold {response}"),
        ("wildguard", ["answers={yes: compliance}"], "quote it"),
        ("wildguard", ["answers={'a': bad}"], "'bad', which is not a label"),
        ("wildguard", ["answers={}"], "answers"),
        ("wildguard", ["values={'a': 1}"], "not one of the answers"),
        ("wildguard", ["asks=harm"], "a judge of harm gives no labels"),
        ("harmbench", ["asks=harms"], "did you mean harm"),
        ("harmbench", ["values={'a': 1}"], "two words"),
        ("harmbench", ["values={'a': 1, 'b': 2}"], "0 to 1"),
        ("harmbench", ["keep_degenerate=true"], "keep_degenerate"),
        ("qwen3guard", ["max_tokens=0"], "max_tokens"),
        ("minos", ["unsure_from=0.9"], "at most unsure_to=0.7"),
        ("minos", ["unsure_to=2"], "unsure_to"),
        ("minos", ["answers={a: compliance, b: evasive}"], "must mean refusal"),
        ("minos", ["template=chat"], "{response}"),
        ("harmbench", ["min_mass=2"], "min_mass"),
        ("harmbench", ["name=own"], "own labels"),
        ("harmbench", ["prompts=some"], "prompts="),
        ("harmbench", ["batch_rows=many"], "of the kind int"),
        ("endpoint", ["id=m"], "base_url"),
        ("endpoint", ["base_url=https://h/v1"], "id="),
        ("endpoint", ["id=m", "base_url=ftp://h"], "not an http"),
        ("endpoint", ["id=m", "base_url=http://h/v1"], "unencrypted"),
        ("endpoint", ["id=m", "base_url=https://u:p@h/v1"], "a user or a password"),
        ("endpoint", ["id=m", "base_url=https://h", "deadline=0"], "deadline"),
        ("rule-now", ["limits.max_nil=3"], "did you mean max_nll"),
        ("no/such.yaml", [], "there is no file"),
    ],
)
def test_a_bad_judge_is_named_with_its_key_and_the_remedy(name, overrides, culprit):
    with pytest.raises(GatingError) as e:
        load(name, overrides)
    assert culprit in str(e.value)


def test_a_model_key_that_no_model_has_is_refused_before_loading():
    with pytest.raises(GatingError, match=r"model.devise is not a setting of a model.*device"):
        classifier.model_config(load("harmbench", ["model.devise=cpu"]))


def a_file(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text("kind: classifier\nid: m\nanswers: {a: refusal}\n" + text)
    return str(path)


@pytest.mark.parametrize(
    "text", ["${x} {response}", r"\${a b \\${ {response}", "$ {response} ${", "${oc.env:HOME} {response}"]
)
def test_a_template_keeps_its_dollar_signs_and_braces_as_text(tmp_path, text):
    assert load(a_file(tmp_path, yaml.safe_dump({"template": text}))).template == text
    assert load("harmbench", [f"template='{text}'"]).template == text
    request = ["id=m", "base_url=https://h/v1", "request.user='${x}'"]
    assert load("endpoint", request).request == {"user": "${x}"}


def test_a_whole_number_may_stand_for_a_decimal_one_and_a_truth_value_for_neither():
    endpoint = ["id=m", "base_url=https://h/v1"]
    assert load("endpoint", [*endpoint, "deadline=7"]).deadline == 7.0
    for key in ("deadline", "attempts"):
        with pytest.raises(GatingError, match=rf"{key}=True must be of the kind (float|int)"):
            load("endpoint", [*endpoint, f"{key}=true"])


def test_a_mapping_on_the_command_line_takes_the_place_of_the_files_and_a_null_leaves_the_default():
    spec = load("wildguard", ["answers={a: refusal, b: compliance}", "batch_rows=null", "model.device=cpu"])
    assert (
        spec.answers == {"a": "refusal", "b": "compliance"} and spec.batch_rows == 16 and spec.model["device"] == "cpu"
    )


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("template: x {response}\nid: n\n", "'id' is given twice"),
        ("template: [\n", "not valid YAML in line"),
        ("- a\n", "not valid YAML in line 4"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_what_is_wrong(tmp_path, text, culprit):
    with pytest.raises(GatingError, match=rf"mine\.yaml.*{culprit}"):
        load(a_file(tmp_path, text))


def test_every_kind_of_judge_has_a_shipped_example_and_a_name_for_each_of_its_labels():
    needs = ["id=m", "base_url=https://h/v1"]
    shipped = [load(n, needs if n == "endpoint" else []) for n in kinds.available()]
    assert {spec.kind for spec in shipped} == set(kinds.KINDS)
    assert all(type(spec) is kinds.KINDS[spec.kind] for spec in shipped)
    assert len({spec.digest for spec in shipped}) == len(shipped)
