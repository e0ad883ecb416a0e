"""What stands between the command line and Hydra: short forms of overrides, paths quoted for Hydra's grammar, the
refusal of choices that do not exist, errors in one paragraph."""

from __future__ import annotations

import errno
import os
import re
import shlex
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from gating import addresses, config_files, extras, settings
from gating.config_files import group_choices, groups
from gating.errors import GatingError, choices
from gating.foreign import UNSAFE, shown

PLAIN = re.compile(r"[A-Za-z0-9_./@+:?*-]*")  # what Hydra's grammar takes as it stands
LONG_WORD = re.compile(r"\S{400,}")
AGAIN = "what is finished is kept; give the same command again to go on"
INTERRUPTED = f"interrupted: {AGAIN}"
LOST = ("TerminatedWorkerError", "BrokenProcessPool")  # of joblib
EXPECTED = (GatingError, ModuleNotFoundError, HydraException, OmegaConfBaseException, OSError, RuntimeError)
RENAMED = {"judge": "label_rule"}  # groups that had another name, so that an old command is refused with the new one
SCHEMAS = (
    "schema",
    "train_schema",
    "choose_schema",
    "worst_schema",
    "audit_schema",
    "serve_schema",
)  # of the commands that Hydra configures, one a process
REJUDGE = "The judge itself is chosen by judge=NAME."


def register(argv: Sequence[str] | None = None) -> None:
    """Give Hydra the typed schema, and refuse words that it would take for something else. argv: of the command line,
    where they are not this process's own."""
    from gating.pipeline import config

    settings.check_booleans(sys.argv[1:] if argv is None else argv, config.RunConfig())
    config.register()


def words(argv: Sequence[str]) -> list[str]:
    """The command line's words as Hydra reads them. Raises GatingError for one that it could not read, or that names a
    choice which does not exist."""
    for arg in argv:
        _check_text(arg)
    known = [arg if arg.startswith("-") else _path_quoted(arg) for arg in config_files.use_folders(argv)]
    known = model_sugar(template_sugar(backend_sugar(claims_sugar(known))))
    check_group_choices([w for w in known if not w.startswith("-")])
    return steer_sugar(known)


def _check_text(word: str) -> None:
    try:
        word.encode()
    except UnicodeEncodeError:
        raise GatingError(f"{shown(word)!r} on the command line is not UTF-8 text; rename that file.") from None
    if any(unicodedata.category(c) in UNSAFE - {"Cf", "Co", "Cn"} and c not in "\n\t" for c in word):
        raise GatingError(f"{shown(word)!r} on the command line holds a control character; leave it out.")
    if re.search(r"[0-9]{400}", word):  # Python makes no number of them
        raise GatingError(f"{shown(word, 80)!r} on the command line holds a number of over 400 digits; write another.")


