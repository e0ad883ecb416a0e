"""The Python door is the command line with keywords; runs are listed, compared and exported."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import gating
from gating import compare, door, export, models, runs, store, view
from gating.analysis import comparing
from gating.errors import GatingError
from gating.pipeline import study
from gating.reporting import listing, viewer
from tests.conftest import compose

SMALL = {"max_new_tokens": 3, "directions": {"n": 4, "questions": 2}, "steer.layers": 1, "steer.coef": 2.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two runs of a model that was loaded before, and the model."""
    folder = tmp_path_factory.mktemp("runs")
    loaded = models.load(models.ModelConfig(name="x", kind="tiny", architecture="qwen2"))
    asked = {"model": loaded.model, "tokenizer": loaded.tokenizer, "runs_dir": folder, **SMALL}
    one = gating.run(steer="compliant", data={"n": 3}, **asked)
    other = gating.run(steer="compliant", data={"n": 2}, seed=1, **asked)
    return folder, loaded.model, one, other, asked


def test_a_loaded_model_is_used_as_it_stands_and_its_weights_are_in_the_key(made):
    _, model, one, _, asked = made
    again = gating.run(steer="compliant", data={"n": 3}, **asked)
    assert again.folder == one.folder and again.how.startswith("opened")
    planned = gating.study(steer="compliant", data={"n": 3}, **asked)
    assert models.load(planned.run.model).model is model and planned.run.model.kind == "given"
    weight = model.get_input_embeddings().weight.data
    weight[5, 0] += 1.0
    try:
        assert gating.study(steer="compliant", data={"n": 3}, **asked).folder != one.folder
    finally:
        weight[5, 0] -= 1.0


def test_a_run_shows_itself_in_a_notebook_and_in_a_shell(made):
    _, _, one, _, _ = made
    shown = one._repr_html_()
    assert "<table>" in shown and "compliant-random-0" in shown and "95% interval" in shown
    assert "compliant: refusal" in repr(one) and int(one.refusal_rate().sel(condition="baseline")["n"]) == 3
    assert one.picture().axes and set(one.contrast()["condition"].values) >= {"baseline", "compliant"}
    with pytest.raises(GatingError, match="this run has"):
        one.picture("nothing")


def test_the_same_settings_have_one_key_at_the_command_line_and_in_python():
    draw = random.Random(0)
    for _ in range(20):
        given = {
            "steer": draw.choice(["evil", "compliant", "refusal", "random"]), "data.n": draw.randint(2, 5),
            "seed": draw.randint(0, 9), "steer.coef": draw.choice([1, 2.5, [1, 2]]),
            "steer.layers": draw.choice([1, "1-2"]),
            "controls.reverse": draw.random() < 0.5, "steer.scope": draw.choice(["all", "generated"]),
        }  # fmt: skip
        said = [f"{k}={json.dumps(v) if not isinstance(v, str) else v}" for k, v in given.items()]
        said = [w.replace("steer=evil", "steer=persona") for w in said] + (
            ["steer.direction=evil"] if given["steer"] == "evil" else []
        )
        nested = {k: v for k, v in given.items() if k != "data.n"} | {"data": {"n": given["data.n"]}}
        assert door.study("tiny-llama", **nested).folder == study.prepare(*compose("model=tiny-llama", *said)).folder


def test_conditions_are_plain_python():
    mine = {"mine": [{"direction": "compliant", "layers": 1, "coef": 2}], "told": {"system": "evil", "do": []}}
    planned = door.study("tiny-qwen", steer="none", conditions=mine, data={"n": 2})
    assert {"mine", "told"} <= {c.name for c in planned.conditions}


