"""What a model's files hold: a digest of their bytes, remembered by each file's place, size and times, so that 7B of
weights are read once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import platformdirs

from gating import foreign, progress, swap
from gating.errors import GatingError, cause

# What transformers reads of a folder: configuration, tokenizer, templates, weights, and code where that is allowed.
READ = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.safetensors", "*.py", "additional_chat_templates/*")
PIECE = 32 * 1024 * 1024  # bytes that one thread reads and hashes at a time
LARGE = 4_000_000_000  # bytes from which on progress is shown
KEPT = 1000  # folders and files whose digests are remembered
SETTLED = 2.0  # seconds: a file that was changed later than that may change again within a clock's tick
Stat = list[int]  # size, mtime and ctime in ns, inode: a change that keeps them all needs a tampered clock


def cache_dir() -> Path:
    """Where converted models and digests are kept; the environment variable GATING_CACHE moves it."""
    given = os.environ.get("GATING_CACHE")
    return Path(given).expanduser() if given else platformdirs.user_cache_path("gating")


def folder(path: Path, patterns: Sequence[str] = READ) -> str:
    """16 hex digits over the names and bytes of a folder's files that match. Raises GatingError naming the file."""
    files = sorted({p for pattern in patterns for p in path.glob(pattern) if p.is_file()})
    digests = _digests(files, path)
    content = [[str(p.relative_to(path)), digests[p]] for p in files]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def file(path: Path) -> str:
    """16 hex digits over a file's bytes. Raises GatingError naming the file."""
    return _digests([path], path)[path][:16]


def _digests(files: Sequence[Path], about: Path) -> dict[Path, str]:
    """Each file's digest: as remembered where its stat is the same, else read now."""
    place = cache_dir() / "digests" / f"{hashlib.sha256(str(about.resolve()).encode()).hexdigest()[:16]}.json"
    known = _remembered(place)
    try:
        stats = {p: _stat(p) for p in files}
        out = {p: known[str(p)][1] for p in files if str(p) in known and known[str(p)][0] == stats[p]}
        fresh = [p for p in files if p not in out]
        out |= _read(fresh, sum(stats[p][0] for p in fresh))
        if changed := [p for p in fresh if _stat(p) != stats[p]]:
            raise GatingError(f"model.id: {changed[0]} changes while it is read; wait until it is written, then go on.")
    except OSError as e:
        raise GatingError(f"model.id: a file of {about} cannot be read ({cause(e)}); mend its permissions.") from None
    settled = [p for p in fresh if max(stats[p][1:3]) < (time.time() - SETTLED) * 1e9]
    if settled:
        _remember(place, known | {str(p): (stats[p], out[p]) for p in settled})
    return out


def _stat(path: Path) -> Stat:
    s = path.stat()
    return [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino]


def _read(files: Sequence[Path], total: int) -> dict[Path, str]:
    """The digest of the digests of a file's pieces, which are hashed side by side."""
    pieces = [(p, start) for p in files for start in range(0, max(1, p.stat().st_size), PIECE)]
    hashes: dict[Path, list[bytes]] = {p: [] for p in files}
    with _bar(total) as advance, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for (p, _), digest in zip(pieces, pool.map(_hash, pieces), strict=True):
            hashes[p].append(digest)
            advance(PIECE // 1_000_000)
    return {p: hashlib.sha256(b"".join(parts)).hexdigest() for p, parts in hashes.items()}


def _hash(piece: tuple[Path, int]) -> bytes:
    path, start = piece
    with path.open("rb") as f:
        f.seek(start)
        return hashlib.sha256(f.read(PIECE)).digest()


@contextlib.contextmanager
def _bar(total: int) -> Iterator[progress.Advance]:
    if total < LARGE:
        yield lambda n: None
        return
    with progress.bar("model files read, once, for the run's key", total // 1_000_000, "MB") as advance:
        yield advance


def _remembered(place: Path) -> dict[str, tuple[Stat, str]]:
    try:
        known = foreign.parse_json(place.read_text(encoding="utf-8"), str(place))
        return {p: (list(stat), str(digest)) for p, (stat, digest) in known.items()}
    except (OSError, UnicodeDecodeError, GatingError, AttributeError, ValueError, TypeError):
        return {}  # none yet, or damaged: the files are read again


def _remember(place: Path, known: dict[str, tuple[Stat, str]]) -> None:
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time only
        place.parent.mkdir(parents=True, exist_ok=True)
        swap.write(place, json.dumps(known))
        for old in sorted(place.parent.iterdir(), key=lambda p: p.stat().st_mtime)[:-KEPT]:
            old.unlink()
