"""What is checked before a job is sent: host, key, versions, the model and its precision. Each failure is one
message."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

from gating import addresses, foreign, models
from gating.errors import GatingError, choices
from gating.remote.wire import JSON, LOGIN, Passing, Wire

Document = Mapping[str, JSON]

PUBLIC = "api.ndif.us"
DECIDING = ("nnsight",)  # another version of these may read a trace differently
TOLD = ("torch", "transformers")
LISTED, COMPARED = 12, 2000  # names of models in an error, and those that are searched for a near one
LONGEST_KEY = 1000  # characters of the name under which a server knows a model
UP = ("RUNNING", "DEPLOYING", "HOT", "WARM")


@dataclass(frozen=True)
class Served:
    """What a server is, as far as a result depends on it."""

    model_key: str
    dtype: str | None  # None where the model is not up yet
    versions: dict[str, str]
    warnings: list[str] = field(default_factory=list)


def check(wire: Wire, repo: str, revision: str | None, dtype: str, deploy: bool) -> Served:
    """Raises GatingError for a host that does not answer, a missing key, versions that clash, a model that is not
    served (unless `deploy` lets the server load it), or one that is served in another precision than `dtype`."""
    if not wire.key and PUBLIC in wire.url:
        raise GatingError(
            f"NDIF_API_KEY has no value, and {wire.url} takes no job without one: get a key at {LOGIN} and put it into "
            "the environment variable NDIF_API_KEY (or nnsight.CONFIG.set_default_api_key)."
        )
    try:
        if not isinstance(wire.get("/ping"), str | dict):
            raise Passing("what it says to /ping is no greeting")
    except Passing as e:
        raise GatingError(
            f"backend.host: no NDIF server answers at {wire.url} ({e}). Check the address and the network; "
            "`make ndif-up` starts a server on this machine, backend=local needs none."
        ) from None
    try:
        installed, status = _installed(wire), wire.get("/status")
        _deployments(wire, status)
    except Passing as e:
        raise GatingError(
            f"backend.host: {wire.url} answers, but not for its models ({e}): it may be starting or reconnecting. Try "
            "again in a few minutes."
        ) from None
    warnings = compare(installed) if installed else [f"{wire.url} does not say which versions it runs"]
    if wire.key and wire.url.startswith("http://") and not addresses.is_loopback(wire.url):
        warnings.append(f"{wire.url} is not encrypted, and your key and prompts go there in the clear")
    model_key, served = _find(wire, status, repo, revision)
    if served is None and not deploy:
        raise GatingError(
            f"model: {wire.url} does not serve {repo}{f' at revision {revision}' if revision else ''} now; it serves "
            f"{_listed(_deployments(wire, status), repo)}. Choose one of these, or let the server load it with "
            "backend.deploy=true."
        )
    precision = _precision(wire, served)
    if dtype != "auto" and precision and dtype != precision:
        raise GatingError(
            f"model.dtype={dtype}: {wire.url} serves {repo} in {precision}; say model.dtype=auto (or {precision}), or "
            "choose another host."
        )
    versions = {n: _version(installed, n) for n in (*DECIDING, *TOLD, "ndif") if n in installed}
    return Served(model_key, precision, versions, warnings)


def _installed(wire: Wire) -> Mapping[str, JSON]:
    try:
        return _mapping(wire, wire.get("/env"), "packages")
    except GatingError:  # an older server has no such document
        return {}


def _mapping(wire: Wire, document: JSON, key: str) -> Mapping[str, JSON]:
    """A mapping in a document, empty where there is none. Raises Passing for anything else."""
    found = document.get(key, {}) if isinstance(document, dict) else None
    if not isinstance(found, dict):
        raise Passing(f"what {wire.url} gives as {key} is not a JSON object")
    return found


def _version(installed: Mapping[str, JSON], name: str) -> str:
    """A package's version there; `unknown` where what is told is none."""
    told = installed.get(name)
    return told if isinstance(told, str) and re.fullmatch(r"\d[\w.+!-]{0,40}", told, re.ASCII) else "unknown"


def compare(installed: Mapping[str, JSON]) -> list[str]:
    """A warning for each package that is another one on the server. Raises GatingError where jobs would not be
    understood."""
    warnings = []
    for name in (*DECIDING, *TOLD):
        theirs, ours = _version(installed, name).partition("+")[0], version(name).partition("+")[0]
        if theirs in ("unknown", ours):
            continue
        if name in DECIDING and theirs.split(".")[:2] != ours.split(".")[:2]:
            raise GatingError(
                f"backend.host: the server has {name} {theirs}, this client {ours}, and jobs of one are not understood "
                f"by the other; `pip install {name}=={theirs}` in an environment of its own, or choose another host."
            )
        warnings.append(f"the server has {name} {theirs}, this client {ours}: numbers may differ in their last digits")
    return warnings


def model_key(repo: str, revision: str | None) -> str:
    """The name under which NDIF knows a chat model (nnsight 0.8.1, Remotable.to_model_key)."""
    what = {"repo_id": repo, "revision": revision, "task": "text-generation"}
    return f"nnsight.modeling.transformers.TransformersModel:{json.dumps(what)}"


def _find(wire: Wire, status: Document, repo: str, revision: str | None) -> tuple[str, Document | None]:
    wanted = model_key(repo, revision)
    for d in _deployments(wire, status):
        if d.get("repo_id") == repo and d.get("revision") == revision and d.get("task") in (None, "text-generation"):
            key = d.get("model_key", wanted)
            if not isinstance(key, str) or foreign.shown(key, LONGEST_KEY) != key:
                raise GatingError(
                    f"backend.host: {wire.url} names {repo} in a way that cannot be sent back "
                    f"({foreign.shown(key, 60)}); choose another host."
                )
            return key, d
    return wanted, None


def _precision(wire: Wire, served: Document | None) -> str | None:
    """The precision that a model is served in; None where it is not up yet. Raises GatingError for one that is none."""
    told = served.get("dtype") if served else None
    if told is None:
        return None
    precision = str(told).removeprefix("torch.")
    if precision not in models.DTYPES:
        raise GatingError(
            f"backend.host: {wire.url} serves the model in {foreign.shown(precision, 40)}, which is not a precision "
            f"that is known here ({choices(models.DTYPES)}); choose another host."
        )
    return precision


def _listed(deployments: Sequence[Document], repo: str) -> str:
    """The names of what is served, the nearest to `repo` first; not all of very many."""
    names = sorted({foreign.shown(d.get("repo_id"), 80) for d in deployments})
    near = difflib.get_close_matches(repo, names[:COMPARED], n=3)
    some = list(dict.fromkeys([*near, *names]))[:LISTED]
    more = f", and {len(names) - len(some):,} more" if len(names) > len(some) else ""
    return choices(some, repo) + more


def _deployments(wire: Wire, status: Document) -> list[Document]:
    """What is up, or coming up. Raises Passing where the document is none of models."""
    found = list(_mapping(wire, status, "deployments").values())
    if not all(isinstance(d, dict) for d in found):
        raise Passing(f"what {wire.url} gives as deployments is not one JSON object for each")
    return [d for d in found if any(d.get(k) in UP for k in ("application_state", "deployment_level"))]
