"""What README.md and docs/ say can be done is done here: every code block runs, or says above itself why not."""

import importlib
import re
import shlex
from functools import cache

import matplotlib
import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser

from gating import cli, config_files, configured, door, help_text
from gating.analysis import claim_files
from gating.auditing.config import AuditConfig
from gating.choosing.config import ChooseConfig, WorstConfig
from gating.errors import GatingError
from gating.pipeline import config, study
from gating.training.config import TrainConfig
from tests.doc_blocks import ALL, COMMANDS, PAGES, ROOT, indented
from tests.test_install import EXTRAS

KINDS = ("bash", "python", "yaml", "text")
SCHEMAS = {"choose": ChooseConfig, "worst": WorstConfig, "audit": AuditConfig, "train": TrainConfig}
NO_STORE = re.compile(r"is not a run|holds no runs|there is no file")  # the words were read: only the run is not here
OWN = re.compile(r"my/|mine\.csv|\+conditions")  # files and conditions that a page shows
MAKEFILE = (ROOT / "Makefile").read_text()
README = (ROOT / "README.md").read_text()
SMALL = {  # as the page has it, but for the model and n
    '"smollm"': '"tiny-llama"',
    '{"n": 20}': '{"n": 4}, directions={"n": 4, "questions": 2}, controls={"random": 1}',
}


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    """The folder that commands are given in: with the files that blocks of YAML show, each under the name in its first
    line, and the user's own prompts and model."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "mine.csv").write_text("prompt\nWhat would you never do?\nTell me a secret.\n")
    (folder / "my.yaml").write_text((ROOT / "conf/model/tiny-llama.yaml").read_text())
    for block in (b for b in ALL if b.kind == "yaml" and not b.why):
        name, _, text = block.text.partition("\n")
        (folder / name.removeprefix("# ")).parent.mkdir(exist_ok=True)
        (folder / name.removeprefix("# ")).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def test_every_block_says_what_it_is_and_none_stands_outside_a_fence():
    assert not [str(b) for b in ALL if b.kind not in KINDS]
    assert not [(p.name, line) for p in PAGES for line in indented(p.read_text())]
    assert len(COMMANDS) >= 60 and all(b.why or re.match(r"# \S+\.yaml\n", b.text) for b in ALL if b.kind == "yaml")


@pytest.mark.parametrize(("block", "line"), [pytest.param(b, c, id=f"{b}: {c}") for b, c in COMMANDS])
def test_each_command_is_accepted(place, block, line, capsys, monkeypatch):
    name, *words = shlex.split(line)
    if name == "python":
        assert words[0] == "-m" and words[1].partition(".")[0] == "gating", line
        accepted(words[1].removeprefix("gating").removeprefix("."), words[2:], capsys, monkeypatch)
    elif name == "make":
        assert re.search(rf"^{words[0]}:", MAKEFILE, re.MULTILINE)
    elif name == "pip":
        assert set(re.findall(r"\[(\w+)\]", line)) <= EXTRAS.keys()
        assert all(f":= {pin}\n" in MAKEFILE for pin in words if "==" in pin)
    else:
        assert name == "export", "write above the block why it is not run"


def accepted(name: str, words: list[str], capsys, monkeypatch) -> None:
    """A command takes these words: a configured one composes, another one reads them and comes to open the store."""
    if not name:
        assert not words
    elif "--help" in words and name == "run":
        assert help_text.answered("config", words)
    elif name == "run":
        planned(tuple(words))
    elif name in SCHEMAS:
        ConfigStore.instance().store(name=f"{name}_schema", node=SCHEMAS[name])
        with initialize_config_dir(str(config_files.conf_dir()), version_base="1.3"):
            configured.typed(compose(name, cli.words(words)), SCHEMAS[name])
    else:
        monkeypatch.setattr("sys.argv", [name, *words])
        with pytest.raises(SystemExit) as stop:
            importlib.import_module(f"gating.{name}").main()
        said = " ".join("".join(capsys.readouterr()).split())
        assert stop.value.code in (1, 2) and NO_STORE.search(said), said


@cache
def planned(words: tuple[str, ...]) -> None:
    """A run composes and passes every check that needs no model; one with files or conditions of its own is planned
    in full. Of a multirun, the first run."""
    one = [w for w in words if w != "-m"]
    if "-m" in words:
        one = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(one), None)[0][0]
    try:
        composed, choices = door.composed(one)
        run = config.typed(composed)
        config.check(run)
        if any(map(OWN.search, one)):
            study.prepare(run, choices, [w.split("=")[0].lstrip("+") for w in one])
    except GatingError as e:  # a launcher is an extra, and the user's own model and adapter are not here
        theirs = re.search(r"hydra/launcher|model\.(id|gguf_file|adapter)", " ".join(words))
        assert theirs and theirs[0].replace("hydra/", "") in str(e), e


@pytest.mark.parametrize("page", sorted({b.page for b in ALL if b.kind == "python" and not b.why}))
def test_the_python_of_a_page_runs_from_top_to_bottom(page, place, monkeypatch):
    matplotlib.use("agg")
    space: dict = {}
    for block in (b for b in ALL if b.page == page and b.kind == "python" and not b.why):
        code = block.text
        for long, short in SMALL.items():
            code = code.replace(long, short)
        exec(compile(code.replace("runs/...", str(getattr(space.get("run"), "folder", ""))), str(block), "exec"), space)
    assert len(space["table"]) == 4 and (space["table"]["n"] == 4).all()


def test_a_family_of_claims_that_a_page_shows_can_be_decided(place):
    (path,) = (p for p in place.glob("my/*.yaml") if "family:" in p.read_text())
    assert len(claim_files.load(str(path))["claims"]) == 2


def test_the_readme_is_one_screen_with_a_picture_two_commands_and_four_examples():
    assert README.count("\n") <= 70
    (picture,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert (ROOT / picture).stat().st_size < 150_000
    assert [len(b.commands) for b in ALL if b.page == "README.md"] == [2, 4]


def test_every_link_of_the_readme_and_the_guide_leads_to_a_file():
    for name in ("README.md", "CONTRIBUTING.md"):
        links = [link for link in re.findall(r"\]\(([^)#]+)", (ROOT / name).read_text()) if "://" not in link]
        assert links and all((ROOT / link).exists() for link in links)
