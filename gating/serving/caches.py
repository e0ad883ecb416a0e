"""Caches of rows that are padded on the left: rows of two caches become one, rows leave, columns of pads go.

Each layer of a cache holds keys and values [row, head, token, dim]; the newest token stands last in every row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

Change = Callable[[torch.Tensor], torch.Tensor]


def empty() -> DynamicCache:
    """A cache whose layers keep every token. One made from a model's configuration drops those outside a sliding
    window, where pads would count; the attention mask keeps the window instead."""
    return DynamicCache()


def is_by_row(cache: Any, blocks: int, width: int) -> bool:
    """Whether what a model of so many blocks kept of `width` tokens is keys and values by row and token."""
    return len(cache.layers) == blocks and all(
        type(layer) is DynamicLayer and layer.get_seq_length() == width for layer in cache.layers
    )


def change(cache: Any, how: Change) -> None:
    """Apply `how` to the keys and values of every layer, in place."""
    for layer in cache.layers:
        layer.keys, layer.values = how(layer.keys), how(layer.values)


def padded(x: torch.Tensor, width: int, dim: int) -> torch.Tensor:
    """x with zeros before what stands along `dim`, up to `width`."""
    lacks = width - x.shape[dim]
    if not lacks:
        return x
    shape = list(x.shape)
    shape[dim] = lacks
    return torch.cat([x.new_zeros(shape), x], dim)


def join(cache: Any, other: Any, width: int) -> None:
    """The rows of `other` behind those of `cache`, both padded to `width` tokens."""
    for layer, more in zip(cache.layers, other.layers, strict=True):
        layer.keys, layer.values = (
            torch.cat([padded(a, width, 2), padded(b, width, 2)])
            for a, b in ((layer.keys, more.keys), (layer.values, more.values))
        )
