"""A loaded model's parts by name: its decoder blocks, last norm and unembedding; and the fingerprint of the whole."""

from __future__ import annotations

import hashlib
import json

import torch
from transformers import PreTrainedModel

from gating.errors import GatingError, choices

LAYERS_AT = ("model.layers", "model.language_model.layers", "transformer.h", "gpt_neox.layers")


def decoder_layers(model: torch.nn.Module) -> str:
    """The path of the list of decoder blocks, such as `model.layers`. Raises GatingError naming the architecture."""
    path = next((p for p in LAYERS_AT if has(model, p, torch.nn.ModuleList)), None)
    if path is None:
        raise GatingError(
            f"model.id: in a {type(model).__name__} the decoder blocks are at none of {choices(LAYERS_AT)}, so it "
            "cannot be steered yet; use a decoder-only chat model."
        )
    return path


def final_modules(model: PreTrainedModel) -> tuple[str, str]:
    """The paths of the norm behind the last block, and of the unembedding."""
    parent = decoder_layers(model).rpartition(".")[0]
    norms = (f"{parent}.{name}" for name in ("norm", "ln_f", "final_layer_norm"))
    head = unembedding(model)
    return (
        next(path for path in norms if has(model, path)),
        next(name for name, module in model.named_modules() if module is head),
    )


def decoder_blocks(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The decoder blocks. Raises GatingError naming the architecture."""
    blocks = model.get_submodule(decoder_layers(model))
    assert isinstance(blocks, torch.nn.ModuleList)
    return blocks


def has(model: torch.nn.Module, path: str, kind: type[torch.nn.Module] = torch.nn.Module) -> bool:
    """Whether a module of this kind stands at a dotted path."""
    try:
        return isinstance(model.get_submodule(path), kind)
    except AttributeError:
        return False


def unembedding(model: PreTrainedModel) -> torch.nn.Module:
    """The module that gives logits from final hidden states."""
    head = model.get_output_embeddings()
    assert isinstance(head, torch.nn.Module)
    return head


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
