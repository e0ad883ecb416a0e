"""What stands between the command line and Hydra: short forms of overrides, the refusal of choices that do not exist,
errors in one paragraph."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gating import addresses, extras
from gating.config_files import group_choices, groups
from gating.errors import GatingError, choices

RENAMED = {"judge": "label_rule"}  # groups that had another name, so that an old command is refused with the new one
REJUDGE = "Another judge is asked afterwards: python -m gating.rejudge RUN judge=NAME."


def register() -> None:
    """Give Hydra the typed schema."""
    from gating.pipeline import config

    config.register()


def steer_sugar(argv: Sequence[str]) -> list[str]:
    """`steer=evil` or `steer=my/persona.yaml` becomes `steer=persona steer.direction=...`: every persona, shipped or a
    file, is a choice without a configuration of its own. A comma list (a multirun) works in the same way."""
    words: list[str] = []
    known = group_choices("steer")
    for arg in argv:
        value = arg.removeprefix("steer=")
        if value == arg or all(v in known for v in value.split(",")):
            words.append(arg)
        else:
            quoted = [f"'{v}'" if re.search(r"[^\w@./-]", v) else v for v in value.split(",")]
            words += ["steer=persona", f"steer.direction={','.join(quoted)}"]
    return words


def backend_sugar(argv: Sequence[str]) -> list[str]:
    """`backend=http://HOST:PORT` becomes `backend=ndif backend.host=...`. Raises GatingError for an address, in either
    form, that is none or holds a password, before anything shows or keeps it."""
    words: list[str] = []
    for arg in argv:
        key, _, value = arg.partition("=")
        name = key.lstrip("+")
        if name == "backend.host" and value.lower() not in ("null", "none", "~", ""):
            addresses.checked(value.strip("'\""), name)
        if name == "backend" and re.search(r"[:/@]", value):
            words += ["backend=ndif", f"backend.host='{addresses.checked(value, name)}'"]
        else:
            words.append(arg)
    return words


def claims_sugar(argv: Sequence[str]) -> list[str]:
    """`claims=my/claims.yaml` becomes `claims=none +claims.file=...`: your own family of claims is a choice too."""
    return [
        part
        for arg in argv
        for part in (["claims=none", f"+claims.file='{arg[7:]}'"] if re.fullmatch(r"claims=.*\.ya?ml", arg) else [arg])
    ]


def template_sugar(argv: Sequence[str]) -> list[str]:
    """`model.template.enable_thinking=false` needs no plus sign: which arguments there are is the template's matter."""
    return [f"++{arg}" if arg.startswith("model.template.") else arg for arg in argv]


def check_group_choices(argv: Sequence[str]) -> None:
    """Refuse `group=choice` where the group has no such choice or another name. Raises GatingError naming both."""
    for arg in argv:
        key, _, value = arg.partition("=")
        if not key:
            raise GatingError(f"{arg!r} on the command line has no key; write key=value, such as steer.coef=4.")
        group = key.lstrip("+~").partition(".")[0]
        if group in RENAMED:
            new = arg.replace(group, RENAMED[group], 1)
            raise GatingError(f"{arg}: {group} is now called {RENAMED[group]}; write {new}. {REJUDGE}")
        if key in groups() and key != "steer":
            for v in value.split(","):
                if v not in group_choices(key):
                    raise GatingError(f"{key}={v} is not a choice: use {choices(group_choices(key), v)}.")


def explain(error: BaseException) -> str:
    """One paragraph for a user: what was given, what is allowed, what to do."""
    if isinstance(error, GatingError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and (remedy := extras.remedy(error)):
        return remedy
    if isinstance(error, MissingConfigException):
        return " ".join(str(error).split())
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _explain_override(error)
    if isinstance(error, OSError):
        file, reason = error.filename or "a file", error.strerror or error
        remedy = "free some disk space" if error.errno == errno.ENOSPC else "mend the path or its permissions"
        return f"{file}: {reason}; {remedy}, then give the same command again: what is finished is kept."
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "out of memory" in text.lower() or "can't allocate memory" in text.lower():
        return (
            f"backend.batch_rows: the device ran out of memory ({text}); lower backend.batch_rows (or max_new_tokens)."
        )
    raise error


def _explain_override(error: BaseException) -> str:
    if isinstance(error, OverrideParseException):
        word, why = addresses.masked(error.override), addresses.masked(error)
        return (
            f"{word!r} on the command line cannot be read ({why}); write key=value, lists as [1,2], and quote what "
            "has other signs in it."
        )
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = str(cause)
    key_match = re.search(r"full_key: (\S+)", text)
    key = key_match.group(1) if key_match else ""
    first = text.splitlines()[0].strip()
    unknown = re.search(r"Key '([^']+)' (?:is )?not in", text)
    if unknown:
        key = key or unknown.group(1)
        return f"{key} is not a setting: use {_siblings(key)}."
    if "Multiple values for" in str(error):
        return f"{' '.join(str(error).split())}."
    given = re.search(r"override (\S+?)=(\S+)", str(error))
    name = key or (given.group(1) if given else "an override")
    return f"{name}: {first}. Give a value of that kind; `--help` lists every setting with its value."


def _siblings(key: str) -> str:
    from gating.pipeline.config import RunConfig

    parent, _, leaf = key.rpartition(".")
    schema: DictConfig = OmegaConf.structured(RunConfig)
    for part in filter(None, parent.split(".")):
        child = schema.get(part)
        if not isinstance(child, DictConfig):
            return f"what --help lists, or +{key}=... for a new entry of {parent}"
        schema = child
    prefix = f"{parent}." if parent else ""
    return choices([prefix + str(k) for k in schema], f"{prefix}{leaf}")
