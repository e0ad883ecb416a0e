"""Where a model's files are: a folder, the Hugging Face cache, or, when it may and must, the hub.

The cache is asked first and the hub only when something is missing, so that nothing waits for an absent network.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, constants, snapshot_download
from transformers import AutoConfig, AutoModelForCausalLM

from gating.errors import GatingError

LIGHT = ["*.json", "*.jinja", "*.model", "*.txt"]  # configuration and tokenizer
FILES = [*LIGHT, "*.safetensors"]
NOT_FILES = ["original/*", "onnx/*", "*/*.safetensors"]
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
TIMEOUT = 10.0  # seconds, to find out whether the hub can be reached


def first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else "no message"


def is_folder(name: str) -> bool:
    return Path(name).expanduser().is_dir()


def find(
    name: str, revision: str | None, offline: bool = False, weights: bool = True, tokenizer: bool | None = None
) -> tuple[Path, str | None]:
    """The folder of a model and its commit (None for a local folder). `offline` never uses the network; without `weights`
    config.json is enough, and the tokenizer where it is asked for.

    Raises GatingError saying what was looked for, where, and how to get it.
    """
    tokenizer = weights if tokenizer is None else tokenizer
    if is_folder(name):
        folder = Path(name).expanduser()
        missing = _missing(folder, weights, tokenizer)
        if missing:
            raise GatingError(
                f"model.id={name}: the folder has no {missing}; a model folder holds config.json, safetensors weights "
                "and a tokenizer. Download it again, or give another folder."
            )
        return folder, None
    _check_id(name)
    found = _cached(name, revision)
    if found and not _missing(found, weights, tokenizer):
        return found, found.name
    got = _fetch(name, revision, FILES if weights else LIGHT if tokenizer else ["config.json"], offline)
    missing = _missing(got, weights, tokenizer)
    if missing:
        raise _unreachable(name, revision, f"it has no {missing}")
    return got, got.name


def _fetch(name: str, revision: str | None, patterns: list[str], offline: bool) -> Path:
    if constants.HF_HUB_OFFLINE or offline:
        raise _unreachable(name, revision, "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "not asked")
    try:
        HfApi().model_info(
            name, revision=revision, timeout=TIMEOUT
        )  # one quick question, before slow ones with retries
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=NOT_FILES))
    except Exception as e:  # not found, gated, no network, no disk: told apart by the message, one remedy
        raise _unreachable(name, revision, f"{type(e).__name__}: {first_line(e)}") from e


def _unreachable(name: str, revision: str | None, why: str) -> GatingError:
    at = f" at revision {revision}" if revision else ""
    return GatingError(
        f"model.id={name}{at} is neither in the Hugging Face cache ({constants.HF_HUB_CACHE}) nor could it be fetched "
        f"from {constants.ENDPOINT} ({why}). On a machine with a network run `hf download {name}` (a gated model needs "
        "its licence accepted and HF_TOKEN set), or give a folder that holds it: model.id=/path/to/folder."
    )


def _check_id(name: str) -> None:
    if re.match(r"[./~]", name) or name.count("/") > 1 or Path(name).suffix in (".gguf", ".safetensors"):
        raise GatingError(f"model.id={name}: there is no such folder; give a model's folder, or a hub id org/name.")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise GatingError(f"model.id={name!r} is neither a folder nor a hub id; a hub id looks like org/name.")


def _cached(name: str, revision: str | None) -> Path | None:
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except Exception:  # not in the cache, or not a valid name or revision: the hub says which
        return None


def _missing(folder: Path, weights: bool, tokenizer: bool) -> str | None:
    """The first file that is missing for a model (or only its configuration, or tokenizer) to load."""
    if not (folder / "config.json").is_file():
        return "config.json"
    if tokenizer and not any((folder / name).is_file() for name in TOKENIZERS):
        return TOKENIZERS[0]
    if not weights:
        return None
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return None if any(folder.glob("*.safetensors")) else "safetensors weights"
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError):
        return f"readable {index.name}"
    return next((s for s in shards if not (folder / s).is_file()), None)


def folder_digest(folder: Path) -> str:
    """16 hex digits over a folder's configuration and its weight files' names and sizes (their bytes take long)."""
    config = folder / "config.json"
    h = hashlib.sha256(config.read_bytes() if config.is_file() else b"")
    for p in sorted(folder.glob("*.safetensors")):
        h.update(f"{p.name}:{p.stat().st_size};".encode())
    return h.hexdigest()[:16]


def config_sizes(folder: Path) -> dict[str, int]:
    """Sizes of a model from its config.json, counted on torch's meta device: no weights are read or made."""
    try:
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        text = config.get_text_config()
        heads = text.num_attention_heads
        return {
            "layers": text.num_hidden_layers,
            "hidden": text.hidden_size,
            "parameters": sum(p.numel() for p in model.parameters()),
            "kv_heads": getattr(text, "num_key_value_heads", None) or heads,
            "head_dim": getattr(text, "head_dim", None) or text.hidden_size // heads,
            "vocab": text.vocab_size,
        }
    except Exception as e:  # a damaged or unknown configuration shows itself in a dozen ways
        raise GatingError(
            f"model.id: {folder / 'config.json'} does not describe a decoder-only chat model that transformers knows "
            f"({type(e).__name__}: {first_line(e)}); give another model."
        ) from e


# ------------------------------------------------------------------------------------------------------- GGUF files
def gguf_path(name: str | None, file: str, revision: str | None, offline: bool = False) -> Path:
    """The path of a GGUF file: a path by itself, or a file inside a folder or a hub model. Raises GatingError."""
    direct = Path(file).expanduser()
    inside = Path(name).expanduser() / file if name else direct
    for path in (direct, inside):
        if path.is_file():
            return path
    if name is None or is_folder(name):
        inside_of = f" in {name}" if name else ""
        raise GatingError(
            f"model.gguf_file={file}: there is no such file{inside_of}; give the path of a .gguf file, or a folder "
            "or hub id as model.id and the file's name in it."
        )
    _check_id(name)
    found = _cached(name, revision)
    if found and (found / file).is_file():
        return found / file
    got = _fetch(name, revision, [file], offline) / file
    if not got.is_file():
        raise _unreachable(name, revision, f"it has no file {file}")
    return got


def gguf_sizes(path: Path) -> dict[str, int]:
    """Sizes of a model from a GGUF file's header."""
    try:
        from gguf import GGUFReader

        reader: Any = GGUFReader(path)
        value = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("tokenizer.ggml.")}
        arch = value["general.architecture"]
        heads, hidden = value[f"{arch}.attention.head_count"], value[f"{arch}.embedding_length"]
        table = next(t for t in reader.tensors if t.name == "token_embd.weight")
        return {
            "layers": int(value[f"{arch}.block_count"]),
            "hidden": int(hidden),
            "parameters": int(sum(t.n_elements for t in reader.tensors)),
            "kv_heads": int(value.get(f"{arch}.attention.head_count_kv", heads)),
            "head_dim": int(value.get(f"{arch}.attention.key_length", hidden // heads)),
            "vocab": int(max(table.shape)),
        }
    except Exception as e:  # the reader raises a dozen types for a damaged file
        raise GatingError(
            f"model.gguf_file: {path} is not a readable GGUF model ({type(e).__name__}: {first_line(e)}); download it "
            "again."
        ) from e
