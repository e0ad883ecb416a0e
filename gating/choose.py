"""`python -m gating.choose`: where and how strongly a persona acts on a model, and where refusal can be put back in,
chosen on the `select` split in a few short runs, and written as a file of the model."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads that spin slow a shared machine down many times over
os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach `main`, which says them in one paragraph

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from gating import config_files, configured

console = Console(width=None if sys.stdout.isatty() else 140)
failures: list[str] = []


@hydra.main(version_base="1.3", config_path=str(config_files.conf_dir()), config_name="choose")
def job(cfg: DictConfig) -> None:
    from gating.choosing import model_file, stages
    from gating.choosing.config import ChooseConfig
    from gating.reporting import tables

    with configured.kept(failures, console, str(cfg.runs_dir)):
        config = configured.typed(cfg, ChooseConfig)
        label = str(HydraConfig.get().runtime.choices["model"])
        out = Path(config.out or Path(config.runs_dir) / f"{label}-chosen.yaml").expanduser()
        model_file.check_place(out)
        chosen = stages.choose(config, label, lambda title, rows: console.print(tables.sites_table(title, rows)))
        model_file.write(chosen, out)
        configured.warn(chosen.warnings, console)
        console.print(f"next: python -m gating.run model={out} experiment=paper", markup=False, soft_wrap=True)
        print(f"model: {out}", flush=True)


def default() -> object:
    from gating.choosing.config import ChooseConfig

    return ChooseConfig()


def main() -> None:
    """Exit code 0, 2 for bad input or a model on which there is nothing to choose, 130 when interrupted."""
    configured.start("choose", default, job, console)
    sys.exit(2 if failures else 0)


if __name__ == "__main__":
    main()
