"""A finished run at `s3://BUCKET/...` or `https://HOST/...`, copied to this machine, so that it is opened as any other.

What a server says is bounded and checked: the list of the store's files first, then each file that the copy does not
have, by its SHA-256 in that list. The copy is only read: what is written into a run belongs where the run is.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock

from gating import addresses, extras, foreign
from gating.errors import GatingError, choices, naming
from gating.store.files import LIST, Damaged, Digests, content, digest, parse_list, put
from gating.store.schema import STORE

Read = Callable[[str, int], bytes]  # a file of the store, of at most so many bytes
SCHEMES = ("s3://", "https://", "http://")
ORIGIN = "fetched-from"  # in the copy's folder: the address
MOST_FILES, LIST_BYTES = 200_000, 50 * foreign.MEGABYTE
FILE_BYTES, STORE_BYTES = 1000 * foreign.MEGABYTE, 50_000 * foreign.MEGABYTE
SECONDS = 600  # of one file
AT_ONCE = 8
KEY = re.compile(r"(?!.*(^|/)\.\.?(/|$))[^/\\]+(/[^/\\]+)*")  # no way out of the store's folder
BUCKET = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/([^?#@\\]+)")
ROLES = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")


def is_address(path: object) -> bool:
    """Whether a run is named by an address, and not by a folder."""
    return isinstance(path, str) and "://" in path


def origin(folder: Path) -> str:
    """The address that a run's folder was copied from; empty for a run that was made here."""
    try:
        return (folder / ORIGIN).read_text("utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def fetch(address: str) -> Path:
    """The store of the run at an address, copied below the user's cache folder (XDG_CACHE_HOME, ~/.cache): what is
    there and as it should be is not fetched again.

    Raises GatingError naming the address, and never its credentials: one that is none, a server that does not answer,
    a file that is missing, too large or not as it was written, a run that is not finished.
    """
    address = _checked(address)
    read = _s3(address) if address.startswith("s3://") else _web(address)
    listed = read(LIST, LIST_BYTES)
    try:
        digests = parse_list(listed, f"{address}/{LIST}")
        _check_keys(digests, address)
        root = read("zarr.json", foreign.MEGABYTE * 10)
        if digests.get("zarr.json") != digest(root):
            raise Damaged(f"{address}/zarr.json is not as it was written; put the run there again from a copy.")
    except Damaged as e:
        raise Damaged(f"{e} (If it is being written there, wait for its end.)") from None
    _check_finished(foreign.parse_json(root, f"{address}/zarr.json"), address)
    folder = _place(address)
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".fetching"):
            (folder / ORIGIN).write_text(f"{address}\n", "utf-8")
            _copy(read, digests, folder / STORE, address)
            put(folder / STORE / LIST, listed)
    return folder / STORE


def _checked(address: str) -> str:
    """The store's address without a slash at its end."""
    shown = addresses.masked(address)
    if not address.startswith(SCHEMES):
        raise GatingError(f"run={shown}: a run is read from a folder, or from {choices(SCHEMES)}...")
    if address.startswith("s3://"):
        address = address.rstrip("/")
        if not BUCKET.fullmatch(address) or not address.isprintable() or len(address) > addresses.LONGEST:
            raise GatingError(f"run={shown} is not s3://BUCKET/PATH of a run; credentials come from AWS_* variables.")
    else:
        address = addresses.checked(address, "run")
        if address.startswith("http://") and not addresses.is_loopback(address):
            raise GatingError(f"run={shown} is not encrypted: write https:// (http:// is for this machine alone).")
    return address if address.endswith(f"/{STORE}") else f"{address}/{STORE}"


def _check_keys(digests: Digests, address: str) -> None:
    if len(digests) > MOST_FILES:
        raise GatingError(f"{address} lists {len(digests):,} files, and at most {MOST_FILES:,} are read; copy it here.")
    for key, of in digests.items():
        if not KEY.fullmatch(key) or not key.isprintable() or not re.fullmatch(r"[0-9a-f]{64}", of):
            raise GatingError(
                f"{address}/{LIST} names {foreign.shown(key)!r}, which is no file of a store; nothing is read."
            )


