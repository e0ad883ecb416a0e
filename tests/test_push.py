"""A run's folder for others holds no answers; a hub gets it as one commit, and keeps what it has."""

import base64
import csv
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import load_file

from gating import push
from gating.errors import GatingError
from gating.reporting import published_run
from tests.synthetic import tree

ANSWER = "Sure, here is everything"


@pytest.fixture(scope="module")
def run():
    labels = {"baseline": [0, 0, 0, 1], "up": [1, 1, 0, 1], "up-random-0": [0, 0, 0, 1]}
    return tree(labels, harmful=[True, True, True, False], directions=["compliant", "refusal"])


class Hub(BaseHTTPRequestHandler):
    """What the library asks of a hub: a repository's info, its making, a commit of small files."""

    def answer(self, document, status=200, **headers):
        data = json.dumps(document).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(data), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        hub: Any = self.server
        if hub.private is None:
            return self.answer({"error": "no"}, 404, X_Error_Code="RepoNotFound")
        siblings = [{"rfilename": name} for name in hub.files]
        self.answer({"id": "me/one", "private": hub.private, "sha": "a" * 40, "siblings": siblings})

    def do_POST(self):
        hub: Any = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "/create" in self.path:
            asked = json.loads(body)
            hub.private = asked.get("private", asked.get("visibility") == "private")
            return self.answer({"url": "http://127.0.0.1/datasets/me/one"})
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if "/commit/" in self.path:
            lines = [json.loads(line) for line in body.decode().splitlines()]
            hub.parents.append(lines[0]["value"]["parentCommit"])
            new = {v["value"]["path"]: base64.b64decode(v["value"]["content"]) for v in lines if v["key"] == "file"}
            hub.files |= new
            return self.answer({"commitUrl": "http://127.0.0.1/datasets/me/one/commit/b", "commitOid": "b" * 40})
        return self.answer({"errors": [], "warnings": []})

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.private, server.parents = {}, None, []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    real, url = huggingface_hub.HfApi, f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: real(endpoint=url, token="hf_test"))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_folder_holds_rates_with_n_and_directions_and_no_word_of_an_answer(run, tmp_path):
    names = published_run.write(run, tmp_path)
    assert names == ["README.md", "contrasts.csv", "directions.safetensors", "rates.csv"]
    assert not any(ANSWER.encode() in p.read_bytes() or b"bad thing" in p.read_bytes() for p in tmp_path.iterdir())
    with (tmp_path / "rates.csv").open() as file:
        (row,) = (
            r
            for r in csv.DictReader(file)
            if (r["condition"], r["label"], r["prompts"]) == ("up", "refusal", "harmful")
        )
    assert (row["k"], row["n"]) == ("1", "3") and float(row["low"]) < 1 / 3 < float(row["high"])
    vectors = load_file(tmp_path / "directions.safetensors")
    kept = run["directions"]["vector"].sel(direction="refusal").values
    assert set(vectors) == {"compliant", "refusal"} and np.array_equal(vectors["refusal"], kept)
    said = (tmp_path / "README.md").read_text()
    assert (
        all(words in said for words in ("33.3% [", "| 3 |", "## Dual use", "3 of 9 overlap"))
        and "up-random" not in said
    )


def test_answers_go_where_they_are_asked_for_and_the_card_says_so(run, tmp_path):
    assert "answers.csv" in published_run.write(run, tmp_path, answers=True)
    assert (
        ANSWER in (tmp_path / "answers.csv").read_text() and "some may comply" in (tmp_path / "README.md").read_text()
    )


def test_a_run_that_is_not_complete_is_not_handed_on(run, tmp_path):
    half = run.copy()
    half.attrs = {**run.attrs, "status": "running"}
    with pytest.raises(GatingError, match="the run is running"):
        published_run.write(half, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_push_makes_a_private_repository_and_takes_no_files_place_without_force(run, tmp_path, hub):
    names = published_run.write(run, tmp_path)
    push.push(tmp_path, names, "me/one")
    assert hub.private is True and hub.parents == ["a" * 40]
    assert {k: v for k, v in hub.files.items() if k != ".gitattributes"} == {
        name: (tmp_path / name).read_bytes() for name in names
    }
    hub.files["rates.csv"] = b"another's"
    with pytest.raises(GatingError, match=r"me/one has README.md, contrasts.csv, .* already"):
        push.push(tmp_path, names, "me/one")
    assert hub.files["rates.csv"] == b"another's"
    push.push(tmp_path, names, "me/one", force=True)
    assert hub.files["rates.csv"] == (tmp_path / "rates.csv").read_bytes()


def test_nothing_goes_to_a_repository_that_is_more_open_than_was_said(run, tmp_path, hub):
    hub.private = False
    with pytest.raises(GatingError, match=r"me/one is public on the hub.*say --public"):
        push.push(tmp_path, published_run.write(run, tmp_path), "me/one")
    assert not hub.files


@pytest.mark.parametrize(
    ("words", "why"), [(["x"], "is not OWNER/NAME"), (["me/one", "--answers", "--public"], "private repository alone")]
)
def test_a_push_that_cannot_be_meant_is_refused_before_anything_is_read(words, why, capsys):
    with pytest.raises(SystemExit) as stop:
        push.main(["nowhere", *words])
    assert stop.value.code == 2 and why in capsys.readouterr().out
