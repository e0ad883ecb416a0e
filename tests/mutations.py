"""`python -m tests.mutations [N]`: damage finished and half-done stores in N ways and look what becomes of it.

Each of N damaged copies is read as the report and the results read it, and gone on with where it is half done. Right is
one error in one paragraph that names the damaged file, or nothing that is printed differs. Prints a table of how it
went, by kind of damage; exit code 1 where anything was silent, unnamed or a traceback.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from gating import rejudge, store
from gating.errors import GatingError
from gating.judging import kinds
from gating.pipeline import execute, study
from gating.reporting import tables
from gating.reporting.document import document
from gating.steering.backend import Backend
from gating.store.files import LIST
from tests.conftest import compose

CLAIM = (
    "+claims.claims.one={says: x, test: difference, plus: [compliant], minus: [baseline], expect: below, margin: 0.1}"
)
SETTINGS = (
    "model=tiny-llama", "data.n=5", "directions.questions=2", "directions.n=4", "controls.random=1", "max_new_tokens=4",
    "backend.batch_rows=10", "claims.family=mine", CLAIM, "readouts.lens=true", "activations=true",
)  # fmt: skip
Mutation = Callable[[Path, random.Random], list[str]]  # damages a store, and says what an error may name
CLASSES = ("named", "unchanged", "unnamed", "silent", "traceback")


class Stores:
    """A finished store, one that was interrupted halfway, and what is printed of each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done, self.half = (self._made(folder / name, interrupt) for name, interrupt in (("a", 0), ("b", 3)))
        rejudge.rejudge(self.done.folder, kinds.load("rule-now"))
        self.printed = {s.folder: printed(s.folder) for s in (self.done, self.half)}

    @staticmethod
    def _made(folder: Path, interrupt: int) -> study.Study:
        planned = study.prepare(*compose(*SETTINGS, f"runs_dir={folder}"))
        real, calls = Backend.generate, [0]

        def counted(self: Backend, *args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == interrupt:
                raise KeyboardInterrupt
            return real(self, *args, **kwargs)

        Backend.generate = counted
        with contextlib.suppress(KeyboardInterrupt):
            execute.execute(planned)
        Backend.generate = real
        return planned


def printed(folder: Path) -> str:
    """What the report's tables and the results say of a run."""
    from rich.console import Console

    tree, out = store.open_run(folder), io.StringIO()
    tree.attrs["git_revision"] = ""  # of this checkout, which may be edited meanwhile
    console = Console(file=out, width=200)
    for table in (tables.table(tree), *tables.verdicts(tree)):
        console.print(table)
    return out.getvalue() + document([tree])


# ---------------------------------------------------------------------------------------------------------- damages
def files(root: Path, only: str = "") -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.is_file() and (only in p.as_posix().removeprefix(root.as_posix())))


def some(root: Path, rng: random.Random, only: str = "") -> tuple[Path, list[str]]:
    path = rng.choice(files(root, only))
    return path, [path.relative_to(root).as_posix()]


def of_bytes(change: Callable[[bytes, random.Random], bytes], only: str = "") -> Mutation:
    def go(root: Path, rng: random.Random) -> list[str]:
        path, named = some(root, rng, only)
        path.write_bytes(change(path.read_bytes(), rng))
        return named

    return go


def flipped(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def deleted(root: Path, rng: random.Random) -> list[str]:
    path, named = some(root, rng)
    path.unlink()
    return named


def deleted_folder(root: Path, rng: random.Random) -> list[str]:
    path = rng.choice([p for p in root.rglob("*") if p.is_dir()])
    shutil.rmtree(path)
    return [path.relative_to(root).as_posix()]


def made_a_folder(root: Path, rng: random.Random) -> list[str]:
    path, named = some(root, rng)
    path.unlink()
    path.mkdir()
    return named


def swapped(root: Path, rng: random.Random) -> list[str]:
    a, b = rng.sample(files(root, rng.choice(("/c/", "/zarr.json"))), 2)
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second), b.write_bytes(first)
    return [p.relative_to(root).as_posix() for p in (a, b)]


def forbidden(root: Path, rng: random.Random) -> list[str]:
    path, named = some(root, rng)
    path.chmod(0)
    return named


def of_json(change: Callable[[dict[str, Any], random.Random], None]) -> Mutation:
    def go(root: Path, rng: random.Random) -> list[str]:
        path, named = some(root, rng, "/zarr.json")
        about = json.loads(path.read_text())
        change(about, rng)
        path.write_text(json.dumps(about))
        return named

    return go


def attribute(about: dict[str, Any], rng: random.Random) -> None:
    attributes = about.setdefault("attributes", {})
    name = rng.choice([*attributes, "added"])
    attributes[name] = rng.choice(["other", 7, None, [1], float("nan"), "complete", "{"])


def attribute_gone(about: dict[str, Any], rng: random.Random) -> None:
    attributes = about.setdefault("attributes", {"none": 1})
    attributes.pop(rng.choice([*attributes] or ["none"]), None)


def of_array(key: str, values: tuple[Any, ...]) -> Callable[[dict[str, Any], random.Random], None]:
    def go(about: dict[str, Any], rng: random.Random) -> None:
        about[key] = rng.choice(values)

    return go


