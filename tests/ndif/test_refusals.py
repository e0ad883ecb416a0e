"""What a server or its address turns down before a run begins: one message each, with the remedy, nothing left behind."""

from __future__ import annotations

import pytest
from nnsight.schema.config import CONFIG

from tests.ndif.test_equal import finished


@pytest.fixture
def refused(command, monkeypatch, tmp_path, capsys):
    """What the command line says, in one message and with nothing left behind, of a run that cannot begin."""

    def go(host: str, *overrides: str, key: str = "") -> str:
        monkeypatch.setattr(CONFIG.API, "APIKEY", key)
        code, lines = command("model=tiny-llama", "data.n=2", f"backend={host}", f"runs_dir={tmp_path}", *overrides)
        assert code == 2
        assert not list(tmp_path.rglob("store.zarr"))
        return " ".join(" ".join(lines).split())

    return go


def test_a_host_that_is_not_there_is_one_message_and_leaves_nothing(refused):
    assert "backend.host: no NDIF server answers at http://127.0.0.1:9" in refused("http://127.0.0.1:9")


@pytest.mark.parametrize(("key", "said"), [
    ("", "a job without a key"), ("99999999-9999-4999-8999-999999999999", "does not accept this key"),
    ("not-a-key-at-all-77", "does not accept this key"),
])  # fmt: skip
def test_a_missing_or_wrong_key_is_one_message_and_never_told(serving, refused, tmp_path, key, said):
    out = refused(serving.start_front("ndif_keys:app"), key=key)
    assert said in out
    assert "NDIF_API_KEY" in out
    assert not key or key not in out + "".join(
        p.read_text(errors="replace") for p in tmp_path.rglob("*") if p.is_file()
    )


def test_the_right_key_is_accepted_and_written_nowhere(serving, client, tmp_path):
    host, key = serving.start_front("ndif_keys:app"), "11111111-1111-4111-8111-111111111111"
    process = client(tmp_path, "model=tiny-llama", "data.n=2", "controls.random=1", host=host, NDIF_API_KEY=key)
    finished(process)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and key.encode() in p.read_bytes()]


def test_a_server_that_wants_another_version_is_one_message(serving, refused):
    host = serving.start_front("ndif.services.api.app:app", NDIF_MIN_NNSIGHT_VERSION="99")
    assert "below the minimum supported 99" in refused(host)


def test_a_model_that_is_not_served_is_named_with_those_that_are(serving, refused):
    said = refused(serving.url, "model.remote=gating/tiny-lama")
    assert "does not serve gating/tiny-lama" in said
    assert "did you mean gating/tiny-llama?" in said


def test_another_precision_than_the_served_one_is_refused(serving, refused):
    assert "serves gating/tiny-llama in float32" in refused(serving.url, "model.dtype=bfloat16")
