"""What a server may do to its client, on a raw socket: wrong HTTP, wrong JSON. Each is a function of the socket and the
server's own address; what it writes is all that the client gets."""

import functools
import gzip
import json
import socket
import struct
import time
import zlib
from collections.abc import Callable

import zstandard

Act = Callable[[socket.socket, str], None]
MEGABYTE = 2**20
BOMB = 256 * MEGABYTE  # inflated
ESCAPES = "\x1b[31mred\x1b]8;;http://evil\x07link\x1b]8;;\x07\u202egnp.exe\x9b2J\r\x00\u2066"
KEYS = ",".join(f'"k{i}":0' for i in range(60_000))


def head(status: object = 200, kind: str = "application/json", **more: object) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", "Connection: close"]
    return "\r\n".join([*lines, *(f"{k.replace('_', '-')}: {v}" for k, v in more.items()), "\r\n"]).encode("latin-1")


def whole(content: str | bytes, status: object = 200, kind: str = "application/json", **more: object) -> Act:
    data = content.encode(errors="surrogatepass") if isinstance(content, str) else content
    return lambda s, url: s.sendall(head(status, kind, Content_Length=len(data), **more) + data)


def says(document: object, status: object = 200) -> Act:
    return whole(json.dumps(document), status)


def raw(data: bytes) -> Act:
    return lambda s, url: s.sendall(data)


def drip(first: bytes, then: bytes) -> Act:
    def act(s: socket.socket, url: str) -> None:
        s.sendall(first)
        for i in range(2000):
            s.sendall(then[i % len(then) :][:1])
            time.sleep(0.1)

    return act


