"""The site's pages that are made from the code say what the code says, and the contents list every page."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from gating import __main__, __version__, settings
from gating.auditing.config import AuditConfig
from gating.choosing.config import ChooseConfig
from gating.pipeline.config import RunConfig
from gating.training.config import TrainConfig
from tests.test_install import pins

ROOT = Path(__file__).parent.parent
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


@pytest.fixture(scope="module")
def generated():
    spec = importlib.util.spec_from_file_location("generated", ROOT / "docs/generated.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pages(nav) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in pages(part)]


def test_every_page_stands_in_the_contents_once_and_is_there(generated):
    held = {p.name for p in (ROOT / "docs").glob("*.md")} | set(generated.OUTSIDE.values())
    listed = pages(SITE["nav"])
    assert sorted(listed) == sorted(held | {"commands.md", "settings.md"})
    assert SITE["strict"] and SITE["theme"]["font"] is False and all((ROOT / p).is_file() for p in generated.OUTSIDE)


@pytest.mark.parametrize("schema", [RunConfig, ChooseConfig, AuditConfig, TrainConfig])
def test_every_setting_has_words_beside_its_field(generated, schema):
    assert not [key for key, _, words in generated.leaves(schema) if not words]


def test_the_settings_page_has_every_key_with_its_default_and_range(generated):
    text = generated.settings()
    said = "prompts a set, taken from the categories in turn; null is all"
    assert f"| `data.n` | `null` | {said} | 1 to 1,000,000 |" in text
    assert not [key for key in settings.RANGES if f"| `{key}` |" not in text]
    assert "| `refute` | The arms that could refute the paper's reading |" in text and "| `terse` |" in text


def test_a_comment_above_a_field_and_one_beside_it_are_both_its_words(generated, tmp_path, monkeypatch):
    (tmp_path / "shown.py").write_text(
        "from dataclasses import dataclass\n@dataclass\nclass Shown:\n    '''Words.'''\n    # above\n    # it\n"
        "    a: int = (\n        1  # inside\n    )\n    b: str = '# none'  # beside\n    c: int = 2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    schema = importlib.import_module("shown").Shown
    assert generated.comments(schema) == {"a": "above it inside", "b": "beside", "c": ""}
    assert list(generated.leaves(schema))[1] == ("b", "`'# none'`", "beside")


def test_links_lead_from_the_repository_to_the_sites_pages(generated):
    text = "[a](docs/method.md#x) [b](CONTRIBUTING.md) [c](https://ndif.us) ![d](docs/refusal.png)"
    assert generated.linked(text, Path("."), "index.md") == (
        "[a](method.md#x) [b](contributing.md) [c](https://ndif.us) ![d](refusal.png)"
    )
    card = "[card](../gating/data/judges/learned.md)"
    assert generated.linked(card, Path("docs"), "judge.md") == "[card](cards/learned.md)"


def test_the_commands_and_the_types_of_arrays_are_those_of_the_code(generated):
    assert all(f"| `gating {name}` |" in generated.commands() for name in __main__.COMMANDS)
    assert "| `/outcomes` | `token_ids` | condition, prompt, token | int32 | -1 |" in generated.types()
    schema = (ROOT / "docs/schema.md").read_text()
    assert not [name for name in re.findall(r"`/\w+` \| (`\w+`)", generated.types()) if name not in schema]


def test_the_container_installs_what_make_installs():
    docker, make = (ROOT / "Dockerfile").read_text(), (ROOT / "Makefile").read_text()
    for name in ("TORCH", "WEIGHTS"):
        (pin,) = re.findall(rf"^{name} := (\S+)$", make, re.MULTILINE)
        assert pin in docker
    assert {"mkdocs-material", "mkdocstrings", "mkdocstrings-python"} <= pins("constraints.txt").keys()


def test_the_console_script_runs_a_command_by_its_name(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gating", "verify", "nowhere"])
    with pytest.raises(SystemExit) as stop:
        __main__.main()
    assert stop.value.code == 1 and "nowhere is not a run" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["gating", "reprot"])
    with pytest.raises(SystemExit) as stop:
        __main__.main()
    assert stop.value.code == 2 and "did you mean report?" in capsys.readouterr().err


@pytest.fixture
def repository(tmp_path):
    """A repository with this version's files, and the release script in it."""
    for name in ("gating/__init__.py", "CITATION.cff", ".ci/release"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n* News.\n\n## 0.0.1\n\n* First.\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "All")
    return tmp_path


def git(folder, *words: str) -> str:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True, check=True).stdout


def release(folder, version: str, build: str = "true") -> subprocess.CompletedProcess[str]:
    names = ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL")
    env = {"PATH": "/usr/bin:/bin", "BUILD": build, **dict.fromkeys(names, "x@example.org")}
    return subprocess.run(
        ["bash", ".ci/release", version], cwd=folder, env=env, capture_output=True, text=True, check=False
    )


def test_a_release_is_one_tagged_commit_of_all_versions(repository):
    done = release(repository, "9.1.0")
    assert done.returncode == 0, done.stderr
    assert git(repository, "tag").split() == ["v9.1.0"] and git(repository, "status", "--porcelain") == ""
    assert '__version__ = "9.1.0"' in (repository / "gating/__init__.py").read_text()
    assert yaml.safe_load((repository / "CITATION.cff").read_text())["version"] == "9.1.0"
    assert "## Unreleased\n\n## 9.1.0\n\n* News." in (repository / "CHANGELOG.md").read_text()
    again = release(repository, "9.2.0")
    assert again.returncode == 2 and "nothing stands under" in again.stderr


def test_a_release_is_refused_and_leaves_everything_as_it_was(repository):
    assert "use three numbers" in release(repository, "1.0").stderr
    assert f"the version is {__version__}" in release(repository, __version__).stderr
    assert release(repository, "9.1.0", build="false").returncode != 0
    assert git(repository, "status", "--porcelain") == "" and git(repository, "tag") == ""
    (repository / "CITATION.cff").write_text("dirty")
    assert "not clean" in release(repository, "9.1.0").stderr
