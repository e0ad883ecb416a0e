"""The report: one page that needs nothing else, shows openings only, and says what is missing."""

import io
import itertools
import json
import re
import shlex
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from gating import report
from gating.analysis import wording
from gating.figures import categories, dose, gallery, rates
from gating.reporting import again, tables
from gating.reporting import page as pages
from gating.reporting.document import document
from gating.reporting.headline import SENTENCES, headline
from gating.reporting.rows import FOLD, folded, rows
from gating.steering.condition_grid import grid
from gating.steering.interventions import Condition
from tests.synthetic import named_conditions, tree

SPEC = {
    "direction": "compliant",
    "op": "add",
    "layers": 2,
    "coef": [1.0, 2.0, 4.0],
    "norm": "natural",
    "scope": "all",
    "read": "same",
}

RESULTS_ATTRS = {
    "choices": '{"experiment": "paper"}', "max_new_tokens": 8, "dtype": "float32", "device": "cpu", "seed": 0,
    "model_fingerprint": "f", "git_revision": "g", "warnings": "[]",
}  # fmt: skip


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
    page = pages.write(run, tmp_path).read_text()
    assert not re.search(r"(src|href)=\"(?!data:|#)", page) and "http" not in page
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert page.count("<img alt=") == len(list(tmp_path.glob("*.png"))) >= 4
    for name in ("rates", "dose_coef"):
        assert all((tmp_path / f"{name}.{ending}").is_file() for ending in ("png", "svg", "csv"))
        assert f'<figure id="{name}">' in page and f'href="#{name}"' in page and f"pictures={name}" in page


def test_answers_to_harmful_requests_are_cut_unless_full_text_is_asked_for(run, tmp_path, undrawn):
    answer = "Sure, here is everything that was asked for, told in full and with nothing left out"
    assert answer not in (cut := pages.write(run, tmp_path).read_text()) and "Sure, here is everything …" in cut
    assert answer in pages.write(run, tmp_path, full_text=True).read_text()


def test_the_page_says_what_is_missing_and_what_overlaps(run, tmp_path, undrawn):
    page = pages.write(run, tmp_path).read_text()
    assert "3 of 78 rows are missing" in page and "3 of 9 overlap" in page


def test_the_headline_has_rates_intervals_n_and_the_controls(run):
    line = headline(run)[0]
    assert re.search(r"refusal 25% \[\d+, \d+\] against 100% \[\d+, \d+\].*-75 \[-\d+, -\d+\] points \(n = 4\)", line)
    assert "Its 2 random controls" in line and "at least 0.33 with 2" in line


def test_the_command_that_makes_a_run_again_adds_and_leaves_out_what_the_run_did():
    config = "data: {n: 3}\nconditions: {mine: [{layers: 2, direction: a b}], paper: []}\nmodel: {template: {}}\n"
    keys = ["model", "data.n", "conditions.mine", "conditions.mine.0.layers", "conditions.gone", "runs_dir"]
    begun = tree({"baseline": [0]})
    begun.attrs |= {"choices": '{"model": "tiny-llama", "backend": "local"}', "config": config}
    begun.attrs["overrides"] = json.dumps(keys)
    words = shlex.split(again.command(begun))[3:]
    assert words == ["model=tiny-llama", "data.n=3", '++conditions.mine=[{layers:2,direction:"a b"}]',
                     "conditions.mine.0.layers=2", "~conditions.gone"]  # fmt: skip
    for nowhere in ("data.n.x", "conditions.mine.7.layers", "gone.gone"):
        begun.attrs["overrides"] = json.dumps([nowhere])
        assert again.command(begun) == ""


