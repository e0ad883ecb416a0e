"""Models named by a hub id or a folder (`model.kind=hf`): where their files are, and the two sources.

The Hugging Face cache is asked first and the hub only when something is missing, so that nothing waits for an absent
network.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from huggingface_hub import HfApi, constants, snapshot_download
from transformers import PreTrainedTokenizerBase

from gating.errors import GatingError, cause
from gating.models import checkpoint, digests, placement
from gating.models.base import Pretrained, Source
from gating.models.config import ModelConfig

LIGHT = ["*.json", "*.jinja", "*.model", "*.txt"]  # configuration and tokenizer
FILES = [*LIGHT, "*.safetensors"]
NOT_FILES = ["original/*", "onnx/*", "*/*.safetensors"]
TIMEOUT = 10.0  # seconds, to find out whether the hub can be reached


# ----------------------------------------------------------------------------------------------------------- sources
class Hub(Source):
    """A hub id."""

    cuda_dtype = "bfloat16"

    def check(self) -> None:
        if not self.cfg.id:
            raise GatingError(
                "model.id has no value: say which model, model.id=org/name (on the hub) or model.id=/path."
            )

    def sizes(self) -> dict[str, int]:
        if self.all_stated():
            return self.stated()
        return {**checkpoint.sizes(self._find(weights=False)[0], self.cfg.trust_remote_code), **self.stated()}

    def identity(self, fetch: bool) -> dict[str, str | None]:
        """The files' contents: a name on the hub, and a branch, may hold other weights tomorrow."""
        return {"id": digests.folder(self._find(offline=not fetch)[0]), "revision": None}

    def tokenizer(self, fetch: bool = False) -> PreTrainedTokenizerBase:
        folder, _ = find(str(self.cfg.id), self.cfg.revision, not fetch, weights=False, tokenizer=True)
        return checkpoint.tokenizer(folder, self.cfg.trust_remote_code)

    def load(self, dtype: torch.dtype) -> Pretrained:
        folder, revision = self._find()
        return checkpoint.load(folder, dtype, revision, self.cfg.trust_remote_code, placement.told(self.cfg, dtype))

    def skeleton(self) -> Pretrained:
        return skeleton(self.served_as(), self.cfg.revision, trust=self.cfg.trust_remote_code)

    def served_as(self) -> str:
        return str(self.cfg.id) if not (self.cfg.remote or self.cfg.adapter) else super().served_as()

    def _find(self, offline: bool = False, weights: bool = True) -> tuple[Path, str | None]:
        return find(str(self.cfg.id), self.cfg.revision, offline, weights)


class Folder(Hub):
    """A folder on this machine, in the transformers format; it may change, so its files are always read."""

    def sizes(self) -> dict[str, int]:
        return checkpoint.sizes(self._find(weights=False)[0], self.cfg.trust_remote_code)

    def served_as(self) -> str:
        return Source.served_as(self)


def hub_or_folder(cfg: ModelConfig) -> Source:
    return Folder(cfg) if checkpoint.is_folder(cfg.id) else Hub(cfg)


def skeleton(name: str, revision: str | None, offline: bool = False, trust: bool = False) -> Pretrained:
    """A model of the hub without its weights. Raises GatingError where it is neither in the cache nor to be fetched."""
    return checkpoint.skeleton(*find(name, revision, offline, weights=False, tokenizer=True), trust)


# --------------------------------------------------------------------------------------------------- where files are
def find(
    name: str, revision: str | None, offline: bool = False, weights: bool = True, tokenizer: bool | None = None
) -> tuple[Path, str | None]:
    """The folder of a model and its commit (None for a local folder). `offline` never uses the network; without
    `weights` config.json is enough, and the tokenizer where it is asked for.

    Raises GatingError saying what was looked for, where, and how to get it.
    """
    tokenizer = weights if tokenizer is None else tokenizer
    if checkpoint.is_folder(name):
        folder = Path(name).expanduser()
        missing = checkpoint.missing(folder, weights, tokenizer)
        if missing == "config.json" and (folder / "adapter_config.json").is_file():
            raise GatingError(
                f"model.id={name}: this folder holds a peft adapter, not a model; say model.adapter={name}, and the "
                "model that it was trained on as model.id."
            )
        if missing:
            raise GatingError(
                f"model.id={name}: the folder has no {missing}; a model folder holds config.json, safetensors weights "
                "and a tokenizer. Download it again, or give another folder."
            )
        return folder, None
    snapshot = cached(name, revision)
    if snapshot is None or checkpoint.missing(snapshot, weights, tokenizer):
        snapshot = fetch(name, revision, FILES if weights else LIGHT if tokenizer else ["config.json"], offline)
    missing = checkpoint.missing(snapshot, weights, tokenizer)
    if missing:
        raise unreachable(name, revision, f"it has no {missing}")
    return snapshot, snapshot.name


def cached(name: str, revision: str | None) -> Path | None:
    """The folder in the Hugging Face cache, perhaps with files missing. Raises GatingError for what is no hub id."""
    if re.match(r"[./~]", name) or name.count("/") > 1 or Path(name).suffix in (".gguf", ".safetensors"):
        raise GatingError(f"model.id={name}: there is no such folder; give a model's folder, or a hub id org/name.")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise GatingError(f"model.id={name!r} is neither a folder nor a hub id; a hub id looks like org/name.")
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except Exception:  # not in the cache, or not a valid name or revision: the hub says which
        return None


def fetch(name: str, revision: str | None, patterns: list[str], offline: bool) -> Path:
    """Download the files that match. Raises GatingError where the hub cannot be reached or may not be asked."""
    if constants.HF_HUB_OFFLINE or offline:
        raise unreachable(name, revision, "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "not asked")
    try:
        # one quick question, before slow ones with retries
        HfApi().model_info(name, revision=revision, timeout=TIMEOUT)
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=NOT_FILES))
    except Exception as e:  # not found, gated, no network, no disk: the message says which, the remedy is one
        raise unreachable(name, revision, cause(e)) from e


def unreachable(name: str, revision: str | None, reason: str) -> GatingError:
    at = f" at revision {revision}" if revision else ""
    return GatingError(
        f"model.id={name}{at} is neither in the Hugging Face cache ({constants.HF_HUB_CACHE}) nor could it be fetched "
        f"from {constants.ENDPOINT} ({reason}). On a machine with a network run `hf download {name}` (a gated model "
        "needs its licence accepted and HF_TOKEN set), or give a folder that holds it: model.id=/path/to/folder."
    )
