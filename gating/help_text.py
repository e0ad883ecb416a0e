"""A command's help text. Hydra's own list of the choices composes everything a hundred times, which takes seconds."""

from __future__ import annotations

import string
from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf, open_dict

from gating.config_files import conf_dir, group_choices, groups


def answered(name: str, words: Sequence[str]) -> bool:
    """Print the help of the command whose configuration is `name`, where --help is the only option among these words:
    with others, Hydra answers."""
    asked = [word for word in words if word.startswith("-")] in (["--help"], ["-h"])
    if asked:
        print(text(name, words))
    return asked


def text(name: str, words: Sequence[str]) -> str:
    """The help of the command whose configuration is `name`, with the values that these words give."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose(name, [word for word in words if not word.startswith("-")], return_hydra_config=True)
    template = string.Template(cfg.hydra.help.template)
    with open_dict(cfg):
        del cfg["hydra"]
    listed = "".join(f"{group}: {', '.join(_choices(group))}\n" for group in groups())
    return template.substitute(APP_CONFIG_GROUPS=listed, CONFIG=OmegaConf.to_yaml(cfg))


def _choices(group: str) -> list[str]:
    given = {str(name).removesuffix(".yaml") for name in ConfigStore.instance().repo.get(group, {})}
    return sorted(given | set(group_choices(group)))
