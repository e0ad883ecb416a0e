"""Load a chat model from whatever names it: a hub id, a folder, a GGUF file, the embedded default, random tiny weights.

What can be known without weights (`architecture`, `identity`, `tokenizer_only`) never loads them, and needs the network
at most for a config.json that neither conf/model/ nor this machine has, so that a dry run works anywhere.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from gating.errors import GatingError, choices
from gating.models import adapters, embedded, hub, modules, tiny

log = logging.getLogger(__name__)

KINDS = ("hf", "gguf", "embedded", "tiny")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class SteerDefaults:
    """What steer.* takes where a steer file refers to the model: chosen for this model, on the select split."""

    layers: Any = "0.55"  # a block, a relative depth, a range, a set
    coef: Any = 1.0  # strength, in units of `norm`
    norm: Any = "natural"  # natural, unit, residual, or a direction's name
    read: Any = "same"  # same block as written, or previous (the paper's convention)


@dataclass
class Sites:
    """Where the paper's experiments act on this model (blocks, or relative depths), how strongly, and in which norm.

    The defaults are the depths of the paper's blocks in Qwen2.5-7B (18, 20, 14, 22, 24 of 28; arXiv 2606.26161).
    """

    before: Any = "0.643"  # a block before the persona's: a knock-out there can remove nothing that was injected
    persona: Any = "0.715"  # where the persona direction is added
    persona_read: Any = "0.715"  # the block whose output it is read at
    persona_before: Any = "0.286"  # an early injection, so that the early refusal block comes after it
    early: Any = "0.5"  # where the refusal direction is added before the persona
    late: Any = "0.786"  # after the persona: refusal back in, persona knocked out
    last: Any = "0.858"  # the latest of these
    window: Any = "0.75-0.9"  # a window of late blocks to knock the persona out of
    refusal_read: Any = "0.5"  # the block whose output the refusal direction is read at
    norm: str = "compliant"  # the direction whose norm, at persona_read, coefficients count in
    persona_coef: float = 1.0
    refusal_coef: float = 1.0
    relative: float = (
        0.2  # dose of the refusal direction as a fraction of the residual's median norm, where that is matched
    )


@dataclass
class Architecture:
    """Sizes that a dry run needs where no weights are. Null: read from the model's own files."""

    layers: int | None = None  # decoder blocks
    hidden: int | None = None  # width of the residual stream
    parameters: int | None = None  # weights in all, tied ones once
    kv_heads: int | None = None  # key-value heads a block
    head_dim: int | None = None  # width of a head
    vocab: int | None = None  # rows of the output matrix


@dataclass
class ModelConfig:
    """One model: what it is, in which precision and where it runs, and what steering takes by default."""

    name: str = "hf"  # short name, for folders and tables
    kind: str = "hf"  # hf (hub id or folder), gguf, embedded or tiny
    id: str | None = None  # hub id org/name, or the path of a folder
    revision: str | None = None  # branch, tag or commit on the hub; null is the main branch
    gguf_file: str | None = None  # kind=gguf: a file inside `id`, or its path
    architecture: str | None = None  # kind=tiny: llama, qwen2 or gemma2
    remote: str | None = None  # the hub id under which an NDIF server serves it; null is `id`
    adapter: str | None = None  # a LoRA adapter to merge: a shipped name or a peft folder's path
    dtype: str = "auto"  # auto, float32, bfloat16 or float16; auto is bfloat16 on CUDA for hf and gguf, else float32
    device: str = "auto"  # auto (CUDA where there is one), cpu, cuda, cuda:1, ...
    system: str | None = None  # system message of every chat; null leaves it to the model's template
    max_new_tokens: int = 48  # tokens of an answer, at most
    batch_rows: int = 64  # rows (prompt x condition) a batch
    first_token_openings: list[str] = field(default_factory=lambda: ["I", "Sorry", "As"])  # how its refusals begin
    steer: SteerDefaults = field(default_factory=SteerDefaults)
    sites: Sites = field(default_factory=Sites)
    arch: Architecture = field(default_factory=Architecture)


WEIGHTS = ("kind", "id", "revision", "gguf_file", "architecture", "adapter")  # the fields that determine the weights


