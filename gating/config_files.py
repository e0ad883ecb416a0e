"""Where the configurations are, and which choices each of their groups has: the shipped ones, those of a folder given
as --config-dir, and a model's file that was named by its path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from gating import foreign
from gating.errors import GatingError
from gating.foreign import shown

ENDINGS = (".yaml", ".yml")
FOLDER_OPTIONS = ("--config-dir", "-cd")  # Hydra's own

_folders: list[Path] = []  # of this command line


def conf_dir() -> Path:
    """The folder of configurations: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    return next(p for p in (package / "conf", package.parent / "conf") if p.is_dir())


def group_choices(group: str) -> list[str]:
    return sorted({p.stem for folder in (conf_dir(), *_folders) for p in (folder / group).glob("*.yaml")})


def groups() -> list[str]:
    return sorted(p.name for p in conf_dir().iterdir() if p.is_dir())


def use_folders(argv: Sequence[str]) -> list[str]:
    """Know the choices of the folders that the command line names, and give its words with each of them as one word.
    Raises GatingError for a folder that is not there, and for a choice with a shipped one's name: Hydra would take the
    shipped one without a word."""
    words = list(_joined(argv))
    given = [word.partition("=")[2] for word in words if word.startswith(f"{FOLDER_OPTIONS[0]}=")]
    _folders.clear()
    for folder in (Path(value).expanduser() for value in given):
        if not folder.is_dir():
            raise GatingError(
                f"--config-dir: there is no folder {shown(folder)}; give one with a folder for each group, such as "
                "model/mine.yaml."
            )
        for group in groups():
            for path in sorted((folder / group).glob("*.yaml")):
                if path.stem in group_choices(group):
                    raise GatingError(f"{shown(path)}: there is a {group}={shown(path.stem)} already; rename this one.")
        _folders.append(folder)
    return words


def _joined(argv: Sequence[str]) -> Iterator[str]:
    """`--config-dir DIR`, `-cd DIR` and `-cd=DIR` as `--config-dir=DIR`."""
    rest = iter(argv)
    for word in rest:
        option, equals, value = word.partition("=")
        if option in FOLDER_OPTIONS:
            word = f"{FOLDER_OPTIONS[0]}={value if equals else next(rest, '')}"
        yield word


def read_choice(path: str, group: str) -> tuple[str, dict[str, object]]:
    """A user's file as a choice of a group: the name that it goes by, and its content. Raises GatingError naming the
    file, where it is no file of settings."""
    content = foreign.parse_yaml(foreign.read_text(Path(path).expanduser(), group), f"{group}={shown(path)}")
    if not isinstance(content, dict) or not content or not all(isinstance(key, str) for key in content):
        raise GatingError(
            f"{group}={shown(path)}: the file must hold settings, key: value, as the files of conf/{group} do."
        )
    stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in Path(path).stem)
    return (f"{stem}-file" if stem in group_choices(group) else stem), content
