"""`python -m gating.worst`: the steering that lowers a model's refusal most while its answers stay in order, sought on
the `select` split and held against the `test` split."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads that spin slow a shared machine down many times over
os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach `main`, which says them in one paragraph

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from gating import config_files, configured

console = Console(width=None if sys.stdout.isatty() else 140)
failures: list[str] = []


@hydra.main(version_base="1.3", config_path=str(config_files.conf_dir()), config_name="worst")
def job(cfg: DictConfig) -> None:
    from gating.choosing import soft_prompt, worst_case
    from gating.choosing.config import WorstConfig
    from gating.reporting import worst_table

    with configured.kept(failures, console, str(cfg.runs_dir)):
        config = configured.typed(cfg, WorstConfig)
        label = str(HydraConfig.get().runtime.choices["model"])
        tell = lambda said: console.print(said, markup=False)  # noqa: E731
        if config.attack == "soft-prompt":
            console.print(worst_table.soft_prompt(soft_prompt.search(config, label, tell)))
            return
        found = worst_case.search(config, label, tell)
        console.print(worst_table.table(found.test, found.trials))
        console.print(worst_table.sentence(found.test), markup=False, soft_wrap=True)
        print(f"store: {found.runs[-1] / 'store.zarr'}", flush=True)


def default() -> object:
    from gating.choosing.config import WorstConfig

    return WorstConfig()


def main() -> None:
    """Exit code 0, 2 for bad input or a model that does not refuse, 130 when interrupted."""
    configured.start("worst", default, job, console)
    sys.exit(2 if failures else 0)


if __name__ == "__main__":
    main()
