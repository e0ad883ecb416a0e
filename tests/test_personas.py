"""Persona files: the shipped ones, a user's, and every way that a file can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gating import personas
from gating.errors import GatingError

GOOD = {
    "name": "calm",
    "description": "Stays calm.",
    "positive": ["You stay calm.", "You speak slowly."],
    "negative": ["You panic.", "You speak in haste."],
    "questions": ["What is rain?", "How do I bake bread?", "Why do cats purr?"],
}


def write(folder: Path, content: object, name: str = "calm.yaml") -> str:
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", personas.available())
def test_every_shipped_persona_has_four_to_eight_short_pairs_and_at_least_24_questions(name: str) -> None:
    persona = personas.load(name)
    assert persona.name == name
    assert 4 <= len(persona.positive) == len(persona.negative) <= 8
    assert len(persona.questions) >= 24
    assert all(8 <= len(text.split()) <= 25 for text in persona.positive + persona.negative)


def test_at_least_eight_personas_are_shipped_besides_uncompliant() -> None:
    assert len(set(personas.available()) - {"uncompliant"}) >= 8
    assert {"compliant", "uncompliant"} <= set(personas.available())


def test_no_two_shipped_personas_share_instructions() -> None:
    shipped = {name: personas.load(name) for name in personas.available() if name != "uncompliant"}
    texts = [text for name, persona in shipped.items() for text in persona.negative]
    texts += [text for name, persona in shipped.items() if name != "compliant-neutral" for text in persona.positive]
    assert shipped["compliant-neutral"].positive == shipped["compliant"].positive
    assert len(set(texts)) == len(texts)


def test_uncompliant_is_compliant_with_its_sides_swapped() -> None:
    one, other = personas.load("compliant"), personas.load("uncompliant")
    assert (other.positive, other.negative, other.questions) == (one.negative, one.positive, one.questions)
    assert other.digest != one.digest


def test_a_contrast_asks_every_question_under_every_pair_with_both_sides_adjacent() -> None:
    persona = personas.load("compliant")
    rows = personas.paired_rows(persona)
    assert len(rows) == 2 * len(persona.positive) * len(persona.questions)
    for plus, minus in zip(rows[::2], rows[1::2], strict=True):
        assert (plus.sign, minus.sign) == (1, -1)
        assert plus.question_index == minus.question_index and plus.pair_index == minus.pair_index
        assert plus.system == persona.positive[plus.pair_index] and minus.system == persona.negative[plus.pair_index]
        assert plus.question == minus.question == persona.questions[plus.question_index]


def test_a_users_file_works_by_path_like_a_shipped_one(tmp_path: Path) -> None:
    persona = personas.load(write(tmp_path, GOOD))
    assert persona.positive == tuple(GOOD["positive"])
    assert persona.source.endswith("calm.yaml")
    assert len(personas.paired_rows(persona)) == 12


def test_the_digest_follows_sides_and_questions_and_nothing_else(tmp_path: Path) -> None:
    first = personas.load(write(tmp_path, GOOD)).digest
    assert len(first) == 12 and int(first, 16) >= 0
    assert personas.load(write(tmp_path, GOOD | {"description": "Other words."})).digest == first
    assert personas.load(write(tmp_path, GOOD | {"questions": GOOD["questions"][::-1]})).digest != first


def test_a_users_file_can_reverse_a_shipped_persona_a_neighbour_or_a_file(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    for other, expected in (("compliant", "compliant"), ("calm", None), ("./calm.yaml", None)):
        path = write(tmp_path, {"name": "back", "description": "Reversed.", "reverse_of": other}, "back.yaml")
        base = personas.load(expected or str(tmp_path / "calm.yaml"))
        assert personas.load(path).positive == base.negative


def test_a_file_can_take_a_list_from_another_persona(tmp_path: Path) -> None:
    persona = personas.load(write(tmp_path, without("questions") | {"questions_of": "compliant"}))
    assert persona.questions == personas.load("compliant").questions and persona.positive == tuple(GOOD["positive"])


def without(key: str) -> dict:
    return {k: v for k, v in GOOD.items() if k != key}


BAD = {
    "not yaml": ("name: [calm", r"not valid YAML in line \d"),
    "a tab": ("name: calm\n\tdescription: x", "a tab: YAML wants spaces"),
    "a colon in a text": ("name: calm\ndescription: this: that", "a colon"),
    "a key given twice": ("name: calm\nname: calm\n", "'name' is given twice"),
    "a python object": ("!!python/object:os.system {}", "not valid YAML"),
    "a date": ("name: 2020-13-45", "description is missing"),
    "an unhashable key": ("? [a, b]\n: c", "not valid YAML|is not allowed"),
    "nothing": ("", "is empty"),
    "a list": ("- a\n- b", "holds a list"),
    "a text": ("hello", "holds a str"),
    **{f"no {key}": (without(key), f"{key} is missing") for key in GOOD},
    "a mistyped key": (
        without("questions") | {"question": ["a"]},
        r"'question' is not allowed.*did you mean questions\?",
    ),
    "a key that is a number": (GOOD | {7: "x"}, "key 7 is not allowed"),
    "no items": (GOOD | {"positive": []}, "positive has no items"),
    "a list without a value": (GOOD | {"questions": None}, "questions has no items"),
    "a text for a list": (GOOD | {"questions": "What is rain?"}, "questions is 'What is rain\\?', not a list"),
    "unequal sides": (GOOD | {"negative": ["You panic."]}, "have 2 and 1 items"),
    "a number among texts": (GOOD | {"questions": ["a", 3]}, r"questions\[1\] is 3, a int"),
    "yes among texts": (GOOD | {"questions": ["a", True]}, r"questions\[1\] is True, a bool"),
    "a mapping among texts": (GOOD | {"positive": ["a", {"b": "c"}]}, r"positive\[1\] is \{'b': 'c'\}, a dict"),
    "an empty item": (GOOD | {"positive": ["a", None]}, r"positive\[1\] has no value"),
    "a blank item": (GOOD | {"negative": ["a", "  "]}, r"negative\[1\] is blank"),
    "a repeated question": (
        GOOD | {"questions": ["What is rain?", "what is  rain"]},
        r"questions\[1\] repeats questions\[0\]",
    ),
    "a pair without a difference": (GOOD | {"negative": ["You stay calm.", "b"]}, "are the same text"),
    "another name": (GOOD | {"name": "quiet"}, "name is 'quiet' but the file is called calm.yaml"),
    "a name that is a number": (GOOD | {"name": 5}, "name is 5, a int"),
    "a list for a description": (GOOD | {"description": ["x"]}, "description is"),
    "an unknown reverse": ({"name": "calm", "description": "x", "reverse_of": "compliannt"}, "did you mean compliant"),
    "a reverse of no file": ({"name": "calm", "description": "x", "reverse_of": "./no.yaml"}, "does not exist"),
    "a reverse of itself": ({"name": "calm", "description": "x", "reverse_of": "calm"}, "leads back"),
    "a reverse with sides": (GOOD | {"reverse_of": "compliant"}, "is not allowed beside reverse_of"),
    "a list of its own and another's": (GOOD | {"questions_of": "compliant"}, "key 'questions' is not allowed"),
    "a list of no persona": (
        without("questions") | {"questions_of": "compliannt"},
        "questions_of 'compliannt'.*did you",
    ),
    "a list of itself": (without("questions") | {"questions_of": "./calm.yaml"}, "questions_of is .*leads back"),
    "a side of another length": (without("positive") | {"positive_of": "compliant"}, "have 6 and 2 items"),
    "a reverse without a value": ({"name": "calm", "description": "x", "reverse_of": None}, "reverse_of has no value"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD.keys())
def test_a_malformed_file_is_one_paragraph_that_names_file_key_and_remedy(
    content: object, message: str, tmp_path: Path
) -> None:
    path = write(tmp_path, content)
    with pytest.raises(GatingError, match=message) as caught:
        personas.load(path)
    text = str(caught.value)
    assert "calm.yaml" in text and "\n" not in text


def test_two_files_that_reverse_each_other_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, {"name": "calm", "description": "x", "reverse_of": "wild"})
    write(tmp_path, {"name": "wild", "description": "x", "reverse_of": "calm"}, "wild.yaml")
    with pytest.raises(GatingError, match="leads back"):
        personas.load(path)


@pytest.mark.parametrize("name", ["refusal", "none", "random", "baseline", "Calm", "ca@lm"])
def test_a_name_that_means_something_else_is_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(GatingError, match=f"name '{name}'"):
        personas.load(write(tmp_path, GOOD | {"name": name}, f"{name}.yaml"))


def test_a_file_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "calm.yaml").write_bytes("name: café".encode("latin-1"))
    with pytest.raises(GatingError, match="not UTF-8"):
        personas.load(str(tmp_path / "calm.yaml"))


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "calm.yaml").write_text(yaml.safe_dump(GOOD), encoding="utf-8-sig")
    assert personas.load(str(tmp_path / "calm.yaml")).name == "calm"


def test_a_folder_or_a_missing_file_is_an_error_that_names_the_shipped_ones(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(GatingError, match="is a folder, not a file"):
        personas.load(str(tmp_path / "folder.yaml"))
    with pytest.raises(GatingError, match=r"does not exist.*did you mean cautious"):
        personas.load(str(tmp_path / "cautios.yaml"))
    with pytest.raises(GatingError, match=r"no shipped persona.*did you mean sycophantic"):
        personas.load("sycophantik")
    with pytest.raises(GatingError, match="no shipped persona"):
        personas.load("")
