"""A model's configuration (the model group of conf/): what it is, where it runs, and what steering takes by default."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Setting = Any  # a value, or a list of values to sweep: OmegaConf's unions hold no lists


@dataclass
class SteerDefaults:
    """What steer.* takes where a steer file refers to the model: chosen for this model, on the select split."""

    layers: Setting = "0.55"  # a block, a relative depth, a range, a set
    coef: Setting = 1.0  # strength, in units of `norm`
    norm: Setting = "natural"  # natural, unit, residual, or a direction's name
    read: Setting = "same"  # same block as written, or previous (the paper's convention)


@dataclass
class Sites:
    """Where the paper's experiments act on this model (blocks, or relative depths), how strongly, and in which norm.

    The defaults are the depths of the paper's blocks in Qwen2.5-7B (18, 20, 14, 22, 24 of 28; arXiv 2606.26161).
    """

    before: Setting = "0.643"  # a block before the persona's: a knock-out there can remove nothing that was injected
    persona: Setting = "0.715"  # where the persona direction is added
    persona_read: Setting = "0.715"  # the block whose output it is read at
    persona_before: Setting = "0.286"  # an early injection, so that the early refusal block comes after it
    early: Setting = "0.5"  # where the refusal direction is added before the persona
    late: Setting = "0.786"  # after the persona: refusal back in, persona knocked out
    after: Setting = "0.786-0.99"  # every block from `late` on: where what the persona moved may act
    last: Setting = "0.858"  # the latest of these
    window: Setting = "0.75-0.9"  # a window of late blocks to knock the persona out of
    refusal_read: Setting = "0.5"  # the block whose output the refusal direction is read at
    norm: str = "compliant"  # the direction whose norm, at persona_read, coefficients count in
    persona_coef: float = 1.0  # strength of the persona direction, in that norm
    refusal_coef: float = 1.0  # strength of the refusal direction, in that norm
    chosen: str | None = None  # on what they were chosen; null: they were not, for this model
    # dose of the refusal direction as a fraction of the residual's median norm, where that is matched
    relative: float = 0.2


@dataclass
class Architecture:
    """Sizes that a dry run needs where no weights are. Null: read from the model's own files."""

    layers: int | None = None  # decoder blocks
    hidden: int | None = None  # width of the residual stream
    parameters: int | None = None  # weights in all, tied ones once
    kv_heads: int | None = None  # key-value heads a block
    head_dim: int | None = None  # width of a head
    vocab: int | None = None  # rows of the output matrix
    context: int | None = None  # tokens of a prompt and its answer together, at most


@dataclass
class ModelConfig:
    """One model: what it is, in which precision and where it runs, and what steering takes by default."""

    name: str = "hf"  # short name, for folders and tables
    kind: str = "hf"  # hf (hub id or folder), gguf, embedded, tiny, planted, or given (in memory)
    id: str | None = None  # hub id org/name, or the path of a folder
    revision: str | None = None  # branch, tag or commit on the hub; null is the main branch
    gguf_file: str | None = None  # kind=gguf: a file inside `id`, or its path
    architecture: str | None = None  # kind=tiny: llama, qwen2 or gemma2; planted: gated, minus, ...
    remote: str | None = None  # the hub id under which an NDIF server serves it; null is `id`
    adapter: str | None = None  # a LoRA adapter to merge: a shipped name or a peft folder's path
    dtype: str = "auto"  # auto, float32, bfloat16 or float16; auto is bfloat16 on CUDA for hf and gguf, else float32
    device: str = "auto"  # auto (CUDA where there is one), cpu, cuda, cuda:1, ...
    device_map: str | None = (
        None  # auto, balanced, sequential: spread a model over devices (accelerate); null: one device
    )
    quantization: str | None = None  # 8bit or 4bit: weights rounded at load (bitsandbytes); null is none
    # true runs Python files that come with a model, with your rights: read them first
    trust_remote_code: bool = False
    # what the chat template is told beside the messages, such as {enable_thinking: false}
    template: dict[str, Any] = field(default_factory=dict)
    system: str | None = None  # system message of every chat; null leaves it to the model's template
    max_new_tokens: int = 48  # tokens of an answer, at most
    batch_rows: int = 64  # rows (prompt x condition) a batch
    first_token_openings: list[str] = field(default_factory=lambda: ["I", "Sorry", "As"])  # how its refusals begin
    steer: SteerDefaults = field(default_factory=SteerDefaults)
    sites: Sites = field(default_factory=Sites)
    arch: Architecture = field(default_factory=Architecture)


# The fields that determine the weights, in the order in which they stand in a run's key.
WEIGHTS = ("kind", "id", "revision", "gguf_file", "architecture", "adapter")