def rewritten(root: Path, rng: random.Random) -> list[str]:
    """An array's values changed by zarr itself, so that its own checksum fits: NaN, or other labels."""
    group = zarr.open_group(root, mode="r+", use_consolidated=False)
    name = rng.choice(["model/signature", "outcomes/label", "outcomes/refusal_score", "directions/residual_norm"])
    array: Any = group[name]
    array[...] = np.nan if array.dtype.kind == "f" else 1 - np.clip(array[...], 0, 1)
    return [name]


def line_gone(root: Path, rng: random.Random) -> list[str]:
    lines = (root / LIST).read_text().splitlines(keepends=True)
    lines.pop(rng.randrange(len(lines)))
    (root / LIST).write_text("".join(lines))
    return [LIST]


def added(root: Path, rng: random.Random) -> list[str]:
    path = rng.choice(files(root, "/c/"))
    target = path.with_name(f"{int(path.name) + rng.randint(1, 3)}" if path.name.isdigit() else "9")
    if not target.exists():
        shutil.copy(path, target)
    return [target.relative_to(root).as_posix()]


def array_copied(root: Path, rng: random.Random) -> list[str]:
    path = rng.choice([p.parent for p in files(root, "/zarr.json") if (p.parent / "c").exists()])
    shutil.copytree(path, path.with_name("added"))
    return [path.with_name("added").relative_to(root).as_posix()]


MUTATIONS: dict[str, Mutation] = {
    "chunk deleted, or metadata": deleted,
    "folder deleted": deleted_folder,
    "bit flipped": of_bytes(flipped),
    "bit flipped in a chunk": of_bytes(flipped, "/c/"),
    "bit flipped in the labels": of_bytes(flipped, "/outcomes/label/c/"),
    "bit flipped in the list": of_bytes(flipped, LIST),
    "truncated": of_bytes(lambda data, rng: data[: rng.randrange(len(data))]),
    "emptied": of_bytes(lambda data, rng: b""),
    "bytes added": of_bytes(lambda data, rng: data + b"\n\0"),
    "swapped with another": swapped,
    "made a folder": made_a_folder,
    "no permission": forbidden,
    "attribute edited": of_json(attribute),
    "attribute deleted": of_json(attribute_gone),
    "other dtype": of_json(of_array("data_type", ("float64", "int8", "bool", "string", "junk", 3))),
    "other fill value": of_json(of_array("fill_value", (0, 1, -1, "NaN", None, True, "x"))),
    "other shape": of_json(of_array("shape", ([1], [2, 2], [0], [4, 5], [9, 9, 9], "x"))),
    "other codecs or node": of_json(lambda about, rng: about.update(codecs=[], node_type=rng.choice(["group", "x"]))),
    "junk for JSON": of_bytes(lambda data, rng: rng.choice([b"{", b"[]", b"\xff\xfe", data[:-2]]), "zarr.json"),
    "rewritten by zarr": rewritten,
    "line of the list deleted": line_gone,
    "file added": added,
    "array added": array_copied,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ verdicts
def verdict(work: Callable[[], str], expected: str, named: list[str]) -> tuple[str, str]:
    """How it went, one of CLASSES, and what was said."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            said = work()
    except GatingError as e:
        paragraph = str(e)
        return ("named" if any(n in paragraph for n in named) and "\n" not in paragraph else "unnamed"), paragraph
    except Exception:
        return "traceback", traceback.format_exc()
    return ("unchanged", "") if said == expected else ("silent", said)


def tried(stores: Stores, kind: str, seed: int, resume: bool, place: Path) -> list[tuple[str, str]]:
    """Damage a copy of the finished store, or of the half-done one, and read it; also go on with it."""
    source = stores.half if resume else stores.done
    folder = place / source.folder.name
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(source.folder, folder)
    named = MUTATIONS[kind](folder / store.STORE, random.Random(seed))
    out = [verdict(lambda: printed(folder), stores.printed[source.folder], named)]
    if resume:
        planned = study.Study(**{**vars(source), "folder": folder})

        def gone_on() -> str:
            execute.execute(planned)
            return printed(folder)

        out.append(verdict(gone_on, stores.printed[stores.done.folder], named))
    if out[0][0] == "named" and not store.problems(folder / store.STORE):
        out.append(("silent", "gating.verify finds nothing"))
    return out


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 690
    counts: Counter[tuple[str, str]] = Counter()
    os.environ.setdefault("TQDM_DISABLE", "1")
    with tempfile.TemporaryDirectory() as folder:
        stores = Stores(Path(folder))
        for i in range(n):
            kind = [*MUTATIONS][i % len(MUTATIONS)]
            results = tried(stores, kind, i, resume=i // len(MUTATIONS) % 3 == 2, place=Path(folder) / "damaged")
            for how, said in results:
                counts[kind, how] += 1
                if how not in CLASSES[:2]:
                    print(f"{i} {kind}: {how}: {said[-1500:]}", flush=True)
    print(f"{n} mutations, {sum(counts.values())} outcomes (reading; going on with a half-done run)")
    print(f"{'':32}" + "".join(f"{c:>11}" for c in CLASSES))
    for kind in MUTATIONS:
        print(f"{kind:32}" + "".join(f"{counts[kind, c]:11}" for c in CLASSES))
    print(f"{'all':32}" + "".join(f"{sum(counts[k, c] for k in MUTATIONS):11}" for c in CLASSES))
    sys.exit(1 if any(counts[k, c] for k in MUTATIONS for c in CLASSES[2:]) else 0)


if __name__ == "__main__":
    main()