@dataclass(frozen=True)
class Loaded:
    """A model ready to run: in eval mode, without gradients, adapter merged, tokenizer padding on the left."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str  # 16 hex digits over configuration, a fixed sample of the weights, and the adapter
    revision: str | None  # commit, for a model from the hub
    device: torch.device
    dtype: torch.dtype
    n_layers: int
    hidden: int
    name: str


_loaded: dict[str, Loaded] = {}  # the last model only: a second one might not fit beside it


# ------------------------------------------------------------------------------------------------- without weights
def check(cfg: ModelConfig) -> None:
    """Refuse what cannot be a model, before anything is loaded. Raises GatingError naming the key."""
    if cfg.kind not in KINDS:
        raise GatingError(f"model.kind={cfg.kind!r} is not a kind of model: use {choices(KINDS, cfg.kind)}.")
    if cfg.dtype != "auto" and cfg.dtype not in DTYPES:
        raise GatingError(f"model.dtype={cfg.dtype!r} is not a precision: use {choices(('auto', *DTYPES), cfg.dtype)}.")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", cfg.device):
        raise GatingError(f"model.device={cfg.device!r} is not a device: use auto, cpu, cuda or cuda:N.")
    for key in ("max_new_tokens", "batch_rows"):
        if getattr(cfg, key) < 1:
            raise GatingError(f"model.{key}={getattr(cfg, key)}: use a whole number of at least 1.")
    if cfg.kind == "hf" and not cfg.id:
        raise GatingError("model.id has no value: say which model, model.id=org/name (on the hub) or model.id=/path.")
    if cfg.kind == "gguf" and not cfg.gguf_file:
        raise GatingError("model.gguf_file has no value: give a GGUF file's path, or its name inside model.id.")
    if cfg.kind == "tiny" and cfg.architecture not in tiny.ARCHITECTURES:
        allowed = choices(tiny.ARCHITECTURES, cfg.architecture)
        raise GatingError(f"model.architecture={cfg.architecture!r} has no tiny model: use {allowed}.")
    if cfg.adapter:
        adapters.folder(cfg.adapter)


def device_type(cfg: ModelConfig) -> str:
    """`cpu` or `cuda`, whether or not the device is there."""
    if cfg.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return cfg.device.partition(":")[0]


def dtype_name(cfg: ModelConfig) -> str:
    """The precision that the model will run in. Never float16 unless asked for: activations overflow it."""
    if cfg.dtype != "auto":
        return cfg.dtype
    return "bfloat16" if cfg.kind in ("hf", "gguf") and device_type(cfg) == "cuda" else "float32"


def architecture(cfg: ModelConfig) -> dict[str, int]:
    """Sizes of the model by name (see Architecture): as configured, else from its own config.json or GGUF header.

    Raises GatingError where neither can be had.
    """
    check(cfg)
    if cfg.kind == "tiny":
        return tiny.sizes(str(cfg.architecture))
    stated = {k: v for k, v in asdict(cfg.arch).items() if v is not None}
    local = cfg.kind == "hf" and hub.is_folder(str(cfg.id))
    if len(stated) == len(asdict(cfg.arch)) and not local:
        return stated
    if cfg.kind == "gguf":
        return hub.gguf_sizes(hub.gguf_path(cfg.id, str(cfg.gguf_file), cfg.revision))
    if cfg.kind == "embedded":
        return dict(embedded.SIZES)
    folder, _ = hub.find(str(cfg.id), cfg.revision, weights=False)
    return {**hub.config_sizes(folder), **({} if local else stated)}


def identity(cfg: ModelConfig) -> dict[str, Any]:
    """What determines the weights, computed without loading them; part of a run's key."""
    check(cfg)
    out: dict[str, Any] = {k: getattr(cfg, k) for k in WEIGHTS}
    if cfg.adapter:
        out["adapter"] = adapters.digest(cfg.adapter)
    if cfg.kind == "embedded":
        out["id"] = embedded.GGUF_SHA256
    elif cfg.kind == "tiny":
        out["id"] = tiny.VERSION
    elif cfg.kind == "gguf":
        out |= {"id": None, "gguf_file": embedded.sha256(hub.gguf_path(cfg.id, str(cfg.gguf_file), cfg.revision))}
    elif hub.is_folder(str(cfg.id)):
        out["id"] = hub.folder_digest(Path(str(cfg.id)).expanduser())
    return out


