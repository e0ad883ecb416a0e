"""Addresses of servers: what one must look like, and how one is shown. A password in an address is never repeated."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

from gating import foreign
from gating.errors import GatingError

LONGEST = 2000  # characters
NAME = re.compile(
    r"(?=.{1,253}$)((?!-)[a-z0-9_-]{1,63}\.)*(?!-|\d+\.?$|0x[0-9a-f]*\.?$)[a-z0-9_-]{1,63}\.?", re.IGNORECASE
)


def masked(text: object) -> str:
    """A text that may hold an address, fit to show: what stands before an @, and a query, are left out."""
    whole = foreign.shown(text, LONGEST)
    hidden = re.sub(r"(://|//|=)?[^\s'\"=/]*(?:/[^\s'\"=]*)?@", lambda m: f"{m[1] or ''}***@", whole)
    return foreign.shown(re.sub(r"[?#][^\s'\"]*", "?***", hidden), 200)


def checked(address: str, key: str) -> str:
    """`address` without a slash at its end. Raises GatingError, led by `key`, for anything but http(s)://HOST[:PORT]
    with an optional path: no user, password, query or space, an IPv6 host in brackets."""
    shown = f"{key}={masked(address)}"
    if "@" in address:
        raise GatingError(
            f"{key} holds a user or a password ({masked(address)}), which screens and stores would show; leave them "
            "out: a key belongs into its environment variable."
        )
    if not address.isprintable() or " " in address or "\\" in address or len(address) > LONGEST:
        raise GatingError(f"{shown} holds a space or another sign that no address has; write http(s)://HOST[:PORT].")
    parts = split(address)
    if parts is None or parts.scheme not in ("http", "https") or not _is_host(parts.hostname or ""):
        raise GatingError(
            f"{shown} is not an http(s) address: write http://HOST:PORT or https://HOST, an IPv6 host in brackets and "
            "a port from 1 to 65535."
        )
    if "?" in address or "#" in address:
        raise GatingError(f"{shown}: an address here has no query and no fragment; leave out what follows ? or #.")
    return address.rstrip("/")


def split(address: str) -> SplitResult | None:
    """The parts of an address; None where it has none, or a port that is none."""
    try:
        parts = urlsplit(address)
        fine = parts.port is None or parts.port > 0
    except ValueError:
        return None
    return parts if fine and not parts.netloc.endswith(":") else None


def is_loopback(address: str) -> bool:
    """Whether it stays on this machine."""
    parts = split(address)
    host = (parts.hostname or "") if parts else ""
    number = _number(host)
    return number.is_loopback if number else host == "localhost" or host.endswith(".localhost")


def result_refusal(url: object, server: str) -> str:
    """Why the address that a server gave for a result is not one to fetch from, or nothing.

    A result may lie on another host (an object store), but not in a file, not unencrypted where the server is
    encrypted, and not on this machine or its cloud's own network unless the server is there itself.
    """
    parts = split(url) if isinstance(url, str) and url.isprintable() and len(url) <= 8 * LONGEST else None
    if parts is None or parts.scheme not in ("http", "https") or not _is_host(parts.hostname or ""):
        return "its address is not an http(s) address"
    if "@" in parts.netloc:
        return "its address holds a user or a password"
    if parts.scheme == "http" and server.startswith("https:"):
        return "its address is not encrypted, and the server's is"
    number = _number(parts.hostname or "")
    here = is_loopback(str(url)) or (number is not None and (number.is_link_local or number.is_unspecified))
    if here and not is_loopback(server):
        return "its address is on this machine, and the server is not"
    return ""


def _number(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The number that a host is given by, if it is."""
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(number, "ipv4_mapped", None) or number


def _is_host(host: str) -> bool:
    if _number(host) is not None:
        return True
    try:
        return NAME.fullmatch(host.encode("idna").decode()) is not None
    except UnicodeError:
        return False
