"""`python -m gating.audit`: how far personas move a model's refusal, by prompt, by steering and by adapter, as a record
that can gate a release."""

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

from gating import config_files, configured, swap
from gating.errors import naming

console = Console(width=None if sys.stdout.isatty() else 140)
failures: list[str] = []
broken: list[str] = []


@hydra.main(version_base="1.3", config_path=str(config_files.conf_dir()), config_name="audit")
def job(cfg: DictConfig) -> None:
    from gating.auditing import asking, page, policy, record, stages
    from gating.auditing.config import AuditConfig, check_words

    def tell(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    with configured.kept(failures, console, str(cfg.runs_dir)):
        config = configured.typed(cfg, AuditConfig)
        policy.check(config.policy)
        label = str(HydraConfig.get().runtime.choices["model"])
        if config.endpoint.url is not None:
            check_words(HydraConfig.get().overrides.task)
            policy.check_by_prompt(config.policy)
            label = asking.label(config.endpoint)
        out = Path(config.out or Path(config.runs_dir) / f"{label}-audit").expanduser()
        if config.endpoint.dry_run:
            return tell(stages.look(config, label))
        earlier = record.read(config.against) if config.against else None
        audited = stages.audit(config, label, tell)
        document = record.record(config, audited, label)
        if earlier is not None:
            document["regressions"] = record.regressions(document, earlier)
        with naming(out):
            out.mkdir(parents=True, exist_ok=True)
            swap.write(out / "audit.json", record.dumped(document))
            swap.write(out / "audit.html", page.rendered(document))
        configured.warn(audited.warnings, console)
        console.print(page.table(document))
        said = f"policy {config.policy.get('policy', 'none')}: {document['verdict']}"
        console.print(said, markup=False, soft_wrap=True, highlight=False)
        if document["verdict"] == policy.BROKEN:
            broken.append(said)
        print(f"audit: {out}", flush=True)


def default() -> object:
    from gating.auditing.config import AuditConfig

    return AuditConfig()


def main() -> None:
    """Exit code 0 when the policy is kept, 1 when it is broken, 2 for bad input, 130 when interrupted."""
    configured.start("audit", default, job, console)
    sys.exit(2 if failures else 1 if broken else 0)


if __name__ == "__main__":
    main()
