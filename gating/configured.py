"""What the commands that Hydra configures beside `gating.run` have in common: their words and typed schema, and how
errors and warnings are said."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from gating import cli, extras, help_text, settings

Config = TypeVar("Config")
QUIET = ("httpx", "httpcore", "urllib3", "filelock")  # libraries whose own messages are no news to a user


def log(*quiet: str) -> None:
    """Messages go to stderr as they are; those of libraries only from a warning on."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in (*QUIET, *quiet):
        logging.getLogger(name).setLevel(logging.WARNING)


def start(name: str, default: Callable[[], object], job: Callable[[], None], console: Console) -> None:
    """Run the job of `python -m gating.NAME` on the command line's words, or answer --help. default: gives the
    configuration whose type is the schema; called once torch is known to be there."""
    log()
    with cli.spoken(console):
        sys.argv[1:] = cli.words(sys.argv[1:])
        extras.require("torch", f"gating.{name}")
        schema = default()
        ConfigStore.instance().store(name=f"{name}_schema", node=type(schema))
        settings.check_booleans(sys.argv[1:], schema)
        if not help_text.answered(name, sys.argv[1:]):
            job()


def typed(cfg: DictConfig, kind: type[Config]) -> Config:
    """The composed configuration as its dataclass. Raises GatingError for a key that it does not have."""
    settings.check_keys(cfg)
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, kind)
    return config


@contextmanager
def kept(failures: list[str], console: Console, place: str) -> Iterator[None]:
    """A failure of a job is said in one paragraph, and kept for the command's exit code."""
    try:
        yield
    except cli.EXPECTED as e:
        failures.append(cli.explain(e, place))
        cli.say_error(console, failures[-1])


def warn(warnings: Iterable[str], console: Console) -> None:
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
