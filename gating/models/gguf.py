"""GGUF files (`model.kind=gguf`): where one is, its sizes from its header, and its weights, dequantised."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from gating.errors import GatingError, cause
from gating.extras import require
from gating.models import checkpoint, digests, hub, parts
from gating.models.base import Pretrained, Source, reading


class Gguf(Source):
    """A GGUF file: a path, or a file inside a folder or a hub model."""

    cuda_dtype = "bfloat16"

    def check(self) -> None:
        if not self.cfg.gguf_file:
            raise GatingError("model.gguf_file has no value: give a GGUF file's path, or its name inside model.id.")

    def sizes(self) -> dict[str, int]:
        return self.stated() if self.all_stated() else sizes(self._path())

    def identity(self, fetch: bool) -> dict[str, str | None]:
        return {"id": None, "gguf_file": digests.file(self._path(offline=not fetch))}

    def tokenizer(self, fetch: bool = False) -> PreTrainedTokenizerBase:
        return read_tokenizer(self._path(offline=not fetch))

    def load(self, dtype: torch.dtype) -> Pretrained:
        return dequantise(self._path(), dtype)

    def skeleton(self) -> Pretrained:
        return hub.skeleton(self.served_as(), self.cfg.revision)

    def _path(self, offline: bool = False) -> Path:
        return find(self.cfg.id, str(self.cfg.gguf_file), self.cfg.revision, offline)


def find(name: str | None, file: str, revision: str | None, offline: bool = False) -> Path:
    """The path of a GGUF file: a path by itself, or a file inside a folder or a hub model. Raises GatingError."""
    direct = Path(file).expanduser()
    inside = Path(name).expanduser() / file if name else direct
    for path in (direct, inside):
        if path.is_file():
            return path
    if name is None or checkpoint.is_folder(name):
        place = f" in {name}" if name else ""
        raise GatingError(
            f"model.gguf_file={file}: there is no such file{place}; give the path of a .gguf file, or a folder "
            "or hub id as model.id and the file's name in it."
        )
    snapshot = hub.cached(name, revision)
    if snapshot and (snapshot / file).is_file():
        return snapshot / file
    path = hub.fetch(name, revision, [file], offline) / file
    if not path.is_file():
        raise hub.unreachable(name, revision, f"it has no file {file}")
    return path


def sizes(path: Path) -> dict[str, int]:
    """Sizes of a model from a GGUF file's header. Raises GatingError naming the file."""
    require("gguf", "model.gguf_file")
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
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
            **({"context": int(context)} if (context := value.get(f"{arch}.context_length")) else {}),
        }
    except Exception as e:  # the reader raises a dozen types for a damaged file
        raise GatingError(
            f"model.gguf_file: {path} is not a readable GGUF model ({cause(e)}); download it again."
        ) from e


def dequantise(path: Path, dtype: torch.dtype) -> Pretrained:
    """A GGUF file's model and tokenizer, as plain weights that can be trained and saved. Raises GatingError."""
    require("gguf", "model.gguf_file")
    try:
        tokenizer = read_tokenizer(path)
        quantised = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, **reading(), dtype=dtype)
    except Exception as e:  # the readers raise a dozen types for a damaged or unknown file
        raise GatingError(
            f"model.gguf_file: {path} could not be read as a GGUF model ({cause(e)}); download it again, or use the "
            "model's safetensors with model=hf."
        ) from e
    config = quantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(quantised)(config)  # a fresh one: the one just read calls itself quantised and cannot be saved
    parts.move(model, dtype=dtype)
    model.load_state_dict(quantised.state_dict())
    model.tie_weights()
    model.generation_config = quantised.generation_config
    return Pretrained(model, tokenizer)


def skeleton(path: Path) -> Pretrained:
    """A GGUF file's model on torch's meta device, and its tokenizer."""
    require("gguf", "model.gguf_file")
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, **reading())
    return Pretrained(checkpoint.without_weights(config), read_tokenizer(path))


def read_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """A GGUF file's tokenizer.

    SmolLM's splits digits one by one, which the reader of GGUF files leaves out ("2024" became other tokens).
    """
    require("gguf", "model.gguf_file")
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, **reading())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and "smollm" in path.name.lower():
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tokenizer
