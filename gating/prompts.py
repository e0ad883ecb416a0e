"""Prompt sets: shipped ones, a user's csv/json/jsonl, named public sets; splits, samples and leakage checks."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gating.errors import GatingError, choices

SHIPPED = ("harmful", "harmless", "borderline", "train_harmful", "train_harmless")
SPLITS = ("extract", "select", "test", "train")
TEXT_COLUMNS = ("prompt", "goal", "instruction", "forbidden_prompt", "behavior", "text", "question")
CATEGORY_COLUMNS = ("category", "semantic_category", "type")
# name -> (hub id, configuration, split, text column, category column, harmful, {column: value} that a row must have)
PUBLIC: dict[str, tuple[str, str | None, str, str, str | None, bool, dict[str, str]]] = {
    "advbench": ("walledai/AdvBench", None, "train", "prompt", None, True, {}),
    "harmbench": ("walledai/HarmBench", "standard", "train", "prompt", "category", True, {}),
    "jailbreakbench": ("JailbreakBench/JBB-Behaviors", "behaviors", "harmful", "Goal", "Category", True, {}),
    "strongreject": ("walledai/StrongREJECT", None, "train", "prompt", "category", True, {}),
    "xstest": ("walledai/XSTest", None, "test", "prompt", "type", False, {"label": "safe"}),
    "alpaca": ("tatsu-lab/alpaca", None, "train", "instruction", None, False, {"input": ""}),
}


@dataclass(frozen=True)
class Prompt:
    """One request, with where it came from. `hash` is stable: it depends on the normalised text alone."""

    text: str
    category: str
    source: str
    harmful: bool
    split: str = "test"

    @property
    def hash(self) -> str:
        return hashlib.sha256(normalise(self.text).encode()).hexdigest()[:12]


def normalise(text: str) -> str:
    """Case, punctuation, accents and spacing folded: two prompts that differ in these only are the same prompt."""
    folded = unicodedata.normalize("NFKD", text).casefold()
    return " ".join(re.findall(r"\w+", "".join(c for c in folded if not unicodedata.combining(c))))


def load(name: str, harmful: bool, split: str | None = "test", key: str = "data") -> list[Prompt]:
    """The prompts of a shipped set's split, a file, or a public set, in file order with duplicates kept.

    name: one of SHIPPED, a path ending in .csv/.json/.jsonl, or one of PUBLIC (needs a reachable hub). Files and public
    sets have no splits: all of their prompts belong to `split`. Raises GatingError naming `key`.
    """
    if name in SHIPPED:
        if ("harmful" in name) is not harmful:
            raise GatingError(f"{key}={name!r}: give harmful sets as data.harmful, and harmless ones as data.harmless.")
        path = Path(__file__).parent / "data" / "prompts" / f"{name}.jsonl"
        return [p for p in read_file(path, harmful, key, source=f"shipped:{name}") if p.split == split]
    if name in PUBLIC:
        if PUBLIC[name][5] is not harmful:
            raise GatingError(
                f"{key}={name!r}: {name} holds {'harmful' if PUBLIC[name][5] else 'harmless'} prompts; give it as "
                f"data.{'harmful' if PUBLIC[name][5] else 'harmless'}={name}."
            )
        return [replace(p, split=split or "test") for p in _public(name, key)]
    if Path(name).suffix.lower() in (".csv", ".json", ".jsonl") or "/" in name:
        return [replace(p, split=split or "test") for p in read_file(Path(name), harmful, key)]
    raise GatingError(
        f"{key}={name!r} is not a prompt set: use a shipped set ({choices(SHIPPED[:3], name)}), a public set "
        f"({choices(PUBLIC, name)}), or the path of a .csv, .json or .jsonl file."
    )


def read_file(path: Path, harmful: bool, key: str = "data", source: str | None = None) -> list[Prompt]:
    """Read a csv (with a header), json (a list) or jsonl file of prompts. Raises GatingError with file and line."""
    if not path.is_file():
        raise GatingError(f"{key}: no prompt file at {path}; give the path of an existing .csv, .json or .jsonl file.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise GatingError(f"{key}: {path} is not UTF-8 text (byte {e.start}); save it as UTF-8.") from None
    records = _records(path, text, key)
    prompts = [_prompt(path, line, r, harmful, source or path.name, key) for line, r in records]
    if not prompts:
        raise GatingError(f"{key}: {path} holds no prompts; give it one prompt a line or drop the setting.")
    return prompts


def _records(path: Path, text: str, key: str) -> list[tuple[int, object]]:
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return list(enumerate(csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True), start=2))
    if suffix not in (".json", ".jsonl"):
        raise GatingError(
            f"{key}: {path} ends in {suffix or 'nothing'!r}; a prompt file ends in .csv, .json or .jsonl."
        )
    try:
        if suffix == ".json":
            data = json.loads(text)
            if not isinstance(data, list):
                raise GatingError(f"{key}: {path} holds a {type(data).__name__}; a .json prompt file is one list.")
            return list(enumerate(data, start=1))
        return [(i, json.loads(line)) for i, line in enumerate(text.splitlines(), start=1) if line.strip()]
    except json.JSONDecodeError as e:
        raise GatingError(f"{key}: {path} is not valid {suffix[1:]}: {e}; mend that line.") from None


def _prompt(path: Path, line: int, record: object, harmful: bool, source: str, key: str) -> Prompt:
    if isinstance(record, str):
        record = {"prompt": record}
    if not isinstance(record, dict):
        raise GatingError(f"{key}: {path}, entry {line}: a {type(record).__name__}; an entry is a string or an object.")
    fields = {str(k).strip().lower(): v for k, v in record.items()}
    column = next((c for c in TEXT_COLUMNS if c in fields), None)
    if column is None:
        raise GatingError(
            f"{key}: {path}, entry {line} has the columns {', '.join(fields) or 'none'}; the prompt's text must be in "
            f"a column called {choices(TEXT_COLUMNS)}."
        )
    text = fields[column]
    if not isinstance(text, str) or not text.strip():
        raise GatingError(f"{key}: {path}, entry {line}: {column} is {text!r}; it must be a non-empty text.")
    category = next((str(fields[c]) for c in CATEGORY_COLUMNS if fields.get(c)), "none")
    flag = fields.get("harmful", harmful)
    if str(flag).strip().lower() not in ("true", "false", "1", "0"):
        raise GatingError(f"{key}: {path}, entry {line}: harmful is {flag!r}; use true or false.")
    if (str(flag).strip().lower() in ("true", "1")) is not harmful:
        raise GatingError(
            f"{key}: {path}, entry {line} says harmful={flag} but the file is given as {key}; "
            "give harmful and harmless prompts in files of their own."
        )
    split = str(fields.get("split") or "test")
    if split not in SPLITS:
        raise GatingError(f"{key}: {path}, entry {line}: split is {split!r}; use {choices(SPLITS, split)}.")
    return Prompt(text.strip(), category, source, harmful, split)


def _public(name: str, key: str) -> list[Prompt]:
    hub_id, configuration, split, text, category, harmful, wanted = PUBLIC[name]
    try:
        import datasets
    except ImportError:
        raise GatingError(f"{key}={name!r} needs the datasets library: pip install 'gating[hub]'.") from None
    try:
        rows = datasets.load_dataset(hub_id, configuration, split=split)
    except Exception as e:  # the library raises a dozen types for "not reachable", all with the same remedy
        raise GatingError(
            f"{key}={name!r}: the public set {hub_id} could not be loaded ({type(e).__name__}); it needs a reachable "
            "Hugging Face hub or a filled cache (and HF_TOKEN for a gated set). Or give a file: "
            "data=file data.harmful=PATH."
        ) from None
    kept = [r for r in rows if all(r[column] == value for column, value in wanted.items())]
    return [Prompt(r[text].strip(), str(r[category]) if category else "none", hub_id, harmful) for r in kept]


def deduplicate(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[str]]:
    """The first of each normalised text, and one warning line for each that was left out."""
    seen: dict[str, Prompt] = {}
    warnings = []
    for p in prompts:
        if p.hash in seen:
            warnings.append(f"duplicate left out: {p.source}:{p.hash} repeats {seen[p.hash].source}")
        else:
            seen[p.hash] = p
    return list(seen.values()), warnings


def sample(prompts: Sequence[Prompt], n: int | None, seed: int) -> list[Prompt]:
    """`n` prompts taken from the categories in turn, in an order that depends on seed and text alone; None is all."""
    if n is None or n >= len(prompts):
        return list(prompts)
    groups: dict[str, list[Prompt]] = defaultdict(list)
    for p in sorted(prompts, key=lambda p: hashlib.sha256(f"{seed}:{p.hash}".encode()).digest()):
        groups[p.category].append(p)
    ranked = [(rank, name, p) for name, group in groups.items() for rank, p in enumerate(group)]
    return [p for _, _, p in sorted(ranked, key=lambda item: item[:2])][:n]


def overlap(selection: Iterable[str], test: Sequence[Prompt]) -> list[Prompt]:
    """Test prompts whose normalised text also stands among the selection texts."""
    used = {normalise(t) for t in selection}
    return [p for p in test if normalise(p.text) in used]


def digest(prompts: Iterable[Prompt]) -> str:
    """12 hex digits that change with any prompt's text, category, flag or order."""
    h = hashlib.sha256()
    for p in prompts:
        h.update(json.dumps([p.text, p.category, p.harmful], ensure_ascii=False).encode())
    return h.hexdigest()[:12]
