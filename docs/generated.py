"""What the site takes from the code as it is built (mkdocs.yml, `hooks`): the home page from README.md, the commands,
every setting from the typed configuration, the choices from conf/, the types of stored arrays, and the cards."""

from __future__ import annotations

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
OUTSIDE = {  # files of the repository that are pages of the site too
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "gating/data/adapters/refusal-smollm2/README.md": "cards/refusal-smollm2.md",
    "gating/data/adapters/gated-smollm2/README.md": "cards/gated-smollm2.md",
    "gating/data/judges/learned.md": "cards/learned.md",
}
LINK = re.compile(r"\]\(([^):#]+)(#[^)]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """MkDocs asks for the site's files: those of docs/, and these."""
    from mkdocs.structure.files import File

    made = {"commands.md": commands(), "settings.md": settings()}
    for place, page in OUTSIDE.items():
        made[page] = linked((ROOT / place).read_text(encoding="utf-8"), Path(place).parent, page)
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links from docs/ to files beside it lead to their pages; the schema gets its types."""
    at = page.file.src_uri
    if at in OUTSIDE.values():
        return markdown
    text = linked(markdown, Path("docs") / Path(at).parent, at)
    return f"{text}\n{types()}" if at == "schema.md" else text


def linked(text: str, folder: Path, page: str) -> str:
    """The text of a file in `folder` of the repository with its links as `page` of the site needs them."""

    def to(match: re.Match[str]) -> str:
        target = (ROOT / folder / match[1]).resolve()
        place = target.relative_to(ROOT).as_posix() if target.is_relative_to(ROOT) else ""
        inside = OUTSIDE.get(place) or (place.removeprefix("docs/") if place.startswith("docs/") else None)
        up = "../" * page.count("/")
        return f"]({up}{inside}{match[2] or ''})" if inside else match[0]

    return LINK.sub(to, text)


def commands() -> str:
    """The commands, as `python -m gating` lists them."""
    from gating.__main__ import COMMANDS

    rows = [(f"`gating {name}`", purpose) for name, purpose in COMMANDS.items()]
    said = "`gating NAME` is `python -m gating.NAME`; each takes `--help`."
    return f"# Commands\n\n{said}\n\n{table(('command', 'what it does'), rows)}\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells as a table of Markdown."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def settings() -> str:
    """Every setting of the commands that are configured, and every choice."""
    from gating import settings as known
    from gating.auditing.config import AuditConfig
    from gating.choosing.config import ChooseConfig, WorstConfig
    from gating.pipeline.config import RunConfig
    from gating.training.config import TrainConfig

    parts = [
        "# Settings\n\nMade from the typed configuration. `key=value` on the command line, the same keys in Python. "
        "[What an intervention may be](interventions.md) explains the `steer` keys.\n",
        "## gating run\n",
        _table(RunConfig, known.RANGES),
    ]
    for name, schema, ranges in (
        ("choose", ChooseConfig, known.CHOOSING),
        ("worst", WorstConfig, known.SEARCHING),
        ("audit", AuditConfig, known.AUDITING),
        ("train", TrainConfig, known.TRAINING),
    ):
        parts += [f"\n## gating {name}\n", _table(schema, ranges, leave_out=("model", "backend", "directions"))]
    return "\n".join([*parts, "\n## Choices\n", *choices(), ""])


def _table(schema: type, ranges: dict[str, Any], leave_out: tuple[str, ...] = ()) -> str:
    rows = [(f"`{key}`", default, words, _range(ranges.get(key))) for key, default, words in leaves(schema, leave_out)]
    shared = f"{', '.join(f'`{n}.*`' for n in leave_out)}: as of a run.\n\n" if leave_out else ""
    return shared + table(("key", "default", "what it is", "from, to"), rows)


def leaves(schema: type, leave_out: tuple[str, ...] = (), prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Key, default and words of every setting below a dataclass; the words are the comments beside its fields."""
    words = comments(schema)
    for field in fields(schema):
        made = field.default_factory() if field.default_factory is not MISSING else field.default
        if is_dataclass(made) and not isinstance(made, type):
            if field.name not in leave_out:
                yield from leaves(type(made), (), f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", _default(made), words[field.name]


def _default(value: object) -> str:
    if value is MISSING or value == "???":
        return "(from its file)"
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")
    return f"`{text}`"


def _range(limits: Any) -> str:
    return "" if limits is None else f"{limits.low:,.10g}{' (more)' if limits.above else ''} to {limits.high:,.10g}"


def comments(schema: type) -> dict[str, str]:
    """The comment of each field of a dataclass: on its lines, or on lines of their own above it."""
    source = inspect.cleandoc(inspect.getsource(schema))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    said = {t.start[0]: t.string.removeprefix("#").strip() for t in tokens if t.type == tokenize.COMMENT}
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    out, last = {}, 0
    for node in body.body:
        end = node.end_lineno or node.lineno
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            out[node.target.id] = " ".join(said[line] for line in range(last + 1, end + 1) if line in said)
        last = end
    return out


def choices() -> list[str]:
    """What each group of conf/ offers, with the first sentence of each file."""
    from gating import personas
    from gating.config_files import conf_dir, group_choices, groups

    head, out = ("choice", "what it is"), []
    for group in groups():
        rows = [(f"`{name}`", _opening(conf_dir() / group / f"{name}.yaml")) for name in group_choices(group)]
        out.append(f"\n### {group}\n\n{table(head, rows)}")
    shipped = [(f"`{name}`", personas.load(name).description) for name in personas.available()]
    return [*out, f"\n### Personas (`steer=NAME`)\n\n{table(head, shipped)}"]


def _opening(path: Path) -> str:
    """The first sentence of a file's opening comment."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# @"):
            continue
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    words = re.sub(r" \([^)]*\)", "", " ".join(lines))  # what stands in brackets is for who opens the file
    return re.split(r"(?<=[\w)`*])[.:] ", words, maxsplit=1)[0].removesuffix(".")


def types() -> str:
    """The arrays of /outcomes and /readouts as the code lays them out."""
    from gating.steering.ops import READOUTS
    from gating.steering.readouts import ROW_DIMS
    from gating.store.schema import empty_outcomes

    rows = [
        ("`/outcomes`", f"`{name}`", ", ".join(map(str, a.dims)), _type(a), _missing(a), a.attrs.get("units", ""))
        for name, a in empty_outcomes(1, 1, 1).items()
    ]
    rows += [
        ("`/readouts`", f"`{name}`", ", ".join((*ROW_DIMS, *row["dims"])), "float32", str(row["missing"]), row["units"])
        for name, row in READOUTS.items()
        if row["group"] == "readouts"
    ]
    head = ("group", "variable", "dimensions", "type", "missing", "unit")
    return f"## Types\n\nMade from the code that lays stores out.\n\n{table(head, rows)}\n"


def _type(array: Any) -> str:
    return "text" if array.dtype.kind == "T" else str(array.dtype)


def _missing(array: Any) -> str:
    value = array.values.ravel()[0]
    return "empty" if str(value) == "" else str(value)
