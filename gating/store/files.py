"""A store's files, each known by its SHA-256: what is read was written, and a write is there whole or not at all.

The list `files.sha256` in the store names every file with its digest (`sha256sum -c` reads it). A file that is not in
the list is not there: a killed write has left it behind. A file of the list that is to change waits in `.pending` until
the new list is in place, which is one rename; what still waits then is read, and moved, from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from gating.errors import GatingError, cause

LIST = "files.sha256"
PENDING = ".pending"
Digests = dict[str, str]  # of each file, by its path in the store
REMEDY = "put it back from a copy of the run, or compute the run again (force=true)"


class Damaged(GatingError):
    """A file of a store that is not as it was written."""


class _Untold(logging.Filter):
    """Keeps asyncio from telling of damage once more, with a traceback, for a read that nobody waits for any longer."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], Damaged))


logging.getLogger("asyncio").addFilter(_Untold())


def digest(data: bytes | Buffer) -> str:
    return hashlib.sha256(data if isinstance(data, bytes) else data.to_bytes()).hexdigest()


def read_list(root: Path) -> Digests:
    """Every file of a store with its digest. Raises Damaged where the list cannot be read or is not as it was
    written."""
    path = root / LIST
    try:
        return parse_list(path.read_bytes(), path)
    except OSError as e:
        raise Damaged(f"{path} cannot be read ({cause(e)}); {REMEDY}.") from None


def parse_list(data: bytes, where: object) -> Digests:
    """The list in its bytes. Raises Damaged naming `where`."""
    try:
        head, _, lines = data.decode().partition("\n")
    except UnicodeDecodeError as e:
        raise Damaged(f"{where} cannot be read ({cause(e)}); {REMEDY}.") from None
    if head != _head(lines):
        raise Damaged(f"{where}, the list of the store's files, was changed since it was written; {REMEDY}.")
    return {key: of for of, _, key in (line.partition("  ") for line in lines.split("\n") if line)}


def _write_list(root: Path, digests: Digests) -> None:
    lines = "".join(f"{of}  {key}\n" for key, of in sorted(digests.items()))
    put(root / LIST, f"{_head(lines)}\n{lines}".encode())


def _head(lines: str) -> str:
    return f"# {digest(lines.encode())} is the SHA-256 of the lines below"


def put(path: Path, data: bytes) -> None:
    """A file in place at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.partial")
    draft.write_bytes(data)
    os.replace(draft, path)


def content(root: Path, key: str, expected: str) -> bytes:
    """The bytes of a file of the store. Raises Damaged, naming it, where they are not those that were written."""
    why = "is missing"
    for path in (root / key, root / PENDING / key):
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as e:
            why = f"cannot be read ({cause(e)})"
            continue
        if digest(data) == expected:
            return data
        why = f"is not as it was written (its SHA-256 is not the one in {LIST})"
    raise Damaged(f"{root / key} {why}; {REMEDY}.")


def missing(root: Path, digests: Digests) -> list[str]:
    """Files of the list that are not there."""
    there = os.path.isfile  # a store has hundreds, a sweep hundreds of stores: pathlib takes longer than the disk
    return [key for key in digests if not there(f"{root}/{key}") and not there(f"{root}/{PENDING}/{key}")]


@contextmanager
def writing(root: Path, new: bool = False) -> Iterator[Files]:
    """Write into a store: all that is written in this block is there after it, or nothing where it is cut."""
    files = Files(root, {} if new else read_list(root), read_only=False)
    _settle(root, files.digests)
    yield files
    _write_list(root, files.digests)
    _settle(root, files.digests)
    for key in set(files.before) - set(files.digests):
        _remove(root, root / key)


def _remove(root: Path, path: Path) -> None:
    """A file, and the folders that are empty without it."""
    path.unlink(missing_ok=True)
    for folder in path.parents:
        if folder == root or any(folder.iterdir()):
            return
        folder.rmdir()


def waits(root: Path) -> bool:
    """Whether a write was cut after its list was in place: files wait, which only this package's readers find."""
    return (root / PENDING).is_dir()


def settle(root: Path) -> None:
    """End what was cut. A store that is damaged is left as it is: its readers name the file."""
    with contextlib.suppress(Damaged):
        if waits(root):
            _settle(root, read_list(root))


def _settle(root: Path, digests: Digests) -> None:
    """Move what waits into place, and drop what a killed write left."""
    pending = root / PENDING
    for path in [p for p in pending.rglob("*") if p.is_file()]:
        key = path.relative_to(pending).as_posix()
        if digests.get(key) == digest(path.read_bytes()):
            (root / key).parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, root / key)
    shutil.rmtree(pending, ignore_errors=True)


class Files(Store):
    """The files as a zarr store. Reading checks each file; `writing` makes one that can be written."""

    supports_writes = supports_deletes = supports_listing = True
    supports_partial_writes = False

    def __init__(self, root: Path, digests: Digests, read_only: bool = True) -> None:
        super().__init__(read_only=read_only)
        self.root, self.digests = root, digests
        self.before = dict(digests)  # as they stood when this began
        self.anew = False  # whether a file was read that is not the list's

    def with_read_only(self, read_only: bool = False) -> Self:
        return type(self)(self.root, self.digests, read_only)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Files) and self.root == other.root

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return str(self.root)

    def read(self, key: str) -> bytes:
        """Raises Damaged. A file that another process has written anew meanwhile is read as it is now."""
        try:
            return content(self.root, key, self.digests[key])
        except Damaged:
            fresh, about = read_list(self.root), f"{key.partition('/c/')[0]}/zarr.json"
            if self.read_only and fresh.get(about, "") != self.digests.get(about, ""):
                raise Damaged(
                    f"{self.root} was finished since it was opened, with other chunks; open it again."
                ) from None
            now = fresh.get(key)
            if not self.read_only or now is None or now == self.digests[key]:
                raise
            data = content(self.root, key, now)
            self.anew = True
            return data

    def write(self, key: str, data: bytes) -> None:
        put(self.root / PENDING / key if key in self.before else self.root / key, data)
        self.digests[key] = digest(data)

    def copy(self, root: Path, digests: Digests, group: str, name: str | None = None) -> None:
        """A group of a store, this one or another, under `name` (its own by default), instead of what is there."""
        name = name or group
        copied = {key: content(root, key, of) for key, of in digests.items() if key.startswith(f"{group}/")}
        self.drop(name)
        for key, data in copied.items():
            self.write(f"{name}{key.removeprefix(group)}", data)

    def drop(self, group: str) -> None:
        """Leave out a group."""
        for key in [k for k in self.digests if k.startswith(f"{group}/")]:
            del self.digests[key]

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        if byte_range is not None:
            raise NotImplementedError("files are read whole: no array is sharded")
        if key not in self.digests:
            return None
        data = await asyncio.to_thread(self.read, key)
        return (prototype or default_buffer_prototype()).buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, part) for key, part in key_ranges]

    async def exists(self, key: str) -> bool:
        return key in self.digests

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()
        await asyncio.to_thread(self.write, key, value.to_bytes())

    async def set_partial_values(self, key_start_values: Any) -> None:
        raise NotImplementedError("files are written whole: no array is sharded")

    async def delete(self, key: str) -> None:
        self._check_writable()
        self.digests.pop(key, None)

    async def list(self) -> AsyncIterator[str]:
        for key in [*self.digests]:
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for key in [*self.digests]:
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        start = f"{prefix.rstrip('/')}/" if prefix else ""
        for name in dict.fromkeys(k[len(start) :].split("/")[0] for k in self.digests if k.startswith(start)):
            yield name
