"""The house keeps its shape: imports go one way, files and functions stay small, readers need no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gating"
FILES = sorted(p for p in PACKAGE.glob("**/*.py") if "data" not in p.parts)
# From the ground up; a room may import rooms before it. What stands in one tuple does not import each other.
FLOORS = (
    ("errors",),
    ("foreign", "progress", "swap", "event_loop"),
    ("config_files", "extras", "addresses", "settings", "web", "words"),
    ("prompts", "personas", "chat", "thoughts", "completions"),
    ("models",),
    ("judging",),
    ("steering",),
    ("store",),
    ("analysis",),
    ("remote",),
    ("pipeline",),
    ("training", "auditing", "labelling", "guarding"),
    ("choosing", "serving"),
    ("figures",),
    ("reporting",),
    ("cli", "help_text"),
    ("door", "configured"),
    (
        "run",
        "train",
        "choose",
        "worst",
        "audit",
        "report",
        "results",
        "rejudge",
        "label",
        "guard",
        "serve",
        "selection",
        "verify",
        "meta",
        "runs",
        "compare",
        "export",
        "push",
        "inspect",
        "view",
        "__main__",
    ),
)


def rooms_imported(source: str) -> set[str]:
    """The rooms of this package that a source imports, wherever in it."""
    rooms: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "gating":
            rooms |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gating."):
            rooms.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("gating.")}
    return rooms


def test_an_import_of_a_room_is_seen_however_it_is_written():
    source = "import gating.store.joins\nfrom gating import cli\ndef f():\n    from gating.pipeline import study\n"
    assert rooms_imported(source) == {"store", "cli", "pipeline"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_below_it(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    (floor,) = (i for i, names in enumerate(FLOORS) if room in names)
    below = {name for names in FLOORS[:floor] for name in names}
    assert rooms_imported(path.read_text(encoding="utf-8")) - {room, "__version__"} <= below


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_file_and_no_function_is_too_long_to_take_in(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    functions = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    assert not [f.name for f in functions if (f.end_lineno or f.lineno) - f.lineno + 1 > 50]


@pytest.mark.parametrize("name", ["run", "choose"])
def test_a_help_text_needs_neither_torch_nor_xarray(name):
    code = (
        f"import sys; from gating import {name}; sys.argv = ['{name}', '--help', 'model=qwen']\n"
        f"try: {name}.main()\n"
        "finally: print([m for m in ('torch', 'transformers', 'nnsight', 'xarray', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=PACKAGE.parent)
    assert done.returncode == 0 and "id: Qwen/" in done.stdout and "smollm-gated, tiny-gemma" in done.stdout
    assert done.stdout.strip().endswith("[]")