def printed(run, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(tables.table(run, width))
    return console.export_text()


def test_the_terminal_table_groups_conditions_by_their_place_in_the_grid_and_keeps_every_one(run):
    lines = [line.split() for line in printed(run, 120).splitlines() if line.strip()]
    assert [line[0] for line in lines if "coef" in line[0]] == ["coef=1", "coef=2", "coef=4"]
    named = [line[0] for line in lines if line[0].startswith("compliant")]
    assert named == ["compliant", "compliant-reversed", "compliant-random-0", "compliant-random-1"] * 3
    assert "harmless" in printed(run, 120)


def test_the_papers_labels_stand_beside_the_names_in_every_table(tmp_path, undrawn):
    paper = {"baseline": "C0", "compliant": "C1"}
    conditions = [
        replace(c, paper=paper.get(c.name, "")) for c in grid({**SPEC, "coef": 4.0}, ["compliant"], 4, 2, True)
    ]
    run = tree({c.name: [0, 0, 1] for c in conditions}, [True, True, False], conditions=conditions)
    run.attrs |= RESULTS_ATTRS
    shown = printed(run, 140)
    assert "C0 baseline" in shown and "C1 compliant" in shown and "refusal (B*)" in shown
    assert headline(run)[0].startswith("C1 compliant: refusal")
    page, page_of_results = pages.write(run, tmp_path).read_text(), document([run])
    assert '<th scope="row">C1 compliant</th>' in page and "(over-refusal, B*)" in page
    assert "| `C1 compliant` | 2+1 |" in page_of_results and "refusal, harmless (B*)" in page_of_results
    assert "| `compliant-random` (2 directions)" in page_of_results


def test_the_commands_that_read_stores_import_no_model_library():
    code = """import gating.report, gating.results, gating.selection, gating.meta, sys
print({"torch", "transformers", "nnsight", "sklearn"} & set(sys.modules))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(("width", "left"), [(80, "complied, evasive"), (100, "evasive"), (140, "")])
def test_a_table_leaves_out_what_a_terminal_has_no_room_for_and_says_so(run, width, left):
    lines = printed(run, width).splitlines()
    assert all(len(line) <= width for line in lines) and (f"No room for {left}" in "".join(lines)) == bool(left)
    assert sum("compliant-random-1" in line and "[" in line and line.count("]") == 3 for line in lines) == 3  # one line


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", ["compliant-random-0", "a-very-long-name-of-a-direction-random-0"])
def test_no_number_of_the_terminal_table_is_cut_in_a_narrow_terminal(width, name):
    labels = {"baseline": [0] * 21, "steered": [1] * 21, name: [0] * 20 + [1]}
    run = tree(labels, harmful=[True] * 12 + [False] * 9)
    text = printed(run, width)
    assert "…" not in text
    lines: list[Any] = [*rows(run, True)]
    lines += [{"n": "", "refusal": r["refusal"], "difference": "", "p_holm": ""} for r in rows(run, False)]
    digits = "".join(
        c for r in lines for k in ("n", "refusal", "difference", "p_holm") for c in str(r[k]) if c.isdigit()
    )
    assert not Counter(digits) - Counter(text)


def test_a_share_that_is_not_quite_none_or_all_is_not_rounded_to_it():
    assert [wording.percent(x) for x in (0, 0.001, 0.5, 0.999, 1, float("nan"))] == [
        "0%", "<1%", "50%", ">99%", "100%", "missing",
    ]  # fmt: skip
    assert [wording.percent(x, 1) for x in (0.001, 0.0001, 0.9996)] == ["0.1%", "<0.1%", ">99.9%"]


def test_a_difference_that_rounds_to_nothing_has_no_sign():
    assert [wording.signed(x) for x in (-0.001, 0.001, -0.31, 0.31)] == ["0", "0", "-31", "+31"]


def test_a_run_without_any_answer_yet_is_reported_as_missing(tmp_path):
    run = tree({"baseline": [-1] * 3, "steered": [-1] * 3})
    page = pages.write(run, tmp_path / "new").read_text()
    assert (
        "6 of 6 rows are missing" in page and "no prompt has an answer" in page and "nan" not in page.split("data:")[0]
    )


def test_a_run_of_the_baseline_alone_has_a_page(tmp_path):
    assert pages.write(tree({"baseline": [0, 0, 1]}), tmp_path).is_file()


KO = {
    "direction": "compliant",
    "op": "ablate",
    "layers": 3,
    "random": 8,
}


@pytest.fixture
def knocked():
    """A knock-out that restores refusal, eight random ones that do not."""
    persona = {"direction": "compliant", "layers": 2, "coef": 8.0}
    made = named_conditions({"persona": [persona], "ko": [persona, KO]}, ["compliant"], 4)
    conditions = [Condition("baseline"), *made]
    labels = {c.name: [1] * 8 if c.kind == "random" or c.name == "persona" else [0] * 8 for c in conditions}
    labels["ko"] = [0] * 7 + [1]
    return tree(labels, conditions=conditions)


def test_a_named_condition_stands_against_its_random_controls_not_against_how_far_they_are_from_the_baseline(knocked):
    persona, ko, *_ = headline(knocked)
    assert persona.endswith("It has no random controls.")
    assert (
        "With 8 random directions in its place: 0% to 0% (permutation p = 0.11 either way, at least 0.11 with 8)" in ko
    )
    assert "ko: 88%, 8 random directions (isotropic) 0% to 0%, p = 0.11" in gallery.pictures(knocked, True)["null"][1]


def test_many_random_controls_are_one_row_with_their_range_and_stand_below_one_by_one(knocked, tmp_path, undrawn):
    knocked["outcomes"]["label"].loc[{"condition": "ko-random-3"}] = [0, 0, 1, 1, 1, 1, 1, -1]
    lines = folded(rows(knocked, True), FOLD)
    assert [r["name"] for r in lines] == ["baseline", "persona", "ko", "ko-random (8 directions)"]
    assert lines[-1]["refusal"] == "0% to 29%" and lines[-1]["compliance"] == "71% to 100%"
    assert folded(rows(knocked, True), 8) == rows(knocked, True)
    page = pages.write(knocked, tmp_path).read_text()
    shown, rest = page.split("<summary>The 8 random controls one by one</summary>")
    assert "ko-random-3" not in shown.split("<tbody>")[1] and all(f"ko-random-{k}<" in rest for k in range(8))
    assert "ko-random (8 directions)" in printed(knocked, 140)


def test_a_large_grid_says_how_many_conditions_the_headline_leaves_to_the_table():
    lines = headline(tree({"baseline": [0, 0], **{f"s{i}": [0, 1] for i in range(9)}}))
    assert lines[SENTENCES].startswith("3 more") and sum(line.startswith("s") for line in lines) == SENTENCES


def test_the_random_controls_of_a_grid_point_share_a_line_of_a_picture(run):
    lines = rates.lines(run)
    assert [line.text for line in lines[:4]] == [
        "baseline", "compliant[coef=1]", "compliant-reversed[coef=1]", "compliant-random (2 seeds)[coef=1]",
    ]  # fmt: skip
    names = [name for line in lines for name in line.names]
    assert names == run["conditions"]["condition"].values.tolist()
    assert lines[4].y - lines[3].y > lines[3].y - lines[2].y  # a gap between grid points


@pytest.mark.parametrize("draw", [rates.rates, rates.labels, categories.categories])
def test_no_label_of_a_picture_is_clipped_with_forty_conditions(draw):
    spec = {**SPEC, "layers": ["1", "2-3"], "coef": [float(c) for c in range(1, 6)], "norm": "natural"}
    conditions = grid(spec, ["compliant"], 4, 2, True)
    assert len(conditions) > 40
    figure = draw(
        tree({c.name: [0, 1] * 5 for c in conditions}, categories=list("ab" * 5), conditions=conditions), True
    )
    figure.draw_without_rendering()
    for ax in figure.axes:
        for text in (*ax.get_xticklabels(), *ax.get_yticklabels(), ax.xaxis.label):
            if text.get_text():
                box = text.get_window_extent()
                assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
    if draw is not categories.categories:
        assert figure.axes[0].get_window_extent().width / figure.dpi > 4  # inches: long names leave room for the data
        heights = [t.get_window_extent() for t in figure.axes[0].get_yticklabels()]
        assert all(a.y0 >= b.y1 for a, b in itertools.pairwise(heights))


def test_a_dose_response_is_drawn_only_for_an_axis_of_more_than_two_values(run):
    assert dose.varied(run) == ["coef"]


def test_the_command_refuses_what_is_not_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gating.report", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        report.main()
    assert stop.value.code == 2 and "is not a run" in capsys.readouterr().out


def test_a_run_without_claims_has_no_verdicts(run, tmp_path, undrawn):
    pages.write(run, tmp_path)
    assert tables.verdicts(run) == [] and not (tmp_path / "claims.json").exists()
