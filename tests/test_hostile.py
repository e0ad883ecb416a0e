"""Servers that mean ill: a fixed sample of what `python -m tests.malicious` tries, in this process."""

import contextlib
import socket
import threading
import time

import pytest

from gating import addresses, event_loop, rejudge, web
from gating.errors import GatingError
from tests import hostile_servers, malicious
from tests.hostile import ANY, ESCAPES, says, whole
from tests.judged_runs import a_run

TREATED_ALIKE = ("a gzip bomb in gzip", "a deflate bomb", "a zstd bomb", "a gzip bomb", "TLS", "SSH")


@pytest.fixture
def hostile(monkeypatch):
    """Start a server of these acts on loopback: its address."""
    listeners = []
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    def go(acts):
        listener = socket.create_server(("127.0.0.1", 0), backlog=50)
        listeners.append(listener)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        given = acts(url) if callable(acts) else acts

        def serve():
            with contextlib.suppress(OSError):  # when the test is over
                malicious.answer(listener, given, url)

        threading.Thread(target=serve, daemon=True).start()
        return url

    yield go
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def test_no_answer_takes_longer_than_it_may_or_is_anything_but_json_or_a_refusal(hostile):
    acts = {f"/{i}": act for i, (name, act) in enumerate(ANY.items()) if name not in TREATED_ALIKE}
    names, url = list(ANY), hostile(acts)
    event_loop.ready()
    for path in acts:
        name, began = names[int(path[1:])], time.monotonic()
        try:
            document = web.ask("GET", f"{url}{path}/", 0.5).json()
        except web.NoAnswer as e:
            document = None
            assert len(str(e)) < 400 and str(e).isprintable(), name
        assert time.monotonic() - began < 10, name
        assert (
            document in (None, 7, True, {}, [1, 2]) or len(document) == 300_001 or document == {"detail": ESCAPES * 50}
        )


@pytest.mark.parametrize(("path", "act", "said"), [
    ("/ping", ANY["a web page"], "captive portal"),
    ("/ping", ANY["a redirect to another host"], "sends us elsewhere"),
    ("/env", says({"packages": {"nnsight": "0.1; rm x"}}), "form"),
    ("/status", says({"deployments": {str(i): {"repo_id": f"o/{i}{ESCAPES}", "application_state": "HOT"}
                                      for i in range(500)}}), "and 488 more"),
    ("/request", says({"id": "../../etc"}), "an id that is none"),
    ("/response", says(hostile_servers.state("COMPLETED", data="file:///etc/passwd")), "not an http"),
    ("/response", says(hostile_servers.state("ERROR", f"Traceback (most recent call last)\n{ESCAPES}")),
     "the job failed"),
    ("/result", whole(b"\x00"), "cannot be read"),
])  # fmt: skip
def test_a_server_that_means_ill_ends_a_run_in_one_error(path, act, said, hostile, command, monkeypatch):
    url = hostile(lambda u: {**hostile_servers.ndif(u), path: act})
    limits = [f"backend.{k}={v}" for k, v in {"deadline": 5, "outage": 0.5, "attempts": 1}.items()]
    code, lines = command("model=tiny-llama", f"backend={url}", "data.n=1", "controls.random=0", *limits)
    text = "\n".join(lines)
    if said == "form":  # a version that is none counts as unknown
        assert "rm x" not in text
    else:
        assert said in text
    assert code == 2 and len([x for x in lines if x.startswith("error:")]) == 1 and "Traceback" not in text
    assert all(c.isprintable() for c in text.replace("\n", ""))


@pytest.mark.parametrize(("act", "said"), [
    (ANY["a web page that says it is JSON"], "captive portal"), (ANY["brotli, it says"], "compressed"),
    (ANY["NaN"], "no chat completion"), (ANY["an endless body"], "more than the"),
    (says({"choices": [{"message": {"content": "[" * 9000}}]}), "not one answer was judged"),
])  # fmt: skip
def test_a_judge_that_means_ill_ends_in_one_error_and_not_in_success(act, said, hostile, tmp_path, capsys):
    url, folder = hostile({"/": act}), a_run(tmp_path / "run", n=1)
    with pytest.raises(SystemExit) as stop:
        rejudge.main([str(folder), "judge=endpoint", f"base_url={url}/v1", "id=m", "key_variable=null", "wait=0.1"])
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and said in out and out.count("error:") == 1 and "Traceback" not in out + err


GOOD = ["http://127.0.0.1:8401", "http://[::1]:8000/", "https://host.org/a/v1", "http://é.org", "http://host_1"]
BAD = ["http://user:PASSWORD@host", "http:user:PASSWORD@host", "user:PASSWORD@host", "http://u:PASS/WORD@h", "http://PASSWORD@h",
       "http://h?key=PASSWORD", "http://h#PASSWORD", "http://h:99999", "http://h:0", "http://h:port", "http://h:", "http://",
       "http://[::1", "http://[::g]", "ftp://h", "h:80", "//h", "", "http://a b", "http://a\n", "http://a\\b", "http://a..b",
       "http://0x7f.1", "http://127.1", f"http://{'a' * 300}"]  # fmt: skip


def test_an_address_is_http_with_a_host_and_a_port_that_can_be_and_its_password_is_never_repeated():
    assert [addresses.checked(a, "backend.host") for a in GOOD] == [a.rstrip("/") for a in GOOD]
    for address in BAD:
        with pytest.raises(GatingError, match=r"^backend\.host") as e:
            addresses.checked(address, "backend.host")
        assert "PASS" not in str(e.value) and "WORD" not in str(e.value) and len(str(e.value)) < 500, address


@pytest.mark.parametrize("word", ["backend={}", "backend.host={}", "+backend.host={}", "backend.host='{}"])
def test_a_password_in_the_address_of_a_server_is_neither_shown_nor_kept(word, command, tmp_path):
    code, lines = command("model=tiny-llama", "dry_run=true", word.format("http://user:PASSWORD@host"))
    assert code == 2 and "PASSWORD" not in "".join(lines) and "password" in "".join(lines)
    assert not list(tmp_path.iterdir())


def test_nor_is_one_in_the_environment(monkeypatch):
    from nnsight.schema.config import CONFIG

    from gating.remote import address

    monkeypatch.setattr(CONFIG.API, "HOST", "https://user:PASSWORD@host")
    with pytest.raises(GatingError, match="NDIF_HOST") as e:
        address.address(None)
    assert "PASSWORD" not in str(e.value)


@pytest.mark.parametrize(("url", "server", "fetched"), [
    ("https://store.org/x?sig=1", "https://api.org", True), ("http://store.org/x", "https://api.org", False),
    ("http://127.0.0.1:9000/x", "http://127.0.0.1:8401", True), ("http://127.0.0.1:22/", "http://api.org", False),
    ("http://localhost/", "http://api.org", False), ("http://[::ffff:127.0.0.1]/", "http://api.org", False),
    ("http://169.254.169.254/latest", "http://api.org", False), ("file:///etc/passwd", "http://127.0.0.1", False),
    ("https://localhost.evil.org/x", "https://api.org", True), (None, "http://h", False), ({}, "http://h", False),
])  # fmt: skip
def test_a_result_is_fetched_from_where_results_lie(url, server, fetched):
    assert (addresses.result_refusal(url, server) == "") == fetched
