"""What a condition must do, written the long way: plain torch hooks, one row, no padding, no cache, no plan."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gating.interventions import Condition, vector


def positions(scope: str, prompt: int, total: int) -> list[int]:
    """Which of `total` positions a scope names, for a prompt of `prompt` tokens."""
    return {
        "all": list(range(total)),
        "prompt": list(range(prompt)),
        "generated": list(range(prompt, total)),
        "last": [prompt - 1],
        "response": list(range(prompt - 1, total)),
    }[scope]


def greedy(
    model, layers, ids: Sequence[int], condition: Condition, made, seed: int, n: int, end: set[int]
) -> list[int]:
    """Greedy tokens of one row under one condition, with the whole sequence computed afresh at every step."""
    tokens = list(ids)
    for _ in range(n):
        handles = []
        for iv in condition.interventions:
            for block in iv.layers:
                v = torch.from_numpy(vector(iv, block, made, made["residual_norm"], seed)).float()
                where = positions(iv.scope, len(ids), len(tokens))

                def hook(module, args, output, iv=iv, v=v, where=where):
                    out = output.clone()
                    for t in where:
                        h = output[0, t]
                        out[0, t] = h + iv.coef * v if iv.op == "add" else h - iv.coef * torch.dot(h, v) * v
                    return out

                handles.append(layers[block].register_forward_hook(hook))
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokens])).logits[0, -1]
        for handle in handles:
            handle.remove()
        token = int(logits.argmax())
        if token in end:
            break
        tokens.append(token)
    return tokens[len(ids) :]