def flood(first: bytes, then: bytes, seconds: float = 60) -> Act:
    def act(s: socket.socket, url: str) -> None:
        s.sendall(first)
        block, end = then * max(1, 2**16 // len(then)), time.monotonic() + seconds
        while time.monotonic() < end:
            s.sendall(block)

    return act


def reset(s: socket.socket, url: str) -> None:
    s.sendall(head(Content_Length=1000) + b'{"a"')
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def elsewhere(status: int, place: str) -> Act:
    return lambda s, url: s.sendall(head(status, Location=place.format(url=url), Content_Length=0))


@functools.cache
def bomb(encoding: str) -> bytes:
    """A compressed answer that inflates to BOMB bytes."""
    if encoding == "zstd":
        press = zstandard.ZstdCompressor().compressobj()
        return b"".join(press.compress(bytes(MEGABYTE)) for _ in range(BOMB // MEGABYTE)) + press.flush()
    make = zlib.compressobj(9, zlib.DEFLATED, 31 if "gzip" in encoding else 15)
    data = b"".join(make.compress(bytes(MEGABYTE)) for _ in range(BOMB // MEGABYTE)) + make.flush()
    return gzip.compress(data) if encoding == "gzip, gzip" else data


def compressed(encoding: str) -> Act:
    return lambda s, url: whole(bomb(encoding), Content_Encoding=encoding)(s, url)


CHUNKED = head(Transfer_Encoding="chunked")
UPGRADE = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
PAGE = "<!DOCTYPE html><html><title>Sign in</title>" + ESCAPES

ANY: dict[str, Act] = {
    "no answer at all": lambda s, url: time.sleep(60),
    "closes at once": lambda s, url: None,
    "reset in the middle": reset,
    "headers drop by drop": drip(b"", head() * 100),
    "a body drop by drop": drip(head(), b" "),
    "a body drop by drop, of a stated length": drip(head(Content_Length=1000), b" "),
    "an endless body": flood(head(), b"[[[["),
    "an endless chunked body": flood(CHUNKED, b"10\r\n" + b" " * 16 + b"\r\n"),
    "endless headers": flood(b"HTTP/1.1 200 OK\r\n", b"X-Y: z\r\n"),
    "one endless header": flood(b"HTTP/1.1 200 OK\r\nX: ", b"y"),
    "an endless status line": flood(b"HTTP/1.1 200 ", b"K"),
    "a gzip bomb": compressed("gzip"),
    "a gzip bomb in gzip": compressed("gzip, gzip"),
    "a deflate bomb": compressed("deflate"),
    "a zstd bomb": compressed("zstd"),
    "brotli, it says": whole(b"\xff" * 1000, Content_Encoding="br"),
    "less than it says": raw(head(Content_Length=10**6) + b"{}"),
    "a petabyte, it says": raw(head(Content_Length=10**15) + b"{}"),
    "a length that is none": raw(head(Content_Length="-5") + b"{}"),
    "two lengths": raw(head(Content_Length=2, content_length=3) + b"{}x"),
    "junk for chunks": raw(CHUNKED + b"zzzz\r\n{}\r\n"),
    "one giant chunk": flood(CHUNKED + b"ffffffffff\r\n", b" "),
    "an endless chunk extension": flood(CHUNKED + b"1;", b"x"),
    "endless trailers": flood(CHUNKED + b"1\r\n1\r\n0\r\n", b"X-Y: z\r\n"),
    "a redirect to itself": elsewhere(302, "{url}/ping"),
    "a redirect to another host": elsewhere(301, "http://example.invalid/"),
    "a redirect to a file": elsewhere(307, "file:///etc/passwd"),
    "a redirect without a place": raw(head(303, Content_Length=0)),
    "a web page": whole(PAGE, kind="text/html"),
    "a web page that says it is JSON": whole(PAGE),
    "204": raw(head(204)),
    "206": whole("", 206),
    "100 without an end": flood(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "101 and a frame of gigabytes": flood(UPGRADE + b"\x82\x7f" + (6 * 2**30).to_bytes(8, "big"), b"x"),
    "101 and endless fragments": flood(UPGRADE, b"\x01\x01a\x00\x01a"),
    "101 and pings": flood(UPGRADE, b"\x89\x00"),
    "101 and a close code": raw(UPGRADE + b"\x88\x02\x03\xf3"),
    "101 and bytes for text": raw(UPGRADE + b"\x82\x04\xff\xff\xff\xff"),
    "418": whole(ESCAPES, 418),
    "500 and a web page without an end": flood(head(500, "text/html"), b"<p>" + ESCAPES.encode()),
    "429, after thirty years": whole("{}", 429, Retry_After=10**9),
    "503, a while ago": whole("{}", 503, Retry_After=-10),
    "503, on a day": whole("{}", 503, Retry_After="Fri, 31 Dec 9999 23:59:59 GMT"),
    "a status of 999": whole("{}", 999),
    "a status that is none": whole("{}", "abc"),
    "no status": raw(b'{"id": "x"}'),
    "HTTP/2": raw(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" * 9),
    "TLS": raw(b"\x15\x03\x03\x00\x02\x02\x0a"),
    "SSH": raw(b"SSH-2.0-OpenSSH_9.9\r\n" * 99),
    "deep JSON": whole("[" * 100_000),
    "deep JSON that ends": whole("[" * 900 + "]" * 900),
    "very many lists": whole("[" + "[]," * 300_000 + "[]]"),
    "NaN": whole('{"id": NaN, "status": Infinity}'),
    "an infinite number": whole('{"id": 1e999}'),
    "an entry twice among 60,000": whole("{" + KEYS + ',"k59999":1}'),
    "a number for JSON": whole("7"),
    "null": whole("null"),
    "a list": whole("[1, 2]"),
    "true": whole("true"),
    "half a surrogate pair": whole('{"id": "\\ud800"}'),
    "no UTF-8": whole(b'{"id": "\xff\xfe"}'),
    "half of JSON": whole('{"id": "a'),
    "a number of 5,000 digits": whole('{"id": ' + "1" * 5000 + "}"),
    "null bytes": whole(b"\x00" * 1000),
    "nothing": whole(b""),
    "escapes in an error": says({"detail": ESCAPES * 50}, 400),
}
