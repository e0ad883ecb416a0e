"""What an installation holds: the base reads stores without torch, an extra runs models; ranges and versions agree."""

import os
import re
import subprocess
import sys
import tomllib
from functools import partial
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gating import __main__, __version__, extras

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {extra: [Requirement(r) for r in lines] for extra, lines in PROJECT["optional-dependencies"].items()}
BASE = [Requirement(r) for r in PROJECT["dependencies"]]
RANGES = {
    canonicalize_name(r.name): r.specifier for part in (BASE, *EXTRAS.values()) for r in part if r.name != "gating"
}
READ = """
import sys
import gating
from gating.reporting import page
run = gating.open_run(sys.argv[1])
joined = gating.open_runs(sys.argv[2])
assert int(gating.refusal_rate(run, harmful=True)["n"].min()) == 2
assert gating.contrast(run, harmful=True).sizes["condition"] > 1
assert page.write(run, sys.argv[3]).is_file()
present = {"torch", "transformers", "nnsight", "sklearn", "peft", "safetensors", "gguf", "httpx"} & set(sys.modules)
assert not present, present
"""


def pins(name: str) -> dict[str, str]:
    """The exact versions of a constraints file, by distribution."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if "==" in line]
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1].split()[0] for line in lines}


def link(site: Path, requirements: list[Requirement]) -> None:
    """Fill a folder with what pip would install for requirements, out of what is installed here."""
    pending, seen = list(requirements), set()
    while pending:
        required = pending.pop()
        name = canonicalize_name(required.name)
        if name in seen or (required.marker and not required.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        package = distribution(name)
        for top in {f.parts[0] for f in package.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(package.locate_file(top))).resolve())
        pending += [Requirement(r) for r in package.requires or []]


def python(site: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run Python with this checkout and the packages of a folder, and nothing else that is installed here."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{site}", "MPLBACKEND": "agg"}
    return subprocess.run([sys.executable, "-S", *args], cwd=site.parent, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """Runs Python as after `pip install gating`."""
    site = tmp_path_factory.mktemp("reader")
    link(site, BASE)
    return partial(python, site)


def test_the_extra_run_is_enough_for_the_embedded_default(tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    link(site, [*BASE, *EXTRAS["run"]])
    (metadata,) = Path(str(distribution("gating").locate_file(""))).glob("gating-*.dist-info")
    (site / metadata.name).symlink_to(metadata)  # a run keeps the installed version
    done = python(site, "-c", "import gating.pipeline.execute, gating.training.adapter; import tenacity")
    assert done.stderr.strip().endswith("No module named 'tenacity'"), done.stderr
    done = python(site, "-m", "gating.run", "dry_run=true")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_readers_install_opens_analyses_and_reports_without_torch(reader, command, tmp_path):
    small = ("model=tiny-llama", "experiment=selection", "data.n=2", "directions.n=4", "directions.questions=2")
    code, lines = command(*small, "max_new_tokens=2", f"runs_dir={tmp_path / 'runs'}")
    assert code == 0, lines
    store = lines[-1].removeprefix("store: ")
    done = reader("-c", READ, store, str(tmp_path / "runs"), str(tmp_path / "page"))
    assert done.returncode == 0, done.stderr
    for name in ("report", "results", "selection", "label"):
        done = reader("-m", f"gating.{name}", store)
        assert done.returncode == 0 and done.stdout, f"{name}: {done.stdout}{done.stderr}"
    done = reader("-m", "gating.rejudge", store, "judge=rule-now")
    assert done.returncode == 0, done.stdout + done.stderr
    done = reader("-m", "gating.rejudge", store, "judge=endpoint", "base_url=http://127.0.0.1:9/v1", "id=x", "name=x")
    assert done.returncode == 2 and "pip install 'gating[endpoint]'" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("words", ["run", "train", "choose", "audit", "run model=qwen backend=ndif dry_run=true"])
def test_a_command_whose_extra_is_missing_names_it_in_one_paragraph(reader, words):
    name, *args = words.split()
    done = reader("-m", f"gating.{name}", *args)
    (line,) = (done.stdout + done.stderr).strip().splitlines()
    assert done.returncode == 2 and line.startswith("error: ") and "pip install 'gating[run]'" in line


def test_a_readers_install_answers_the_help_of_a_run(reader):
    done = reader("-m", "gating.run", "--help")
    assert done.returncode == 0 and "Does a persona gate a behaviour?" in done.stdout, done.stderr


def test_the_list_of_commands_is_whole_and_needs_no_model(reader):
    done = reader("-m", "gating")
    modules = {p.stem for p in (ROOT / "gating").glob("*.py") if "\ndef main(" in p.read_text()} - {"__main__"}
    assert set(__main__.COMMANDS) == modules
    assert done.returncode == 0 and all(f"gating.{name} " in done.stdout for name in modules)


def test_each_extra_holds_the_packages_that_its_remedy_is_given_for():
    alias = {"scikit-learn": "sklearn", "inspect-ai": "inspect_ai"}

    def brought(extra: str) -> set[str]:
        nested = [brought(e) for r in EXTRAS[extra] for e in r.extras if e != "run"]
        return set().union(*nested, {alias.get(r.name, r.name) for r in EXTRAS[extra] if r.name != "gating"})

    assert {extra: set(packages) for extra, packages in extras.PACKAGES.items()} == {
        extra: brought(extra) for extra in EXTRAS if extra not in ("dev", "docs")
    }


def test_the_pinned_versions_lie_in_the_ranges_and_the_lowest_are_their_lower_ends():
    upper, lowest = pins("constraints.txt"), pins("constraints-lowest.txt")
    assert all(version in RANGES[name] for name, version in upper.items() if name in RANGES)
    tools = {
        "torch",
        "datasets",
        "inspect-ai",
        *(n for n in RANGES if n.startswith(("pytest", "ruff", "mypy", "types-", "mkdocs"))),
    }
    for name in RANGES.keys() - tools:
        (low,) = [s.version for s in RANGES[name] if s.operator == ">="]
        assert lowest[name].removesuffix(".0").startswith(low.removesuffix(".0")), name


def test_the_lock_has_the_pinned_versions_from_the_public_index_alone():
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    locked = {(p["name"], p.get("version")) for p in packages}
    pinned = set(pins("constraints.txt").items())
    assert {name for name, _ in pinned - locked} <= {"fsspec", "python-dateutil"}  # held lower by gating[inspect]
    assert {p["source"].get("registry", "https://pypi.org/simple") for p in packages} == {"https://pypi.org/simple"}


def test_hooks_call_the_pinned_tools_and_hosted_ci_calls_the_same_script():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = [hook["entry"] for repo in hooks for hook in repo["hooks"] if repo["repo"] == "local"]
    assert {e.split()[0] for e in entries} == {".venv/bin/ruff", ".venv/bin/mypy"}
    assert all(f"{tool}=={pins('constraints.txt')[tool]}" == f"{tool}{RANGES[tool]}" for tool in ("ruff", "mypy"))
    steps = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["check"]["steps"]
    assert [s["run"] for s in steps if "run" in s] == ["bash .ci/run"] and os.access(ROOT / ".ci/run", os.X_OK)


def test_the_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__ and citation["license"] == PROJECT["license"]
    assert re.search(r"2606\.26161", str(citation["references"]))
