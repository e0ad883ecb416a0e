"""Every figure in a sentence of README.md and docs/results.md comes from a store, by a name that a command fills in."""

import json
import re
from pathlib import Path

import pytest

from gating import results, store
from gating.errors import GatingError
from gating.reporting import facts, published
from tests.judged_runs import a_run

ROOT = Path(__file__).parent.parent
KNOWN = json.loads((ROOT / "docs/results.json").read_text())
README, RESULTS = (ROOT / "README.md").read_text(), (ROOT / "docs/results.md").read_text()
FIGURE = re.compile(
    r"[<>]?\d+(?:\.\d+)?\s?(?:%|percent\b)|\b\d+ of \d+\b|[-+−]\d+(?:\.\d+)? points?\b"
    r"|(?<![\w.])[-+−]\d+\.\d+\b|\[[-+]?\d+(?:\.\d+)?, [-+]?\d+(?:\.\d+)?\]"
    r"|\b\d+(?:\.\d+)? points? (?:more|less|lower|higher)\b"
)
LEVEL = re.compile(r"\b9[059]% (?:Wilson )?intervals?\b")  # how an interval is made is no result


def sentences(text: str) -> str:
    """The text without code, tables, quotations (of a paper, as lines that begin with >), headings of runs."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    lines = [line for line in text.splitlines() if not line.lstrip().startswith(("|", ">"))]
    return LEVEL.sub("", re.sub(r"`[^`]*`", "", "\n".join(lines)))


def unmarked(text: str) -> list[str]:
    return FIGURE.findall(sentences(text))


def parts() -> tuple[str, str]:
    """README's marked part, and README without it."""
    before, _, rest = README.partition(published.BEGIN)
    part, _, after = rest.partition(published.END)
    return part.strip(), before + after


@pytest.mark.parametrize(
    ("text", "figures"),
    [
        ("It falls to 16% there.", ["16%"]),
        ("It refused 12 of 64.", ["12 of 64"]),
        ("A change of -83 [-93, -67].", ["[-93, -67]"]),
        ("It moves by +4 points, or 9 points less.", ["+4 points", "9 points less"]),
        ("| a | 16% |\n> they say 97%\n`12 of 64` with 95% Wilson intervals", []),
        ("Read `x` [here](a.md) in 2 of three, arXiv 2606.26161, block 18.", []),
    ],
)
def test_a_figure_in_a_sentence_is_seen_and_one_in_a_table_code_or_quotation_is_not(text, figures):
    assert unmarked(text) == figures


def test_no_sentence_of_the_readme_or_of_the_templates_has_a_figure_of_its_own():
    assert unmarked(parts()[1]) == [], "write it in docs/templates/readme.md, as {RUN/CONDITION/PROMPTS/MEASURE}"
    for name, text in published.templates(ROOT).items():
        assert unmarked(facts.PLACE.sub("", text)) == [], name


def test_the_readme_and_the_results_page_say_what_the_kept_figures_make_of_the_templates():
    note, part = published.expected(KNOWN, ROOT)
    assert parts()[0] == part and note in RESULTS
    assert unmarked(RESULTS.replace(note, "", 1)) == []
    assert set(KNOWN) == {n for text in published.templates(ROOT).values() for n in facts.named_in(text)}


def cells(section: str, begins: str) -> list[list[str]]:
    """Lines of a section's tables, as cells."""
    return [[c.strip() for c in x.split("|")[1:-1]] for x in section.splitlines() if x.startswith(begins)]


@pytest.mark.parametrize("name", KNOWN)
def test_a_kept_figure_names_its_run_and_stands_in_that_runs_table(name):
    fact = KNOWN[name]
    assert fact["run"] and fact["commit"] and fact["judge"] and fact["n"] > 0
    (section,) = (s for s in RESULTS.split("\n## ") if f"key `{fact['run']}`" in s)
    if fact["kind"] in ("rate", "spread"):
        condition, prompts, label = name.split("/")[1:]
        head, rows = cells(section, "| condition "), cells(section, "| `")
        (row,) = (r for r in rows if r[0].split(" (")[0].strip("`").split(" ")[-1] == condition)
        columns = [i for i, title in enumerate(head[0]) if title.startswith(f"{label}, {prompts}")]
        how = "" if label == "refusal" or fact["kind"] == "spread" else "share"
        assert [row[i] for i in columns] == [facts.shown(fact, how)] * (label in ("refusal", "degenerate"))


@pytest.fixture
def repository(tmp_path):
    """A repository of its own, and a run."""
    folder = a_run(tmp_path / "run", n=8)
    attrs = {"choices": '{"experiment": "paper"}', "git_revision": "c0ffee", "seed": 0, "dtype": "float32",
             "device": "cpu", "model_fingerprint": "f", "max_new_tokens": 2}  # fmt: skip
    store.set_attrs(folder / store.STORE, attrs)
    (tmp_path / "docs/templates").mkdir(parents=True)
    (tmp_path / "docs/templates/results.md").write_text("The change is {tiny-paper/add/harmful/difference}.\n")
    (tmp_path / "docs/templates/readme.md").write_text("It refuses {tiny-paper/add/harmful/refusal:k}.\n")
    (tmp_path / "README.md").write_text(f"# Mine\n\n{published.BEGIN}\nold\n{published.END}\n\nThe end.\n")
    return tmp_path


def test_the_command_writes_the_pages_and_their_figures_from_stores(repository):
    results.main([str(repository / "run"), "--write", str(repository)])
    page, readme = (repository / "docs/results.md").read_text(), (repository / "README.md").read_text()
    kept = json.loads((repository / "docs/results.json").read_text())
    assert "It refuses 2 of 6.\n" in readme and readme.endswith("\n\nThe end.\n") and "old" not in readme
    assert "The change is 0 [" in page and "### Rates" in page
    assert kept["tiny-paper/add/harmful/refusal"] == {
        "kind": "rate", "value": 0.333333, "low": pytest.approx(0.0968, abs=1e-3),
        "high": pytest.approx(0.700, abs=1e-3),
        "k": 2, "n": 6, "run": "run", "commit": "c0ffee", "judge": "1",
    }  # fmt: skip
    assert published.expected(kept, repository) == (page.split("\n\n")[2].strip(), "It refuses 2 of 6.")
    before = readme
    results.main([f"{repository / 'run'}", "--write", str(repository)])
    assert (repository / "README.md").read_text() == before


def test_a_figure_that_no_run_has_leaves_everything_as_it_was_and_is_named(repository, capsys):
    (repository / "docs/templates/readme.md").write_text("It refuses {tiny-paper/ad/harmful/refusal}.\n")
    before = (repository / "README.md").read_text()
    with pytest.raises(SystemExit) as stop:
        results.main([str(repository / "run"), "--write", str(repository)])
    said = " ".join(capsys.readouterr().err.split())
    assert stop.value.code == 2 and "tiny-paper/ad/harmful/refusal" in said and "did you mean" in said
    assert (repository / "README.md").read_text() == before and not (repository / "docs/results.md").exists()
    with pytest.raises(GatingError, match="a rate is not said as 'points'"):
        facts.rendered("{a/b/c:points}", {"a/b/c": next(iter(KNOWN.values()))})
    with pytest.raises(SystemExit):
        results.main([str(repository / "run"), str(repository / "run"), "--write", str(repository)])
    assert "two runs are called tiny-paper" in " ".join(capsys.readouterr().err.split())
