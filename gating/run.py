"""`python -m gating.run`: compose the configuration, check it, run it, report. Thin: the science is elsewhere."""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads that spin slow a shared machine down many times over
os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach `main`, which says them in one paragraph

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from gating import cli, config_files, configured, extras, help_text
from gating.errors import GatingError

console = Console(width=None if sys.stdout.isatty() else 140)
failures: list[str] = []
commanding: list[int] = []  # the process of `main`; another one is a launcher's


@hydra.main(version_base="1.3", config_path=str(config_files.conf_dir()), config_name="config")
def job(cfg: DictConfig) -> None:
    """What a launcher sends to its processes: a function that says no more than another's name."""
    one(cfg)


def one(cfg: DictConfig) -> None:
    """One run, or one of a multirun's. A failure is shown and kept, so that a sweep's other runs go on."""
    from gating.pipeline import config, dryrun, study

    try:
        hydra_config = HydraConfig.get()
        chosen = {k: v for k, v in hydra_config.runtime.choices.items() if "hydra" not in k}
        overrides = [o.split("=", 1)[0].lstrip("+~") for o in hydra_config.overrides.task]
        planned = study.prepare(config.typed(cfg), chosen, overrides)
        configured.warn(planned.warnings, console)
        console.print(dryrun.detectable(planned), style="dim", markup=False, soft_wrap=True)
        if planned.run.dry_run:
            dryrun.show(planned, console)
            if not planned.identity.final:
                console.print("the model's files are not here, so the run's key is not final", style="dim")
        else:
            from gating import store
            from gating.pipeline import execute, pace
            from gating.reporting import page, tables

            if not planned.store.exists() and planned.run.backend.name == "local":
                console.print(pace.line(planned), style="dim", markup=False, soft_wrap=True, highlight=False)
            how = execute.execute(planned)
            tree = store.open_run(planned.folder)
            report = planned.folder / page.NAME
            if not how.startswith("opened") or not page.stands(planned.folder, planned.run.full_text):
                page.write(tree, planned.folder, full_text=planned.run.full_text)
            width = console.width
            for table in (tables.table(tree, width), *tables.mediation_tables(tree), *tables.verdicts(tree, width)):
                console.print(table)
            console.print(f"{how}\nreport: {report}", markup=False, soft_wrap=True, highlight=False)
        print(f"store: {planned.store}", flush=True)
    except cli.EXPECTED as e:
        failures.append(cli.explain(e, str(cfg.runs_dir)))
        cli.say_error(console, failures[-1])
        if os.getpid() not in commanding:
            raise GatingError(failures[-1]) from None  # which the launcher hands to the process of `main`


def main() -> None:
    """Exit code 0 when every run ended well, 2 for bad input, 130 when interrupted (what is written stays)."""
    configured.log("matplotlib")
    commanding.append(os.getpid())
    with cli.spoken(console):
        sys.argv[1:] = cli.words(sys.argv[1:])
        cli.register()
        if not help_text.answered("config", sys.argv[1:]):
            extras.require("torch", "gating.run")
            job()
    sys.exit(2 if failures else 0)


class _Callable(ModuleType):
    """`gating.run` is this command's module and, in Python, the function (gating/door.py): `gating.run(model=...)`."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        from gating import door

        return door.run(*args, **settings)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    from gating.run import main  # the module by its name, under which another process finds it too

    main()
