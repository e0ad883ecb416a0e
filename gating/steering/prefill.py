"""Prompts that several rows of a batch hold go through the blocks below the first edit once, and not once a row."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import DynamicCache


class Apart(Exception):
    """A block is given something that is not by row: all rows have to be computed apart."""


def numbers(ids: torch.Tensor, mask: torch.Tensor) -> list[int]:
    """The number of each row's prompt."""
    return numbered([tuple(row) for row in torch.cat([ids, mask], dim=1).tolist()])


def numbered(keys: Sequence[Hashable]) -> list[int]:
    """The number of each key, counted in the order in which they come first."""
    known = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return [known[key] for key in keys]


def firsts(of: Sequence[int]) -> list[int]:
    """The first row of each number."""
    return [of.index(i) for i in range(max(of) + 1)]


def fits(asked: dict[str, Any], blocks: torch.nn.ModuleList, prompts: int) -> bool:
    """Whether each block keeps what it needs in a layer of the cache of its own, and what is by row can be told from
    what is by token."""
    rows, width = asked["input_ids"].shape
    cache = asked["past_key_values"]
    return prompts < rows and prompts != width and isinstance(cache, DynamicCache) and len(cache.layers) == len(blocks)


def once(model: Any, asked: dict[str, Any], blocks: torch.nn.ModuleList, shared: int, of: torch.Tensor) -> Any:
    """The model's output for all rows of `asked`, of which the first `shared` blocks see each prompt once. of: the
    number of each row's prompt. The cache ends as it would have without this. Raises Apart."""
    first = torch.tensor(firsts(of.tolist()), device=of.device)
    narrow = {k: x[first.to(x.device)] if isinstance(x, torch.Tensor) else x for k, x in asked.items()}
    with _widened(blocks[shared:], len(first), of):
        out = model(**narrow, return_dict=True)
    for layer in asked["past_key_values"].layers[:shared]:
        layer.reorder_cache(of)
    return out


@contextmanager
def _widened(blocks: Any, prompts: int, of: torch.Tensor) -> Iterator[None]:
    """Whatever these blocks are given for each prompt, they get for each row while this is entered."""

    def widen(x: Any) -> Any:
        if isinstance(x, torch.Tensor) and x.ndim > 1:
            if len(x) not in (1, prompts):
                raise Apart
            return x[of.to(x.device)] if len(x) == prompts else x
        if isinstance(x, tuple | list):
            return type(x)(widen(each) for each in x)
        return {k: widen(each) for k, each in x.items()} if isinstance(x, dict) else x

    def hook(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not args:
            raise Apart
        h, *rest = args
        return (h if len(h) == len(of) else widen(h), *widen(rest)), widen(kwargs)

    handles = [block.register_forward_pre_hook(hook, with_kwargs=True) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