@pytest.mark.parametrize(
    ("given", "said"),
    [({"model": 3}, "model is a int"), ({"steer": "evill"}, "evil"), ({"data": {"m": 2}}, "data.m"),
     ({"data": {"n": object()}}, "no value of a setting"), ({"tokenizer": 1}, "tokenizer"), ({"colour": 1}, "colour")],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_sentence(given, said):
    with pytest.raises(GatingError, match=said):
        door.study(**({"model": "tiny-qwen"} | given))


def test_a_folder_of_runs_is_a_table_whose_index_is_made_again_only_where_a_store_changed(made, capsys, monkeypatch):
    folder, _, one, _, _ = made
    lines = listing.listing(folder)
    assert {line["n"] for line in lines} == {2, 3} and all(line["status"] == "complete" for line in lines)
    monkeypatch.setattr(listing, "_line", lambda path: pytest.fail(f"{path} was read again"))
    assert listing.listing(folder) == lines
    runs.main([str(folder), "data.n=3", "--json"])
    (found,) = json.loads(capsys.readouterr().out)
    assert found["run"] == str(one.folder) and found["settings"]["data.n"] == 3
    runs.main([str(folder), "--sort", "n"])
    assert "2 runs" in capsys.readouterr().out
    with pytest.raises(GatingError, match="neither a column nor a setting"):
        listing.matching(lines, {"colour": "red"})


def test_an_index_that_somebody_broke_is_made_again_and_a_word_given_twice_is_refused(made, capsys):
    folder, *_ = made
    lines = listing.listing(folder)
    for held in ("", "[]", '{"form": 1}', '{"form": 1, "runs": []}', '{"form": 1, "runs": {"x": 3}}',
                 json.dumps({"form": 1, "runs": {Path(lines[0]["run"]).name: {"line": {}}}})):  # fmt: skip
        (folder / listing.INDEX).write_text(held)
        assert listing.listing(folder) == lines
    with pytest.raises(SystemExit):
        runs.main([str(folder), "model=a", "model=b"])
    assert "model has two values" in " ".join(capsys.readouterr().out.split())


def test_a_store_that_cannot_be_read_has_a_line_that_says_so(made, tmp_path):
    (tmp_path / "broken" / "store.zarr").mkdir(parents=True)
    (line,) = listing.listing(tmp_path)
    assert line["status"].startswith("unreadable") and "store.zarr" in line["status"]


def test_two_runs_are_compared_on_the_prompts_that_both_asked(made, capsys):
    _, _, one, other, _ = made
    assert {s.key for s in comparing.differing(one.tree, other.tree)} == {"data.n", "seed"}
    compared = comparing.compare(one.tree, one.tree)
    assert np.allclose(compared["difference"], 0) and (compared["n"] == 3).all()
    compare.main([str(one.folder), str(one.folder)])
    assert "that both asked" in capsys.readouterr().out


def test_an_export_has_a_row_an_answer_no_text_unless_asked_and_takes_no_files_place(made, tmp_path):
    _, _, one, _, _ = made
    path = export.export(one.folder, "csv", tmp_path / "a.csv")
    table = pd.read_csv(path)
    outcomes = store.open_run(one.folder)["outcomes"]
    assert len(table) == outcomes["label"].size and "completion" not in table and "text" not in table
    assert {"completion", "text"} <= set(export.frame(one.tree, full_text=True))
    with pytest.raises(GatingError, match="exists"):
        export.export(one.folder, "csv", path)


@pytest.mark.parametrize(("to", "package"), [("parquet", "pyarrow"), ("netcdf", "h5netcdf")])
def test_an_export_in_another_format_reads_back_or_names_the_extra(made, tmp_path, to, package, monkeypatch):
    _, _, one, _, _ = made
    if package in sys.modules or __import__("importlib.util").util.find_spec(package):
        assert export.export(one.folder, to, tmp_path / f"a.{to}").stat().st_size > 0
    else:
        with pytest.raises(GatingError, match=r"gating\[export\]"):
            export.export(one.folder, to, tmp_path / f"a.{to}")


def test_the_page_of_answers_holds_openings_every_judges_label_and_nothing_that_a_model_said_can_break(made, tmp_path):
    folder, _, one, _, _ = made
    place = view.page([str(folder)], str(tmp_path / "view.html"))
    text = place.read_text()
    data = json.loads(text.split('type="application/json">')[1].split("</script>")[0])
    assert {run["name"] for run in data["runs"]} >= {one.folder.name}
    run = next(r for r in data["runs"] if r["name"] == one.folder.name)
    assert len(run["answers"]) == len(run["conditions"]) == len(run["labels"]["own"])
    assert all(len(row) == len(run["prompts"]) for row in [*run["answers"], *run["labels"]["own"]])
    assert all(len(p["text"].split()) <= 7 for p in run["prompts"]) and "http://" not in text.replace(
        "http://www.w3.org", ""
    )
    hostile = one.tree.copy(deep=True)
    hostile["outcomes"]["completion"][0, 0] = "</script><script>alert(1)</script>"
    assert "<script>alert" not in viewer.rendered({"x": hostile}, full_text=True)
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(GatingError, match="is not such a page"):
        view.page([str(one.folder)], str(tmp_path / "mine.html"))
