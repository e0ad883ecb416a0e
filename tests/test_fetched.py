"""A finished run at an address is copied, every file checked, and opened; what is not one is refused by its address."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from gating import store
from gating.errors import GatingError
from gating.store import fetched, files
from tests.test_store import filled, lay_out

SECRET = "c2VjcmV0LWtleS1vZi1hLXRlc3Q"


class Place(SimpleHTTPRequestHandler):
    """A web server of files which is an S3 of one bucket too: what lies in /closed/ wants a signed request."""

    def do_GET(self):
        server: Any = self.server
        server.asked.append(self.path)
        if self.path.startswith("/closed/") and "Credential=AKTEST/" not in self.headers.get("Authorization", ""):
            return self.send_error(403, f"<Error><Key>{SECRET}</Key></Error>")
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", self.path.replace("/moved/", "/open/"))
            return self.end_headers()
        return super().do_GET()

    def end_headers(self):
        self.send_header("ETag", '"1"')
        super().end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A server over a folder with a finished run in open/runs/one and closed/runs/one; (its address, the folder)."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    served = tmp_path / "served"
    path = lay_out(served / "open/runs/one")
    for start, n in ((0, 2), (2, 2), (4, 1)):
        store.write_batch(path, start, {"outcomes": filled(3, n, 1)})
    store.finish(path, {})
    (served / "closed").symlink_to(served / "open")
    (served / "moved").mkdir()
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), partial(Place, directory=str(served)))
    server.asked = []
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server, f"http://127.0.0.1:{server.server_port}", served / "open/runs/one/store.zarr"
    server.shutdown()
    server.server_close()


@pytest.fixture
def s3(place, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SKIP_SIGNATURE", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", place[1])
    return place


def test_a_run_on_a_web_server_is_the_run_and_is_fetched_once(place):
    server, url, path = place
    run = store.open_run(f"{url}/open/runs/one/")
    assert run.load().identical(store.open_run(path).load())
    begun = len(server.asked)
    assert store.open_run(f"{url}/open/runs/one/store.zarr")["outcomes"]["done"].all()
    assert len(server.asked) - begun == 2  # its list, its attributes


def test_a_run_in_a_bucket_opens_unsigned_where_it_is_public_and_signed_where_there_are_credentials(s3, monkeypatch):
    assert store.open_run("s3://open/runs/one").load().identical(store.open_run(s3[2]).load())
    with pytest.raises(GatingError, match=r"^s3://closed/runs/one/store.zarr/files.sha256 cannot be read: ") as error:
        store.open_run("s3://closed/runs/one")
    assert "PermissionDenied" in str(error.value) and SECRET not in str(error.value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKTEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert store.open_run("s3://closed/runs/one")["outcomes"]["done"].all()
    with pytest.raises(GatingError, match=r"s3://closed/runs/two/.* cannot be read: it is not there"):
        store.open_run("s3://closed/runs/two")


def test_the_copy_of_a_run_is_read_and_never_written(place):
    copy = store.locate(f"{place[1]}/open/runs/one")
    with (
        pytest.raises(GatingError, match=f"is a copy of {place[1]}/open/runs/one/store.zarr"),
        store.writer(copy.parent),
    ):
        pass
    assert store.problems(copy) == []


def test_a_file_that_was_changed_there_is_refused_by_its_address_and_one_changed_here_is_fetched_again(place):
    _, url, path = place
    key = next(k for k in files.read_list(path) if k.startswith("outcomes/label/c/"))
    copy = store.locate(f"{url}/open/runs/one")
    (copy / key).write_bytes(b"other")
    assert (store.locate(f"{url}/open/runs/one") / key).read_bytes() == (path / key).read_bytes()
    (path / key).write_bytes(b"other")
    (copy / key).unlink()
    with pytest.raises(GatingError, match=f"/open/runs/one/store.zarr/{key} is not as it was written"):
        store.locate(f"{url}/open/runs/one")


def test_a_run_that_is_not_finished_a_path_out_of_the_folder_and_too_large_a_file_are_refused(place, monkeypatch):
    _, url, path = place
    half = lay_out(path.parents[1] / "half")
    with pytest.raises(GatingError, match=r"open/runs/half/store.zarr is not a finished run \(status 'running'\)"):
        store.locate(f"{url}/open/runs/half")
    files._write_list(half, files.read_list(half) | {"../../x": "0" * 64})
    with pytest.raises(GatingError, match=r"names '\.\./\.\./x', which is no file of a store"):
        store.locate(f"{url}/open/runs/half")
    monkeypatch.setattr(fetched, "FILE_BYTES", 20)
    with pytest.raises(GatingError, match="more than the 20 bytes that are read of it"):
        store.locate(f"{url}/open/runs/one")
    with pytest.raises(GatingError, match="sends us elsewhere"):
        store.locate(f"{url}/moved/runs/one")


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("http://example.org/runs/one", "is not encrypted"),
        (f"https://me:{SECRET}@example.org/one", "holds a user or a password"),
        (f"s3://me:{SECRET}@bucket/one", "is not s3://BUCKET/PATH"),
        ("s3://bucket", "is not s3://BUCKET/PATH"),
        (f"https://example.org/one?token={SECRET}", "has no query"),
        ("gs://bucket/one", "a run is read from a folder, or from s3://, https:// or http://"),
    ],
)
def test_an_address_that_is_none_is_refused_without_its_secrets(address, why):
    with pytest.raises(GatingError, match=why) as error:
        store.open_run(address)
    assert SECRET not in str(error.value)
