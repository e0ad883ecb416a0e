"""What comes from outside is bounded, parsed and made fit to show in one place."""

import pytest

from gating import foreign
from gating.errors import GatingError

BOMB = "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))])


def test_a_shown_text_is_one_line_without_control_characters_and_says_that_it_was_cut():
    assert foreign.shown("a\x1b[31m red\r\n\u202eb\x00\x9b") == "a[31m red b"
    assert foreign.shown("x" * 10_000_000, 20) == "x" * 17 + "..."
    assert foreign.shown("\x1b" * 10_000, 20).endswith("...")
    assert foreign.shown("é 日本 👍") == "é 日本 👍"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 100_000, "[" * 70 + "]" * 70, '{"a":1,"a":2}', "[NaN]", '["\\ud800"]', "1" * 5000, b"\xff"],
    ids=lambda t: repr(t)[:12],
)
def test_json_that_is_not_plain_is_refused_in_one_paragraph(text):
    with pytest.raises(GatingError, match=r"^my\.json: ") as error:
        foreign.parse_json(text, "my.json")
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "[" * 100_000,
        "a: 1\na: 2",
        "a: .nan",
        "a: !!python/object:os.x {}",
        "? [a]\n: 1",
        "&a [*a]",
        "a: \x00",
        BOMB,
    ],
    ids=lambda t: repr(t)[:12],
)
def test_yaml_that_is_not_plain_is_refused_in_one_paragraph(text):
    with pytest.raises(GatingError, match=r"^my\.yaml: ") as error:
        foreign.parse_yaml(text, "my.yaml")
    assert len(str(error.value)) < 500


def test_a_date_in_yaml_stays_a_text():
    assert foreign.parse_yaml("date: 2024-01-31\nn: 3\nwhat: {a: [1, x, null, true]}", "f") == {
        "date": "2024-01-31",
        "n": 3,
        "what": {"a": [1, "x", None, True]},
    }


def test_a_file_that_is_not_there_too_large_or_no_text_is_refused_with_its_name(tmp_path):
    large, latin = tmp_path / "large.txt", tmp_path / "latin.txt"
    large.write_bytes(b"x" * 2_000_000)
    latin.write_bytes(b"caf\xe9")
    for path, what in ((tmp_path / "no.txt", "no file"), (large, "2 MB"), (latin, "UTF-8"), (tmp_path, "no file")):
        with pytest.raises(GatingError, match=what) as error:
            foreign.read_text(path, "data.harmful", limit=1_000_000)
        assert str(path) in str(error.value)