def tokenizer_only(cfg: ModelConfig) -> PreTrainedTokenizerBase | None:
    """The tokenizer, or None where it is not on this machine."""
    check(cfg)
    if cfg.kind == "tiny":
        return ready(tiny.tokenizer(str(cfg.architecture)))
    try:
        if cfg.kind == "gguf":
            path = hub.gguf_path(cfg.id, str(cfg.gguf_file), cfg.revision, offline=True)
            return ready(AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name))
        folder = embedded.cached() if cfg.kind == "embedded" else hub.find(str(cfg.id), cfg.revision, True, False)[0]
        return ready(AutoTokenizer.from_pretrained(folder, local_files_only=True)) if folder else None
    except (GatingError, OSError, ValueError):
        return None


def training_prompts(cfg: ModelConfig) -> list[str]:
    """Texts that the model's adapter was trained on, where its recipe names them: a test on these is no test."""
    return adapters.training_prompts(cfg.adapter) if cfg.adapter else []


# ---------------------------------------------------------------------------------------------------- with weights
def load(cfg: ModelConfig) -> Loaded:
    """The model, loaded once a process (the last one is kept). Raises GatingError where it cannot be had."""
    check(cfg)
    key = json.dumps([getattr(cfg, k) for k in (*WEIGHTS, "name", "device", "dtype")])
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = _load(cfg)
    return _loaded[key]


def forget() -> None:
    """Drop the model that is kept: after it was changed in place, or to free its memory."""
    _loaded.clear()


def _load(cfg: ModelConfig) -> Loaded:
    device, dtype = _device(cfg), DTYPES[dtype_name(cfg)]
    disable_progress_bar()  # transformers' own bars, one for every few hundred tensors
    revision = None
    model: Any
    tokenizer: PreTrainedTokenizerBase
    if cfg.kind == "tiny":
        model, tokenizer = tiny.model(str(cfg.architecture)), tiny.tokenizer(str(cfg.architecture))
        model = model.to(dtype=dtype)
    elif cfg.kind == "gguf":
        path = hub.gguf_path(cfg.id, str(cfg.gguf_file), cfg.revision)
        model, tokenizer = embedded.dequantise(path, dtype)
    else:
        folder, revision = (embedded.folder(), None) if cfg.kind == "embedded" else hub.find(str(cfg.id), cfg.revision)
        model, tokenizer = _from_folder(folder, dtype)
    n_layers, hidden = shape(cfg, model)
    mark = modules.fingerprint(model, adapters.digest(cfg.adapter) if cfg.adapter else "")
    if cfg.adapter:
        model = adapters.merge(model, cfg.adapter)
    model = model.to(device).eval().requires_grad_(False)
    return Loaded(model, ready(tokenizer), mark, revision, device, dtype, n_layers, hidden, cfg.name)


def shape(cfg: ModelConfig, model: PreTrainedModel) -> tuple[int, int]:
    """Blocks and width. Raises GatingError where model.arch says otherwise."""
    n_layers, hidden = len(modules.at(model, modules.decoder_layers(model))), model.config.get_text_config().hidden_size
    if cfg.arch.layers not in (None, n_layers) or cfg.arch.hidden not in (None, hidden):
        raise GatingError(
            f"model.arch says {cfg.arch.layers} blocks of width {cfg.arch.hidden}, but {cfg.id or cfg.name} has "
            f"{n_layers} of width {hidden}; for another model than the one described use model=hf model.id=..."
        )
    return n_layers, hidden


def _from_folder(folder: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, local_files_only=True, attn_implementation=attention_kernel(config)
        )
        return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as e:  # a damaged folder shows itself in a dozen ways, all with one remedy
        raise GatingError(
            f"model.id: {folder} could not be loaded as a chat model ({type(e).__name__}: {hub.first_line(e)}); it "
            "needs config.json, safetensors weights and a tokenizer that belong together. Download it again, or give "
            "another folder."
        ) from e


def attention_kernel(config: Any) -> str | None:
    """Gemma 2 caps its attention scores, which only the eager kernel does; for others transformers chooses."""
    return "eager" if config.model_type == "gemma2" else None


def ready(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Padding on the left, with a token for it."""
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _device(cfg: ModelConfig) -> torch.device:
    kind = device_type(cfg)
    index = int(cfg.device.partition(":")[2] or 0)
    if kind == "cuda" and index >= torch.cuda.device_count():
        raise GatingError(
            f"model.device={cfg.device}: this machine has {torch.cuda.device_count()} CUDA devices that torch "
            f"{torch.__version__} can use; say model.device=auto or cpu."
        )
    return torch.device(kind, index) if kind == "cuda" else torch.device(kind)
