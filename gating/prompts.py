"""Prompt sets: shipped ones, a user's csv/json/jsonl, named public sets; splits, samples and leakage checks."""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gating import foreign
from gating.errors import GatingError, choices
from gating.foreign import shown

SHIPPED = ("harmful", "harmless", "borderline", "train_harmful", "train_harmless")
SPLITS = ("extract", "select", "test", "train")
TEXT_COLUMNS = ("prompt", "goal", "instruction", "forbidden_prompt", "behavior", "text", "question")
CATEGORY_COLUMNS = ("category", "semantic_category", "type")
COLUMNS = (*TEXT_COLUMNS, *CATEGORY_COLUMNS, "harmful", "split")
MOST_CHARACTERS = 1_000_000  # of one prompt: more than any model's context holds
MEANT = frozenset("#%&*@/\\_")  # punctuation that tells prompts apart: C# is not C
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
    line: int = field(default=0, compare=False)  # of its file, or the entry of its list; 0 where it came from no file

    @property
    def place(self) -> str:
        """Where it stands, for a message."""
        return f"{shown(self.source)}, entry {self.line}" if self.line else f"{self.source}:{self.hash}"

    @property
    def hash(self) -> str:
        return hashlib.sha256(normalise(self.text).encode()).hexdigest()[:12]


def normalise(text: str) -> str:
    """Case, sentence punctuation and spacing folded: two prompts that differ in these only are the same prompt.

    Marks, symbols and signs of their own stay, so that `C++`, `C#` and `C` are three prompts, as are `-5` and `5`, two
    emoji, or two vowels of Hindi. A text that is nothing but punctuation is itself.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    folded = re.sub(r"(?<!\w)[-\u2212](?=\d)", "\u2212", folded)  # a minus; another dash is a space
    return " ".join("".join(map(_kept, folded)).split()) or " ".join(text.split())


def _kept(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cf":  # zero width: nobody sees it
        return ""
    return character if category[0] in "LNMS" or character in MEANT else " "


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
    path = path.expanduser()
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise GatingError(
            f"{key}: {shown(path)} ends in {shown(suffix) or 'nothing'!r}; a prompt file ends in .csv, .json or .jsonl."
        )
    records = READERS[suffix](foreign.read_text(path, key), f"{key}: {shown(path)}")
    prompts = [
        _prompt(f"{key}: {shown(path)}, entry {line}", r, harmful, source or path.name, key, line)
        for line, r in records
    ]
    if not prompts:
        raise GatingError(f"{key}: {shown(path)} holds no prompts; give it one prompt a line or drop the setting.")
    return prompts


def _csv(text: str, where: str) -> Iterator[tuple[int, object]]:
    """Rows as mappings, with the line that each begins in."""
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    header: list[str] = []
    first = 1
    try:
        for row in reader:
            if row and header and len(row) != len(header):
                raise GatingError(
                    f"{where}, line {first}: {len(row)} field{'s' * (len(row) != 1)}, the header has {len(header)}; "
                    "put a text with a comma in it into double quotes, and double a quote inside those."
                )
            if row and header:
                yield first, dict(zip(header, row, strict=True))
            header = header or _header(row, where)
            first = reader.line_num + 1
    except csv.Error as e:
        raise GatingError(
            f"{where}, line {first}: {e}; a text that begins with a double quote ends with one, and a quote inside it "
            f"is doubled. A text of over {csv.field_size_limit():,} characters belongs into a .jsonl file."
        ) from None


def _header(row: list[str], where: str) -> list[str]:
    names = [name.strip().lower() for name in row]
    twice = next((n for n in names if n in COLUMNS and names.count(n) > 1), None)
    if twice:
        raise GatingError(f"{where}: the column {twice} stands twice; rename or drop one.")
    return names


def _json(text: str, where: str) -> Iterator[tuple[int, object]]:
    data = foreign.parse_json(text, where)
    if not isinstance(data, list):
        raise GatingError(f"{where} holds a {type(data).__name__}; a .json prompt file is one list.")
    return iter(enumerate(data, start=1))


def _jsonl(text: str, where: str) -> Iterator[tuple[int, object]]:
    lines = enumerate(text.split("\n"), start=1)  # a text may hold other line separators
    return ((i, foreign.parse_json(line, f"{where}, line {i}")) for i, line in lines if line.strip())


READERS = {".csv": _csv, ".json": _json, ".jsonl": _jsonl}


def _prompt(where: str, record: object, harmful: bool, source: str, key: str, line: int) -> Prompt:
    fields = _fields(where, {"prompt": record} if isinstance(record, str) else record)
    column = next(c for c in TEXT_COLUMNS if c in fields)
    text = fields[column]
    if not isinstance(text, str) or not text.strip():
        raise GatingError(f"{where}: {column} is {shown(repr(text), 80)}; it must be a non-empty text.")
    if len(text) > MOST_CHARACTERS:
        raise GatingError(f"{where}: {column} has {len(text):,} characters; a prompt has at most {MOST_CHARACTERS:,}.")
    category = next((fields[c] for c in CATEGORY_COLUMNS if fields.get(c) not in (None, "")), "none")
    if isinstance(category, bool | list | dict):
        raise GatingError(f"{where}: the category is {shown(repr(category), 80)}; it must be a text or a number.")
    flag = str(fields.get("harmful", harmful)).strip().lower()
    if flag not in ("true", "false", "1", "0"):
        raise GatingError(f"{where}: harmful is {shown(repr(fields['harmful']), 80)}; use true or false.")
    if (flag in ("true", "1")) is not harmful:
        raise GatingError(
            f"{where} says harmful={flag} but the file is given as {key}; give harmful and harmless prompts in files "
            "of their own."
        )
    split = "test" if fields.get("split") in (None, "") else fields["split"]
    if split not in SPLITS:
        raise GatingError(f"{where}: split is {shown(repr(split), 80)}; use {choices(SPLITS, split)}.")
    return Prompt(text.strip(), shown(category), source, harmful, str(split), line)


def _fields(where: str, record: object) -> dict[str, object]:
    """An entry's columns by their names in lower case. Raises GatingError where none holds a text, or where a name is
    nearly one that would be read."""
    if not isinstance(record, dict):
        raise GatingError(f"{where}: a {type(record).__name__}; an entry is a string or an object.")
    fields = {str(k).strip().lower(): v for k, v in record.items()}
    if len(fields) < len(record):
        raise GatingError(f"{where}: two columns differ in case or spaces alone; rename one.")
    if not any(c in fields for c in TEXT_COLUMNS):
        raise GatingError(
            f"{where} has the columns {shown(', '.join(fields)) or 'none'}; the prompt's text must be in a column "
            f"called {choices(TEXT_COLUMNS)}."
        )
    for name in fields:
        meant = [] if name in COLUMNS else difflib.get_close_matches(name, COLUMNS, n=1, cutoff=0.86)
        if meant and meant[0] not in fields:
            raise GatingError(f"{where} has a column {shown(name)!r}; call it {meant[0]}, or something else.")
    return fields


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
