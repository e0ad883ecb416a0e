"""A loaded model's parts by name: its decoder blocks, last norm and unembedding; and the fingerprint of the whole."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, TypedDict

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from gating.errors import GatingError

# Parts of a model that are not its text decoder, by what stands in their paths.
OTHERS = re.compile(r"vision|visual|image|audio|encoder|(^|\.)\d+\.")
# What a family does to the unembedding's output before it calls it logits, by the entry of its configuration: that
# entry, to a power, multiplies it. Granite divides, HyperCLOVA X multiplies by an entry of the same name.
LOGIT_SCALES = {"logits_scaling": -1, "logit_scale": 1, "lm_head_multiplier": 1, "logits_mup_width_multiplier": -1}
MULTIPLIES = ("hyperclovax",)
LOGIT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


class Head(TypedDict):
    """How logits come of the unembedding's output x: cap * tanh(scale * x / cap), or scale * x where cap is 0."""

    scale: float
    cap: float


def decoder_layers(model: torch.nn.Module) -> str:
    """The path of the list of decoder blocks, such as `model.layers`: the one list of as many modules as the
    configuration has layers. Raises GatingError naming the architecture."""
    config = getattr(model, "config", None)
    n = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None) if config is not None else None
    lists = ((path, m) for path, m in model.named_modules() if isinstance(m, torch.nn.ModuleList))
    paths = [path for path, m in lists if len(m) == n and not OTHERS.search(path)]
    if len(paths) != 1:
        found = f"{len(paths)} ({', '.join(paths)})" if paths else "none"
        raise GatingError(
            f"model.id: a {type(model).__name__} should have one list of {n} decoder blocks, and {found} was found, so "
            "it cannot be steered; use a decoder-only chat model."
        )
    return paths[0]


def final_modules(model: PreTrainedModel) -> tuple[str, str]:
    """The paths of the norm behind the last block, and of the unembedding. Raises GatingError naming the family."""
    blocks = decoder_layers(model)
    parent = blocks.rpartition(".")[0]
    children = model.get_submodule(parent).named_children()
    beside = {f"{parent}.{name}".lstrip("."): type(m).__name__.lower() for name, m in children}
    named = [path for path, kind in beside.items() if path == blocks or "norm" in kind]
    norms = named[named.index(blocks) + 1 :] or named[: named.index(blocks)]  # most families name it behind the blocks
    if len(norms) != 1:
        raise no_lens(model, f"{len(norms)} norms stand beside its blocks")
    head = unembedding(model)
    return norms[0], next(name for name, module in model.named_modules() if module is head)


def no_lens(model: PreTrainedModel, reason: str) -> GatingError:
    return GatingError(
        f"readouts.lens=true: the logit lens is not known for the family {model.config.model_type} "
        f"({type(model).__name__}): {reason}. Say readouts.lens=false; all else can be read."
    )


def head_of(config: PreTrainedConfig) -> Head:
    """What stands between the unembedding and the logits, by the model's configuration."""
    text = config.get_text_config(decoder=True)
    scale = 1.0
    for entry, power in LOGIT_SCALES.items():
        value = getattr(text, entry, None)
        if isinstance(value, int | float) and value > 0:
            scale *= value ** (1 if text.model_type.startswith(MULTIPLIES) else power)
    cap = next((value for entry in LOGIT_CAPS if (value := getattr(text, entry, None))), 0)
    return {"scale": scale, "cap": float(cap)}


def decoder_blocks(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The decoder blocks. Raises GatingError naming the architecture."""
    blocks = model.get_submodule(decoder_layers(model))
    assert isinstance(blocks, torch.nn.ModuleList)
    return blocks


def unembedding(model: PreTrainedModel) -> torch.nn.Module:
    """The module that gives logits from final hidden states. Raises GatingError where there is none."""
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Module):
        raise GatingError(f"model.id: a {type(model).__name__} has no unembedding; use a decoder-only chat model.")
    return head


def pack_unembedding(model: PreTrainedModel) -> None:
    """The unembedding gets what it is given in one piece: of a slice, as the last token of every row, torch multiplies
    row by row, at a tenth of the speed on a CPU."""
    unembedding(model).register_forward_pre_hook(_packed)


def _packed(module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.contiguous() if isinstance(x, torch.Tensor) else x for x in args)


def move(model: torch.nn.Module, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
    """Move or cast a model in place (the `to` of transformers' models has no type that a checker follows)."""
    model.to(device=device, dtype=dtype)


def fingerprint(model: PreTrainedModel, extra: str = "") -> str:
    """16 hex digits that change with the configuration, any weight's name, shape or sampled values, and `extra`.

    64 evenly spaced values a weight are read, so that it is quick; it tells models apart and is no proof against
    tampering. It is taken before an adapter is merged, because a sum's last bit may differ between machines.
    """
    volatile = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
    config = {k: v for k, v in model.config.to_dict().items() if k not in volatile}
    h = hashlib.sha256(json.dumps([config, extra], sort_keys=True, default=str).encode())
    for name, weight in sorted(model.state_dict().items()):
        flat = weight.reshape(-1)
        sample = flat[:: max(1, flat.numel() // 64)][:64].to("cpu", torch.float32)
        h.update(f"{name}{tuple(weight.shape)}".encode() + sample.numpy().tobytes())
    return h.hexdigest()[:16]
