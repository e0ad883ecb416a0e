"""Claims in the report: their verdicts on the page, in a file, on the terminal, for one run and for several."""

import io
import json
import re
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from gating import report, store
from gating.analysis import claims
from gating.reporting import page as pages
from gating.reporting import tables
from gating.reporting.document import document
from gating.reporting.rows import verdict_rows
from gating.steering.condition_grid import grid
from tests.synthetic import tree
from tests.test_report import RESULTS_ATTRS, SPEC

FAMILY: Any = {"family": "mine", "alpha": 0.05, "claims": {
    "falls": {"says": "It falls.", "test": "difference", "plus": ["compliant"], "minus": ["baseline"],
              "expect": "below", "margin": 0.2, "paper": "97% to 2%"},
    "absent": {"says": "Something else falls.", "test": "equivalence", "plus": ["other"], "minus": ["baseline"],
               "margin": 0.1},
}}  # fmt: skip


@pytest.fixture
def claimed():
    spec = {**SPEC, "coef": 4.0}
    conditions = grid(spec, ["compliant"], 4, 2, True)
    labels = {c.name: [1] * 50 if c.kind == "steered" else [0] * 50 for c in conditions}
    made = tree(labels, conditions=conditions, categories=[f"c{i % 5}" for i in range(50)])
    made.attrs["claims"] = json.dumps(FAMILY)
    return made


def test_claims_stand_on_the_page_in_a_file_and_on_the_terminal_with_their_verdicts(claimed, tmp_path, undrawn):
    page = pages.write(claimed, tmp_path).read_text()
    assert "Written down before the run" in page and "97% to 2%" in page
    kept = json.loads((tmp_path / "claims.json").read_text())
    assert [c["verdict"] for c in kept["claims"]] == ["supported", "missing"] and kept["claims"][1]["p"] is None
    (table,) = tables.verdicts(claimed)
    out = io.StringIO()
    Console(file=out, width=140).print(table)
    assert "supported" in out.getvalue() and "the run has no condition 'other'" in out.getvalue()


def test_claims_named_after_the_run_are_marked_and_do_not_take_the_place_of_those_written_before(
    claimed, tmp_path, undrawn
):
    later: Any = {**FAMILY, "family": "later"}
    page = pages.write(claimed, tmp_path, post_hoc=later).read_text()
    assert page.index("Claims: mine</h2>") < page.index("Claims: later, post hoc</h2>")
    assert page.count("Written down before the run") == 1 and page.count("Post hoc: named after the run") == 1
    kept = [json.loads((tmp_path / f"{n}.json").read_text()) for n in ("claims", "claims_post_hoc")]
    assert [(k["family"], k["post_hoc"]) for k in kept] == [("mine", False), ("later", True)]


def test_verdicts_of_an_unfinished_run_are_called_provisional(claimed, tmp_path, undrawn):
    assert "every verdict is provisional" not in pages.write(claimed, tmp_path).read_text()
    claimed.attrs["status"] = "running"
    assert "every verdict is provisional" in pages.write(claimed, tmp_path).read_text()


def test_a_contrast_of_a_measure_is_told_in_its_own_units(claimed, tmp_path, undrawn):
    claim = {**FAMILY["claims"]["falls"], "measure": "refusal_score", "margin": 0.25}
    claimed["outcomes"]["refusal_score"].loc[{"condition": "compliant"}] = np.r_[np.full(49, 1.125), 1.0]
    family: Any = {**FAMILY, "claims": {"score": claim}}
    (row,) = verdict_rows(claims.evaluate(claimed, family), family)
    assert row["contrast"].startswith("-0.38 [") and row["margin"] == "0.25" and row["unit"] == "refusal_score"
    assert "<br>refusal_score" in pages.write(claimed, tmp_path, post_hoc=family).read_text()


@pytest.fixture
def commanded(monkeypatch, tmp_path, capsys):
    """Run the command on trees in place of stores: what it printed."""

    def go(trees, *flags):
        monkeypatch.setattr(store, "open_run", trees.__getitem__)
        monkeypatch.setattr(store, "locate", lambda path: tmp_path / path / "store.zarr")
        monkeypatch.setattr("sys.argv", ["gating.report", *trees, *flags])
        report.main()
        return capsys.readouterr().out

    return go


def test_several_runs_have_one_table_of_claims_adjusted_over_all_of_them(claimed, commanded, tmp_path):
    out = commanded({"first": claimed, "second": claimed.copy()})
    assert out.count("claims: mine (p adjusted over all 2 runs)") == 1 and out.count("It falls.") == 2
    assert out.index("claims: mine") > out.rindex("report: ")
    assert all((tmp_path / name / "claims.json").is_file() for name in ("first", "second"))


def test_the_command_decides_claims_from_a_file_beside_the_runs_own(claimed, commanded, tmp_path):
    (tmp_path / "later.yaml").write_text(yaml.safe_dump({**FAMILY, "family": "later"}))
    out = commanded({"one": claimed}, "--claims", str(tmp_path / "later.yaml"))
    assert re.search(r"claims: mine *\n", out) and "claims: later, post hoc: named after the run" in out
    assert "all 1 runs" not in out


def test_the_results_page_is_made_of_stores_alone(claimed):
    claimed.attrs |= RESULTS_ATTRS
    page = document([claimed], "Made before the change.")
    assert page.index("Made before the change.") < page.index("### Claims")
    assert (
        "| It falls. | -100 [" in page
        and "supported |" in page
        and "torch 2" in page
        and "conf/claims/mine.yaml" in page
    )
    assert "| `compliant` | 50 | 0% [0, 7]" in page and "`compliant-random` (2 directions)" in page


def test_a_verdict_says_which_claims_and_which_code_it_is_of(claimed):
    claimed.attrs |= {"claims_digest": claims.digest(FAMILY), "code": "c0de"}
    (own,) = tables.verdicts(claimed)
    assert f"claims {claims.digest(FAMILY)}, kept with the run from its start; code c0de" in str(own.title)
    looser = json.loads(json.dumps(FAMILY))
    looser["claims"]["falls"]["margin"] = 0.1
    decided = claims.evaluate(claimed, looser)
    assert not decided.attrs["registered"] and decided.attrs["digest"] != claims.digest(FAMILY)
    assert json.loads(claims.to_json(decided))["registered"] is False