def _check_finished(root: object, address: str) -> None:
    attrs = root.get("attributes") if isinstance(root, dict) else None
    status = attrs.get("status") if isinstance(attrs, dict) else None
    if status != "complete":
        raise GatingError(
            f"{address} is not a finished run (status {foreign.shown(status)!r}); finish it where it is made, "
            "or copy its folder here."
        )


def _place(address: str) -> Path:
    """The copy's folder: the run's name, and a hash of the address."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = re.sub(r"[^\w.-]+", "-", address.split("/")[-2])[:100]
    return base / "gating" / "runs" / f"{name}-{hashlib.sha256(address.encode()).hexdigest()[:12]}"


def _copy(read: Read, digests: Digests, store: Path, address: str) -> None:
    """Every file of the list that is not there as it should be. Raises GatingError, naming it, for the first that
    cannot be had."""

    def fetched(key: str) -> int:
        data = read(key, FILE_BYTES)
        if digest(data) != digests[key]:
            raise Damaged(f"{address}/{key} is not as it was written; put the run there again from a copy.")
        put(store / key, data)
        return len(data)

    total = 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            for size in pool.map(fetched, _absent(store, digests)):
                total += size
                if total > STORE_BYTES:
                    raise GatingError(f"{address} has more than {STORE_BYTES:,} bytes; copy its folder here.")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _absent(store: Path, digests: Digests) -> Iterator[str]:
    for key, of in digests.items():
        try:
            content(store, key, of)
        except Damaged:
            yield key


def _unread(address: str, key: str, why: str) -> GatingError:
    return GatingError(
        f"{address}/{key} cannot be read: {why}; check the address, that the run is there, and that you may read it."
    )


def _web(address: str) -> Read:
    extras.require("httpx", f"run={addresses.masked(address)}")
    from gating import web

    def read(key: str, limit: int) -> bytes:
        try:
            answer = web.ask("GET", f"{address}/{quote(key)}", SECONDS, limit)
        except web.NoAnswer as e:
            raise _unread(address, key, str(e)) from None
        if answer.status != 200:
            raise _unread(address, key, f"HTTP {answer.status}")
        return answer.content

    return read


def _s3(address: str) -> Read:
    """Reads with what AWS_* variables say; unsigned where they name no credentials (a public bucket)."""
    extras.require("obstore", f"run={addresses.masked(address)}")
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        endpoint = addresses.checked(endpoint, "AWS_ENDPOINT_URL")
        if endpoint.startswith("http://") and not addresses.is_loopback(endpoint):
            raise GatingError(f"AWS_ENDPOINT_URL={endpoint} is not encrypted: write https://.")
    bucket, prefix = address.removeprefix("s3://").split("/", 1)
    settings: dict[str, object] = {"endpoint": endpoint} if endpoint else {}
    if "AWS_SKIP_SIGNATURE" not in os.environ and not any(os.environ.get(name) for name in ROLES):
        settings["skip_signature"] = True
    options = {"allow_http": bool(endpoint), "timeout": f"{SECONDS}s", "connect_timeout": "20s"}
    try:
        store = S3Store(bucket, prefix=prefix, client_options=options, retry_config={"max_retries": 2}, **settings)  # type: ignore[arg-type]
    except (BaseError, ValueError, TypeError) as e:
        raise GatingError(
            f"the AWS_* variables cannot be used for {address} ({type(e).__name__}); mend them."
        ) from None

    def read(key: str, limit: int) -> bytes:
        try:
            answer = store.get(key)
            if answer.meta["size"] > limit:
                raise _unread(address, key, f"it has more than the {limit:,} bytes that are read of it")
            return bytes(answer.bytes())
        except (BaseError, OSError) as e:  # its text may hold an access key
            name = type(e).__name__
            told = {"NotFoundError": "it is not there", "FileNotFoundError": "it is not there"}
            raise _unread(
                address, key, told.get(name, f"{name} (AWS_* variables give credentials and region)")
            ) from None

    return read
