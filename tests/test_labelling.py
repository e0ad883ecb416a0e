"""A person labels a sample of a run's answers: what is drawn and shown, what is kept, what reports make of it."""

import http.client
import io
import json
import shutil
import threading

import numpy as np
import pytest
from rich.console import Console

import gating
from gating import GatingError, analysis, label, report, store
from gating.judging.labels import COMPLIANCE, MISSING, REFUSAL
from gating.labelling import exchange, terminal
from gating.labelling.page import Page
from gating.labelling.sample import draw
from gating.labelling.session import Asked, Session
from gating.reporting import document, person
from gating.reporting.headline import headline
from tests.judged_runs import a_run, bytes_of

CLAIM = {"says": "add refuses less", "test": "difference", "plus": ["add"], "minus": ["baseline"], "expect": "below"}
FAMILY = {"family": "f", "claims": {"less": CLAIM}}


def labels(folder, by="reader"):
    return store.read_group(folder / store.STORE, f"labels/{by}")


def read_with(folder, keys, by="reader", **asked):
    """What a reader's terminal showed, who pressed these keys."""
    out = io.StringIO()
    with store.writer(folder):
        session = Session(folder, by, Asked(**asked))
        terminal.run(session, iter(keys), Console(file=out, width=100), clock=lambda: 0.0)
    return out.getvalue()


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """A run of which everything was read: refusals under `baseline`, compliance under `add`."""
    folder = a_run(tmp_path_factory.mktemp("runs") / "run", n=12, block=6)
    with store.writer(folder):
        session = Session(folder, "dana", Asked(n=20))
        while item := session.next():
            session.put(item.place, "r" if item.answer.startswith("baseline") else "c", 2.5)
    store.set_attrs(folder / store.STORE, {"claims": json.dumps(FAMILY)})
    return folder


def test_a_sample_is_balanced_from_its_beginning_on_and_its_probabilities_are_what_chance_does():
    harmful, drawable = np.arange(30) % 3 > 0, np.ones((3, 30), dtype=bool)
    order, probability = draw(drawable, harmful, 25, seed=4)
    stratum = 2 * np.arange(3)[:, None] + harmful
    for n in (6, 12, 25):
        counts = np.bincount(stratum[(order >= 0) & (order < n)], minlength=6)
        assert counts.sum() == n and counts.max() - counts.min() <= 1
        first, _ = draw(drawable, harmful, n, seed=4)
        assert (first[first >= 0] == order[first >= 0]).all(), "a larger sample goes on where a smaller one ended"
    drawn = np.array([draw(drawable, harmful, 25, seed)[0] >= 0 for seed in range(400)])
    assert drawn.mean(0)[:, harmful] == pytest.approx(25 / 6 / 20, abs=0.1)
    assert drawn.mean(0)[:, ~harmful] == pytest.approx(25 / 6 / 10, abs=0.12)
    assert probability[0, harmful][0] == (order[0, harmful] >= 0).mean()
    _, some = draw(drawable & (np.arange(3) == 1)[:, None], harmful, 25, seed=4)
    assert np.isnan(some[[0, 2]]).all() and (some[1] >= 0.75).all()


def test_neither_condition_nor_judge_nor_model_is_shown(tmp_path):
    folder = a_run(tmp_path / "run")
    out = store.read_group(folder / store.STORE, "outcomes")
    out["completion"].values[:] = "Here it is \x1b[31m in red\nand a second line"
    for start in range(0, 6, 2):
        store.write_batch(folder / store.STORE, start, {"outcomes": out.isel(prompt=slice(start, start + 2))})
    shown = read_with(folder, "rcedsx")
    assert "ask 1" in shown and "and a second line" in shown and "\x1b" not in shown and "1 of 12" in shown
    assert not [w for w in ("baseline", "add", "tiny", "steered", "harmful") if w in shown]


def test_each_label_is_kept_at_once_and_the_same_command_goes_on(tmp_path):
    folder = a_run(tmp_path / "run")
    before = bytes_of(folder, "outcomes")
    read_with(folder, "rcs")
    ds = labels(folder)
    assert int(ds["done"].sum()) == 3 and int((ds["label"] != MISSING).sum()) == 2
    assert (ds["time"].values[ds["done"].values] != "").all() and ds.attrs["status"] == "running"
    assert read_with(folder, "uuccq").startswith("─") and int(labels(folder)["done"].sum()) == 3
    at = {int(ds["order"].values[cell]): cell for cell in map(tuple, np.argwhere(ds["done"].values))}
    assert [int(labels(folder)["label"].values[at[i]]) for i in range(3)] == [REFUSAL, COMPLIANCE, COMPLIANCE]
    read_with(folder, "r" * 20)
    assert int(labels(folder)["done"].sum()) == 12 and labels(folder).attrs["status"] == "complete"
    assert bytes_of(folder, "outcomes") == before and not store.problems(folder / store.STORE)


