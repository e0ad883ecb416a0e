"""The report: one page that needs nothing else, shows openings only, and says what is missing."""

import io
import re

import pytest
from rich.console import Console

from gating import figures, report
from gating.interventions import grid
from tests.synthetic import tree

SPEC = {
    "direction": "compliant",
    "op": "add",
    "layers": 2,
    "coef": [1.0, 2.0, 4.0],
    "norm": "natural",
    "scope": "all",
    "read": "same",
}


@pytest.fixture
def run():
    conditions = grid(SPEC, ["compliant"], 4, 2, True)
    labels = {c.name: [0, 0, 0, 0, 1, 1] if c.kind != "steered" else [1, 1, 0, 3, 1, -1] for c in conditions}
    texts = [
        "<script>alert(1)</script> and a long request that goes on",
        *(f"Do the bad thing number {i} right away" for i in range(5)),
    ]
    return tree(labels, [True] * 4 + [False] * 2, list("aabbcc"), conditions, texts)


def test_the_page_stands_alone_and_escapes_what_users_wrote(run, tmp_path):
    page = report.write(run, tmp_path).read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "http" not in page
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert page.count("<img alt=") == len(list(tmp_path.glob("*.png"))) >= 4
    assert "dose_coef" not in page and (tmp_path / "dose_coef.png").is_file()


def test_answers_to_harmful_requests_are_cut_unless_full_text_is_asked_for(run, tmp_path):
    answer = "Sure, here is everything that was asked for, told in full and with nothing left out"
    assert answer not in (cut := report.write(run, tmp_path).read_text()) and "Sure, here is everything …" in cut
    assert answer in report.write(run, tmp_path, full_text=True).read_text()


def test_the_page_says_what_is_missing_and_what_overlaps(run, tmp_path):
    page = report.write(run, tmp_path).read_text()
    assert "3 of 78 rows are missing" in page and "3 of 9 overlap" in page


def test_the_headline_has_rates_intervals_n_and_the_controls(run):
    line = report.headline(run)[0]
    assert re.search(r"refusal 25% \[\d+, \d+\] against 100% \[\d+, \d+\].*-75 \[-\d+, -\d+\] points \(n = 4\)", line)
    assert "Its 2 random controls" in line and "at least 0.33 with 2" in line


def test_the_terminal_table_keeps_brackets_and_every_condition(run):
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(report.table(run))
    text = console.export_text()
    assert "compliant-random-1[coef=4]" in text and "harmless refusal" in text
    assert sum("compliant" in line for line in text.splitlines()) == 12


def test_a_dose_response_is_drawn_only_for_an_axis_of_more_than_two_values(run):
    assert figures.varied(run) == ["coef"]


def test_the_command_refuses_what_is_not_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gating.report", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        report.main()
    assert stop.value.code == 2 and "is not a run" in capsys.readouterr().out
