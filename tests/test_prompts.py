"""Prompt sets: what is shipped, what a file may be, and that selection and test never meet."""

import itertools
import json
import sys
import types

import pytest

from gating import prompts
from gating.errors import GatingError
from gating.prompts import Prompt

SPLITS = ("extract", "select", "test")
SHIPPED = {"harmful": True, "harmless": False, "borderline": False}


def shipped(name):
    return [p for split in SPLITS for p in prompts.load(name, SHIPPED[name], split)]


def test_the_shipped_sets_are_large_enough_and_harmful_ones_cover_eight_categories_in_every_split():
    assert len(shipped("harmful")) >= 160 and len(shipped("harmless")) >= 160 and len(shipped("borderline")) >= 80
    for split in SPLITS:
        assert len({p.category for p in prompts.load("harmful", True, split)}) >= 8


def test_harmless_prompts_match_the_harmful_ones_in_length():
    words = [sum(len(p.text.split()) for p in shipped(n)) / len(shipped(n)) for n in ("harmful", "harmless")]
    assert abs(words[0] / words[1] - 1) < 0.1


def test_no_shipped_prompt_stands_twice_in_any_set_split_or_training_set():
    train = [p for n, h in (("train_harmful", True), ("train_harmless", False)) for p in prompts.load(n, h, "train")]
    everything = [p for n in SHIPPED for p in shipped(n)] + train
    assert len({p.hash for p in everything}) == len(everything)


def test_no_shipped_prompt_nearly_repeats_one_of_another_split():
    words = {s: [set(prompts.normalise(p.text).split()) for p in prompts.load("harmful", True, s)] for s in SPLITS}
    for a, b in itertools.combinations(SPLITS, 2):
        assert max(len(x & y) / len(x | y) for x in words[a] for y in words[b]) < 0.7


def test_a_hash_ignores_case_punctuation_and_spacing_and_nothing_else():
    one, two, three = (Prompt(t, "c", "s", True) for t in ("Kill a process!", "kill  a\nPROCESS", "kill the process"))
    assert one.hash == two.hash != three.hash


def test_csv_json_and_jsonl_files_give_the_same_prompts(tmp_path):
    texts = ["one, with a comma", 'two "quoted"', "three\nlines"]
    quoted = ['"' + t.replace('"', '""') + '"' for t in texts]
    (tmp_path / "a.csv").write_text("Goal,Category\n" + "".join(f"{q},x\n" for q in quoted))
    (tmp_path / "a.json").write_text(json.dumps([{"goal": t, "category": "x"} for t in texts]))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"prompt": t, "category": "x"}) + "\n" for t in texts))
    read = [prompts.load(str(tmp_path / f"a.{s}"), True) for s in ("csv", "json", "jsonl")]
    assert [p.text for p in read[0]] == texts
    assert [[(p.text, p.category) for p in r] for r in read] == [[(t, "x") for t in texts]] * 3


@pytest.mark.parametrize(
    ("name", "content", "culprit"),
    [("a.csv", "wrong\nx\n", "column called"), ("a.jsonl", '{"prompt": "x"}\n{oops\n', "not valid jsonl"),
     ("a.json", '{"prompt": "x"}', "one list"), ("a.jsonl", '{"prompt": " "}\n', "entry 1"),
     ("a.csv", "prompt\n", "no prompts"),
     ("a.txt", "hello", "ends in"), ("a.json", "[3]", "int"),
     ("a.json", '[{"prompt": "x", "harmful": "maybe"}]', "harmful is"),
     ("a.json", '[{"prompt": "x", "harmful": false}]', "of their own"),
     ("a.json", '[{"prompt": "x", "split": "dev"}]', "split is")],
)  # fmt: skip
def test_a_bad_file_is_named_with_its_line_and_the_remedy(tmp_path, name, content, culprit):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(GatingError, match=culprit) as e:
        prompts.load(str(path), True, key="data.harmful")
    assert str(path) in str(e.value) and "data.harmful" in str(e.value)


def test_a_sample_takes_the_categories_in_turn_and_depends_on_the_seed_alone():
    many = [Prompt(f"{c} {i}", c, "s", True) for c in "abcd" for i in range(10)]
    some = prompts.sample(many, 8, seed=1)
    assert sorted(p.category for p in some) == sorted("abcd" * 2)
    assert prompts.sample(many[::-1], 8, seed=1) == some
    assert prompts.sample(many, 8, seed=2) != some
    assert prompts.sample(many, None, 0) == many


def test_duplicates_are_left_out_with_a_warning_each():
    one, two = Prompt("Hello", "c", "s", True), Prompt("hello!", "c", "t", True)
    kept, warnings = prompts.deduplicate([one, two])
    assert kept == [one] and len(warnings) == 1 and one.hash in warnings[0]


def test_overlap_is_found_through_case_and_punctuation():
    test = [Prompt("Write a poem.", "c", "s", False), Prompt("Write a song.", "c", "s", False)]
    assert prompts.overlap(["write a POEM"], test) == test[:1]


def test_a_public_set_comes_through_the_datasets_library_with_only_the_rows_that_are_meant(monkeypatch):
    rows = [{"prompt": " a ", "type": "homonym", "label": "safe"}, {"prompt": "b", "type": "x", "label": "unsafe"}]
    asked = []
    library = types.SimpleNamespace(load_dataset=lambda *a, **k: asked.append((a, k)) or rows)
    monkeypatch.setitem(sys.modules, "datasets", library)
    assert prompts.load("xstest", False) == [Prompt("a", "homonym", "walledai/XSTest", False)]
    assert asked == [(("walledai/XSTest", None), {"split": "test"})]


def test_a_public_set_that_cannot_be_had_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(GatingError, match=r"gating\[hub\]"):
        prompts.load("advbench", True)

    def unreachable(*args, **kwargs):
        raise ConnectionError

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=unreachable))
    with pytest.raises(GatingError, match="data=file"):
        prompts.load("advbench", True)