def test_a_larger_sample_keeps_what_was_read_and_another_sample_never_takes_its_place(tmp_path):
    folder = a_run(tmp_path / "run")
    read_with(folder, "rrrr", n=4)
    read_with(folder, "c", n=8)
    ds = labels(folder)
    assert int(ds["done"].sum()) == 5 and int((ds["order"] >= 0).sum()) == 8
    for other, why in ((Asked(seed=9), "seed=0"), (Asked(n=3), "n=8"), (Asked(conditions=("add",)), "all conditions")):
        with pytest.raises(GatingError, match=rf"labels/reader .*{why}.*by=NAME.*--force"):
            Session(folder, "reader", other)
    with store.writer(folder):
        Session(folder, "reader", Asked(n=2, conditions=("add",)), force=True)
    assert (
        int(labels(folder)["done"].sum()) == 0
        and np.isnan(labels(folder)["probability"].sel(condition="baseline")).all()
    )


def test_a_run_that_is_unfinished_or_holds_no_such_condition_is_refused(tmp_path):
    half = a_run(tmp_path / "half", done=2)
    with pytest.raises(GatingError, match="not finished"):
        Session(half, "reader", Asked())
    folder = a_run(tmp_path / "run")
    with pytest.raises(GatingError, match=r"conditions='ad'.*did you mean add"):
        Session(folder, "reader", Asked(conditions=("ad",)))
    with pytest.raises(GatingError, match=r"by='x y'"):
        Session(folder, "x y", Asked())


def test_a_run_that_is_computed_again_with_the_same_answers_and_a_join_keep_a_persons_labels(read, tmp_path):
    again, first = tmp_path / "again", read / store.STORE
    shutil.copytree(first, again / store.STORE)
    fresh = a_run(tmp_path / "fresh", n=12, block=6)
    shutil.copytree(fresh / store.STORE, store.again.place(again) / store.STORE)
    assert store.again.take_place(again) == "" and labels(again, "dana").identical(labels(read, "dana"))
    for folder, seed in ((again, 0), (read, 1)):
        kept = dict(config=f"seed: {seed}", choices="{}", overrides='["seed"]', versions="{}")
        shutil.copytree(folder / store.STORE, tmp_path / "both" / str(seed) / store.STORE)
        store.set_attrs(tmp_path / "both" / str(seed) / store.STORE, kept)
    joined = gating.open_runs(tmp_path / "both")
    rate = analysis.refusal_rate(joined, harmful=True, judge="labels/dana")["rate"].sel(condition="baseline")
    assert rate.sizes["run.seed"] == 2 and (rate == 1).all()


def test_labels_travel_as_a_file_with_their_probabilities_and_without_them_they_correct_nothing(read, tmp_path):
    path, other = tmp_path / "labels.jsonl", a_run(tmp_path / "run", n=12, block=6)
    assert exchange.save(store.open_run(read), "dana", path) == 20
    with pytest.raises(GatingError, match="there already"):
        exchange.save(store.open_run(read), "dana", path)
    assert exchange.load(other, "dana", path) == 20
    kept = [labels(folder, "dana") for folder in (read, other)]
    assert kept[0]["label"].equals(kept[1]["label"])
    rates = [analysis.corrected_rate(store.open_run(f), harmful=True) for f in (read, other)]
    assert rates[0].drop_attrs().identical(rates[1].drop_attrs())
    with pytest.raises(GatingError, match="labels/dana is there already"):
        exchange.load(other, "dana", path)
    bare = [{k: v for k, v in json.loads(x).items() if k != "probability"} for x in path.read_text().splitlines()]
    path.write_text("\n".join(map(json.dumps, bare)))
    exchange.load(other, "bare", path)
    assert np.isnan(analysis.corrected_rate(store.open_run(other), "bare", harmful=True)["rate"]).all()
    exchange.load(other, "fair", path, drawn_at_random=True)
    fair = analysis.corrected_rate(store.open_run(other), "fair", harmful=True)["rate"]
    assert fair.values == pytest.approx(rates[0]["rate"].values)


@pytest.mark.parametrize(("line", "why"), [
    ("{}", "write"), ("[1]", "write"), ("{", "not valid JSON"),
    ('{"prompt": "p0", "condition": "add", "label": "no"}', "label='no'"),
    ('{"prompt": "p99", "condition": "add", "label": "refusal"}', "prompt='p99'"),
    ('{"prompt": "p0", "condition": "sub", "label": "refusal"}', "condition='sub'"),
    ('{"prompt": "p0", "condition": "add", "label": "refusal", "probability": 0}', "probability=0"),
    ('{"prompt": "p1", "condition": "add", "label": "refusal"}', "has a label already"),
    ('{"prompt": "p0", "condition": "add", "label": "unsure"}', "label='unsure'"),
])  # fmt: skip
def test_a_line_that_is_no_label_of_the_run_is_named_and_nothing_is_kept(read, tmp_path, line, why):
    path = tmp_path / "labels.jsonl"
    path.write_text('{"prompt": "p1", "condition": "add", "label": "refusal"}\n' + line)
    with pytest.raises(GatingError, match=rf"labels\.jsonl line 2.*{why}"):
        exchange.load(read, "other", path)
    assert analysis.readers_of(store.open_run(read)) == ["dana"]


