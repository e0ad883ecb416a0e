"""What is done to the residual stream while a model trains: plain forward hooks on its decoder blocks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch

Edit = Callable[[torch.Tensor], torch.Tensor]  # a block's output [row, token, hidden] -> what stands in its place


@contextlib.contextmanager
def edited(blocks: torch.nn.ModuleList, edits: Mapping[int, Edit]) -> Iterator[None]:
    """Inside it the output of each block b of `edits` is edits[b] of it. Gradients flow through.

    blocks: the decoder blocks (`parts.decoder_blocks`). Every token is edited, pads too, which nothing reads.
    """
    handles = [blocks[block].register_forward_hook(_hook(edit)) for block, edit in edits.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(edit: Edit) -> Callable[..., object]:
    def replaced(_module: torch.nn.Module, _inputs: object, output: object) -> object:
        if isinstance(output, tuple):  # some families give more than the residual stream
            return (edit(output[0]), *output[1:])
        assert isinstance(output, torch.Tensor)
        return edit(output)

    return replaced


def adds(vectors: torch.Tensor) -> Edit:
    """Add a vector to every token of a row. vectors: [row, hidden]."""
    return lambda x: x + vectors[:, None].to(x.dtype)


def projects_out(direction: torch.Tensor, rows: torch.Tensor) -> Edit:
    """Take the part along a direction [hidden] (any length) out of the rows that are marked: rows [row] bool."""
    unit = direction / direction.norm().clamp(min=1e-12)

    def edit(x: torch.Tensor) -> torch.Tensor:
        u = unit.to(x.dtype)
        return x - rows.to(x.dtype)[:, None, None] * (x @ u)[..., None] * u

    return edit
