"""What is checked before a job is sent: host, key, versions, the model and its precision. Each failure is one
message."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version

from gating.errors import GatingError, choices
from gating.remote.wire import JSON, LOGIN, Passing, Wire

Document = Mapping[str, JSON]

PUBLIC = "api.ndif.us"
DECIDING = ("nnsight",)  # another version of these may read a trace differently
TOLD = ("torch", "transformers")
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
        wire.get("/ping")
    except Passing as e:
        raise GatingError(
            f"backend.host: no NDIF server answers at {wire.url} ({e}). Check the address and the network; "
            "`make ndif-up` starts a server on this machine, backend=local needs none."
        ) from None
    try:
        installed, status = _installed(wire), wire.get("/status")
    except Passing as e:
        raise GatingError(
            f"backend.host: {wire.url} answers, but not for its models ({e}): it may be starting or reconnecting. Try "
            "again in a few minutes."
        ) from None
    warnings = compare(installed) if installed else [f"{wire.url} does not say which versions it runs"]
    if wire.key and wire.url.startswith("http://") and not re.match(r"http://(127\.|localhost\b|\[::1\])", wire.url):
        warnings.append(f"{wire.url} is not encrypted, and your key and prompts go there in the clear")
    model_key, served = _find(status, repo, revision)
    if served is None and not deploy:
        names = sorted({str(d.get("repo_id")) for d in _deployments(status)})
        raise GatingError(
            f"model: {wire.url} does not serve {repo}{f' at revision {revision}' if revision else ''} now; it serves "
            f"{choices(names, repo)}. Choose one of these, or let the server load it with backend.deploy=true."
        )
    precision = str(served["dtype"]).removeprefix("torch.") if served and served.get("dtype") else None
    if dtype != "auto" and precision and dtype != precision:
        raise GatingError(
            f"model.dtype={dtype}: {wire.url} serves {repo} in {precision}; say model.dtype=auto (or {precision}), or "
            "choose another host."
        )
    versions = {n: str(installed[n]) for n in (*DECIDING, *TOLD, "ndif") if n in installed}
    return Served(model_key, precision, versions, warnings)


def _installed(wire: Wire) -> Mapping[str, JSON]:
    try:
        packages: Mapping[str, JSON] = wire.get("/env").get("packages", {})
    except GatingError:  # an older server has no such document
        return {}
    return packages


def compare(installed: Mapping[str, JSON]) -> list[str]:
    """A warning for each package that is another one on the server. Raises GatingError where jobs would not be
    understood."""
    warnings = []
    for name in (*DECIDING, *TOLD):
        theirs, ours = str(installed.get(name, "unknown")).partition("+")[0], version(name).partition("+")[0]
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


def _find(status: Document, repo: str, revision: str | None) -> tuple[str, Document | None]:
    wanted = model_key(repo, revision)
    for d in _deployments(status):
        if d.get("repo_id") == repo and d.get("revision") == revision and d.get("task") in (None, "text-generation"):
            return str(d.get("model_key", wanted)), d
    return wanted, None


def _deployments(status: Document) -> list[Document]:
    return [
        d
        for d in status.get("deployments", {}).values()
        if {d.get("application_state"), d.get("deployment_level")} & set(UP)
    ]