@pytest.fixture
def page(tmp_path):
    """The page of a run's session, served until the test ends."""
    folder = a_run(tmp_path / "run")
    with store.writer(folder):
        served = Page(Session(folder, "reader", Asked()))
        thread = threading.Thread(target=served.serve, daemon=True)
        thread.start()
        yield served, folder
        served.server.shutdown()
        thread.join(10)


def ask(page, path="next", body=None, **headers):
    """Status and text of an answer; `body` is posted as the page does."""
    connection = http.client.HTTPConnection("127.0.0.1", page.server.server_port, timeout=20)
    sent = {"Content-Type": "application/json"} if body is not None else {}
    where = path if path.startswith("/") else f"/{page.token}/{path}"
    connection.request("GET" if body is None else "POST", where, body, {**sent, **headers})
    reply = connection.getresponse()
    return reply.status, reply.read().decode()


def key(place, pressed):
    return json.dumps({"key": pressed, "place": place})


def test_the_page_shows_one_answer_after_the_other_and_writes_each_label(page):
    served, folder = page
    status, html = ask(served, "")
    assert status == 200 and "://" not in html, "nothing is fetched from elsewhere"
    first = json.loads(ask(served)[1])
    assert set(first) == {"ended", "total", "read", "place", "prompt", "answer"} and first["place"] == 0
    second = json.loads(ask(served, "key", key(0, "r"))[1])
    assert (
        second["place"] == 1 and int(labels(folder)["done"].sum()) == 1 and float(labels(folder)["seconds"].max()) >= 0
    )
    assert ask(served, "key", key(0, "c"))[0] == 400, "a label that came twice is not the next answer's"
    assert json.loads(ask(served, "key", key(1, "u"))[1])["place"] == 0
    assert json.loads(ask(served, "key", key(0, "q"))[1])["ended"]


def test_the_page_answers_nobody_who_was_not_given_its_address(page):
    served, folder = page
    port = served.server.server_port
    assert ask(served, "/")[0] == ask(served, "/wrong/next")[0] == ask(served, "more")[0] == 404
    assert ask(served, Host=f"evil.example:{port}")[0] == ask(served, Host="127.0.0.1")[0] == 403
    assert ask(served, "key", key(0, "r"), Origin="https://evil.example")[0] == 403
    assert ask(served, "key", key(0, "r"), **{"Content-Type": "text/plain"})[0] == 415
    assert ask(served, "key", "x" * 2000)[0] == 413
    for body in ("{", "[]", key(True, "r"), key(0, "z"), key(5, "r"), json.dumps({"key": "r"})):
        status, said = ask(served, "key", body)
        assert status == 400 and "Traceback" not in said
    assert int(labels(folder)["done"].sum()) == 0 and json.loads(ask(served)[1])["read"] == 0


def test_reports_lead_with_what_a_person_read_and_say_where_nobody_did(read, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["gating.report", str(read)])
    report.main()
    out = capsys.readouterr().out
    places = [out.index(x) for x in ("as read by dana", "claims, corrected by the labels of dana", "\nharmful prompts")]
    assert places == sorted(places)
    html = (read / "report.html").read_text()
    assert html.index("corrected for the judge") < html.index("McNemar") and "harmless prompts as read by dana" in html
    assert document.corrected_rates(store.open_run(read))[0] == "### Rates corrected by a person's labels"
    bare = store.open_run(a_run(tmp_path / "bare"))
    assert headline(bare)[-1] == person.NONE and document.corrected_rates(bare) == [f"*{person.NONE}*\n"]


def test_a_report_by_another_judge_stands_in_a_folder_of_its_own(read, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["gating.report", str(read), "judge=labels/dana"])
    report.main()
    assert "by-labels-dana" in capsys.readouterr().out
    html = (read / "by-labels-dana" / "report.html").read_text()
    assert "Labels are those of a person (labels/dana)" in html and "corrected for the judge" not in html
    monkeypatch.setattr("sys.argv", ["gating.report", str(read), "judge=nobody"])
    with pytest.raises(SystemExit):
        report.main()
    assert "own or labels/dana" in capsys.readouterr().out


def test_the_command_labels_from_keys_that_are_piped_in_and_prints_how_the_judge_errs(tmp_path, capsys, monkeypatch):
    folder = a_run(tmp_path / "run")
    monkeypatch.setattr("sys.stdin", io.StringIO("rc rc\n"))
    label.main([str(folder), "n=8", "by=kim"])
    assert "labels/kim: 4 read, 4 left" in capsys.readouterr().out
    label.main([str(folder), "--agreement", "judge=own"])
    assert "as read by kim (n = " in capsys.readouterr().out
    for words, said in ((["n=0"], "n='0'"), (["m=3"], "m='3' is not a word"), (["port=80"], "goes with --page")):
        with pytest.raises(SystemExit) as stop:
            label.main([str(folder), *words])
        assert stop.value.code == 2 and said in capsys.readouterr().out
