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


@pytest.mark.parametrize("pair", [("C++", "C"), ("C#", "c"), ("कि", "की"), ("😀", "😂"), ("-5", "5"), ("???", "!")])
def test_texts_that_differ_in_a_mark_a_symbol_or_a_sign_are_two_prompts(pair):
    kept, _ = prompts.deduplicate([Prompt(text, "c", "s", True) for text in pair])
    assert [p.text for p in kept] == list(pair)


def test_a_line_of_jsonl_ends_at_a_newline_alone_and_a_csv_text_may_hold_several(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "one\u2028two\x85three"}\n', encoding="utf-8")
    (tmp_path / "a.csv").write_text('prompt\nzero\n"one\ntwo, ""three"""\nfour\n')
    assert [p.text for p in prompts.load(str(tmp_path / "a.jsonl"), True)] == ["one\u2028two\x85three"]
    read = prompts.load(str(tmp_path / "a.csv"), True)
    assert [(p.text, p.line) for p in read] == [("zero", 2), ('one\ntwo, "three"', 3), ("four", 5)]


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
    [("a.csv", "wrong\nx\n", "column called"),
     ("a.jsonl", '{"prompt": "x"}\n{oops\n', "line 2: this is not valid JSON"),
     ("a.json", '{"prompt": "x"}', "one list"), ("a.jsonl", '{"prompt": " "}\n', "entry 1"),
     ("a.csv", "prompt\n", "no prompts"),
     ("a.txt", "hello", "ends in"), ("a.json", "[3]", "int"),
     ("a.json", '[{"prompt": "x", "harmful": "maybe"}]', "harmful is"),
     ("a.json", '[{"prompt": "x", "harmful": false}]', "of their own"),
     ("a.json", '[{"prompt": "x", "split": "dev"}]', "split is"),
     ("a.csv", 'prompt\none\n"two\nthree\n', "line 3: .* double quote"),
     ("a.csv", 'prompt\none\n"two" more\n', "line 3: .* double quote"),
     ("a.csv", "prompt\nList apples, pears\n", "line 2: 2 fields, the header has 1"),
     ("a.csv", "prompt,category\none,x\ntwo\n", "line 3: 1 field, the header has 2"),
     ("a.csv", "prompt,Prompt \none,two\n", "prompt stands twice"),
     ("a.csv", f"prompt\n{'x' * 140_000}\n", "131,072 characters"),
     ("a.csv", "prompt,catgory\none,x\n", "call it category"),
     ("a.jsonl", '{"prompt": "x", "prompt": "y"}\n', "given twice"),
     ("a.jsonl", '{"prompt": "\\ud800"}\n', "half a surrogate"),
     ("a.jsonl", "[" * 10_000, "levels"),
     ("a.jsonl", '{"prompt": "x", "category": ["y"]}\n', "category is"),
     ("a.csv", "p\0r\0", "null bytes")],
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


def test_a_prompt_beyond_the_models_context_is_refused_before_the_run_with_its_row_and_the_limit(tmp_path, command):
    (tmp_path / "mine.csv").write_text(f"prompt\nshort\n{'long ' * 820}\n")
    code, lines = command("model=tiny-llama", "data=file", "data.harmful=mine.csv", "max_new_tokens=40")
    said = " ".join(" ".join(lines).split())
    assert code == 2 and "mine.csv, entry 3" in said and "4,096" in said and "max_new_tokens=40" in said
    assert not list(tmp_path.glob("runs/*"))
    assert command("model=tiny-llama", "data=file", "data.harmful=mine.csv", "max_new_tokens=1", "dry_run=true")[0] == 2


def test_a_prompt_that_just_fits_with_its_answer_is_taken(tmp_path, command):
    from gating import chat
    from gating.models import tiny

    around = len(chat.encode(tiny.tokenizer("llama"), "", None))  # one token a byte
    for length, expected in ((4096 - 40 - around, 0), (4096 - 40 - around + 1, 2)):
        (tmp_path / "mine.csv").write_text(f"prompt\n{'x' * length}\n")
        overrides = ("data=file", "data.harmful=mine.csv", "max_new_tokens=40", "dry_run=true", "steer=none")
        assert command("model=tiny-llama", *overrides)[0] == expected