def quoted(value: str) -> str:
    """A value as Hydra's grammar takes it: itself, or in quotes where it holds other signs."""
    if PLAIN.fullmatch(value):
        return value
    escaped = re.sub(r"(\\*)(\'|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value)
    return f"'{escaped}'"


def _in_quotes(value: str) -> str:
    """A value, or each of a comma list, in quotes where it needs them and has none."""
    return value if value.startswith("'") else ",".join(map(quoted, value.split(",")))


def _path_quoted(word: str) -> str:
    """`key=path` with the path in quotes where there is such a file: its commas, spaces and brackets are its own."""
    key, equals, value = word.partition("=")
    return f"{key}={quoted(value)}" if equals and not PLAIN.fullmatch(value) and _is_path(value) else word


def _is_path(value: str) -> bool:
    try:
        return Path(value).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, no such user
        return False


def steer_sugar(argv: Sequence[str]) -> list[str]:
    """`steer=evil` or `steer=my/persona.yaml` becomes `steer=persona steer.direction=...`: every persona, shipped or a
    file, is a choice without a configuration of its own. A comma list (a multirun) works in the same way."""
    out: list[str] = []
    known = group_choices("steer")
    for arg in argv:
        value = arg.removeprefix("steer=")
        if value == arg or all(v in known for v in value.split(",")):
            out.append(arg)
        else:
            out += ["steer=persona", f"steer.direction={_in_quotes(value)}"]
    return out


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
    out: list[str] = []
    for arg in argv:
        value = arg.removeprefix("claims=")
        if value != arg and value.strip("'").endswith((".yaml", ".yml")):
            out += ["claims=none", f"+claims.file={_in_quotes(value)}"]
        else:
            out.append(arg)
    return out


def model_sugar(argv: Sequence[str]) -> list[str]:
    """`model=my.yaml` becomes `model=my`, whose settings Hydra is given: a model's file of your own is a choice too. A
    comma list (a multirun) works in the same way. Raises GatingError for a file that cannot be one."""
    out: list[str] = []
    for arg in argv:
        value = arg.removeprefix("model=")
        whole = value.startswith("'")  # a path in quotes: its commas are its own
        given = [value[1:-1].replace("\\'", "'")] if whole else value.split(",")
        if value != arg and any(v.endswith(config_files.ENDINGS) for v in given):
            arg = f"model={','.join(_model_choice(v) if v.endswith(config_files.ENDINGS) else v for v in given)}"
        out.append(arg)
    return out


def _model_choice(path: str) -> str:
    name, content = config_files.read_choice(path, "model")
    ConfigStore.instance().store(name, content, "model")
    return name


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
        if group == "hydra" and key.startswith("+"):
            raise GatingError(f"{shown(arg)}: Hydra has no such setting, and nothing would read it; leave it out.")
        if group in RENAMED and "." in key:
            new = arg.replace(group, RENAMED[group], 1)
            raise GatingError(f"{arg}: {group} is now called {RENAMED[group]}; write {new}. {REJUDGE}")
        if key.lstrip("+") in groups() and key != "steer":
            key = key.lstrip("+")
            known = [*group_choices(key), *_given(key)]
            for v in value.split(","):
                if v not in known:
                    raise GatingError(f"{key}={v} is not a choice: use {choices(group_choices(key), v)}.")


def _given(group: str) -> list[str]:
    """Choices that a file of the user's gave."""
    held = ConfigStore.instance().repo.get(group, {})
    return [str(name).removesuffix(".yaml") for name in held]


@contextmanager
def spoken(console: Console) -> Iterator[None]:
    """Errors of a command's body as one paragraph on the console: exit code 2 for bad input, 130 when interrupted."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        _leave_stdout()
        sys.exit(0)
    except EXPECTED as e:
        say_error(console, explain(e))
        sys.exit(2)
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(130)


def _cut(word: re.Match[str]) -> str:
    """A word too long to take in (a path of thousands of characters) by its ends."""
    return f"{word[0][:120]}…{word[0][-60:]}"


def say_error(console: Console, message: str) -> None:
    """One paragraph on the console; what no terminal can hold is left out."""
    text = f"error: {LONG_WORD.sub(_cut, shown(message, 20_000))[:4000]}"
    try:
        console.print(text, style="red", markup=False, soft_wrap=True, highlight=False, emoji=False)
        console.file.flush()
    except OSError:  # stdout goes to a full disk
        _leave_stdout()
        print(text, file=sys.stderr)


def _leave_stdout() -> None:
    """What is still to be written there goes nowhere, so that the process can end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def explain(error: BaseException, place: str = "") -> str:
    """One paragraph for a user: what was given, what is allowed, what to do. place: of files whose error names none."""
    if isinstance(error, GatingError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and (remedy := extras.remedy(error)):
        return remedy
    if isinstance(error, MissingConfigException):
        return extras.launcher_remedy(str(error)) or " ".join(str(error).split())
    if type(error).__name__ in LOST:
        return "a process of the launcher was lost (killed, or out of memory); " + AGAIN
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _explain_override(error)
    if isinstance(error, OSError):
        file, reason = error.filename or place or "the output", error.strerror or error
        remedy = "free some disk space" if error.errno == errno.ENOSPC else "mend the path or its permissions"
        return f"{shown(file)}: {reason}; {remedy}, then give the same command again: what is finished is kept."
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "out of memory" in text.lower() or "can't allocate memory" in text.lower():
        return (
            f"backend.batch_rows: the device ran out of memory ({text}); lower backend.batch_rows (or max_new_tokens)."
        )
    raise error


def _explain_override(error: BaseException) -> str:
    if isinstance(error, OverrideParseException):
        word = addresses.masked(error.override) if "@" in str(error.override) else shown(error.override)
        key, _, value = word.partition("=")
        example = shlex.quote(f"{key}={quoted(value)}" if value[:1] not in "[{" else "key=['a, b','c d']")
        return (
            f"{word} on the command line cannot be read ({addresses.masked(error)}); write key=value, lists as [1,2], "
            f"and a text with other signs in quotes, within your shell's: {shown(example)}"
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
    parent, _, leaf = key.rpartition(".")
    schema = _schema()
    for part in filter(None, parent.split(".")):
        child = schema.get(part)
        if not isinstance(child, DictConfig):
            return f"what --help lists, or +{key}=... for a new entry of {parent}"
        schema = child
    prefix = f"{parent}." if parent else ""
    return choices([prefix + str(k) for k in schema], f"{prefix}{leaf}")


def _schema() -> DictConfig:
    """What the command that runs takes."""
    registered = ConfigStore.instance().repo
    return next(registered[f"{name}.yaml"].node for name in SCHEMAS if f"{name}.yaml" in registered)
