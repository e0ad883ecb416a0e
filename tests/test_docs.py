"""What the README says can be done is done here."""

import re
import shlex
from pathlib import Path

import matplotlib
import pytest
import yaml

from gating import store
from gating.pipeline import execute, study
from gating.reporting import page
from tests.conftest import compose
from tests.test_bad_inputs import GOOD

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^python -m gating\.run ?(.*?)(?:  +#.*| #.*)?$", README, re.MULTILINE)
PLACEHOLDERS = ("org/name", "gguf_file=x.gguf")  # names that stand for the user's own model


def test_the_readme_has_an_example_for_each_feature():
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize("words", COMMANDS)
def test_each_command_of_the_readme_is_accepted(tmp_path, command, words):
    Path("my").mkdir()
    Path("my/persona.yaml").write_text(yaml.safe_dump({**GOOD, "name": "persona"}))
    Path("my.yaml").write_text((ROOT / "conf/model/tiny-llama.yaml").read_text())
    Path("mine.csv").write_text("prompt\nWhat would you never do?\nTell me a secret.\n")
    code, lines = command(*shlex.split(words), *([] if "help" in words else ["dry_run=true"]))
    if any(p in words for p in PLACEHOLDERS):
        assert code == 2 and "error: model." in lines[-1]
    elif "hydra/launcher" in words and code:  # its package is an extra
        assert code == 2 and "launcher" in lines[-1]
    else:
        assert code == 0, lines
        assert "help" in words or lines[-1].startswith("store: ")
    assert not list(tmp_path.glob("runs/*/store.zarr"))


def test_the_reading_example_of_the_readme_runs_on_a_real_store(tmp_path, monkeypatch):
    monkeypatch.setattr(matplotlib.rcParams, "backend", "agg", raising=False)
    matplotlib.use("agg")
    small = (
        "model=tiny-llama",
        f"runs_dir={tmp_path}",
        "data.n=4",
        "directions.questions=2",
        "directions.n=4",
        "controls.random=1",
    )
    planned = study.prepare(*compose(*small))
    execute.execute(planned)
    (code,) = re.findall(r"<!-- test: python -->\n```python\n(.*?)```", README, re.DOTALL)
    space: dict = {}
    exec(code.replace("runs/...", str(planned.folder)), space)
    assert len(space["table"]) == 4 and (space["table"]["n"] == 4).all()
    assert page.write(store.open_run(planned.folder), planned.folder).is_file()


def test_every_link_of_the_readme_leads_to_a_file():
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link]
    assert links and all((ROOT / link).exists() for link in links)
