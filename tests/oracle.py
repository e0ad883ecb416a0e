"""What a condition must do, written the long way: plain torch hooks, one row, no padding, no cache, no plan."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from gating.steering.interventions import Condition
from gating.steering.vectors import measured, vector


def positions(scope: str, prompt: int, total: int) -> list[int]:
    """Which of `total` positions a scope names, for a prompt of `prompt` tokens."""
    return {
        "all": list(range(total)),
        "prompt": list(range(prompt)),
        "generated": list(range(prompt, total)),
        "last": [prompt - 1],
        "response": list(range(prompt - 1, total)),
    }[scope]


def edited(h, iv, w, u, target):
    """One token's state after one intervention, by the definition: w is written, u measured (both [k, hidden])."""
    if iv.op == "add":
        return h + iv.coef * w[0]
    p = [torch.dot(h, each) for each in u]
    if iv.op == "ablate":
        for each, value in zip(w, p, strict=True):
            h = h - iv.coef * value * each
        return h
    if iv.op == "rotate":
        across = u[0] - torch.dot(u[0], h) / h.norm() ** 2 * h
        angle = min(math.radians(iv.coef), float(torch.arccos(p[0] / h.norm())))
        return math.cos(angle) * h + math.sin(angle) * h.norm() * across / across.norm()
    gap = target - float(p[0])
    gap = min(gap, 0) if iv.op == "cap" else max(gap, 0) if iv.op == "floor" else gap
    return h + gap * w[0]


def greedy(
    model, layers, ids: Sequence[int], condition: Condition, made, seed: int, n: int, end: set[int]
) -> list[int]:
    """Greedy tokens of one row under one condition, with the whole sequence computed afresh at every step."""
    tokens = list(ids)
    for _ in range(n):
        handles = []
        for i, iv in enumerate(condition.interventions):
            for block in iv.layers:
                where = positions(iv.scope, len(ids), len(tokens))

                def hook(module, args, output, i=i, iv=iv, block=block, where=where):
                    out = output.clone()
                    if iv.gate:
                        g = made["vector"].sel(direction=iv.gate, layer=block).values.astype("float64")
                        low, high = (
                            float(made[f"projection_{s}"].sel(direction=iv.gate, layer=block))
                            for s in ("negative", "positive")
                        )
                        read = torch.dot(output[0, len(ids) - 1], torch.from_numpy(g / np.linalg.norm(g)).float())
                        if read <= low + iv.threshold * (high - low):
                            return out
                    if iv.op == "remove":
                        (earlier,) = (e for e in condition.interventions[:i] if e.op == "add")
                        gone = earlier.coef * vector(earlier, earlier.layers[0], made, seed)[0]
                        for t in where:
                            out[0, t] = output[0, t] - iv.coef * torch.from_numpy(gone).float()
                        return out
                    w = torch.from_numpy(vector(iv, block, made, seed)).float()
                    u = None if iv.op == "add" else torch.from_numpy(measured(iv, block, made, seed)).float()
                    target = None
                    if iv.op in ("clamp", "cap", "floor"):
                        low, high = (
                            float(made[f"projection_{s}"].sel(direction=iv.direction, layer=block))
                            for s in ("negative", "positive")
                        )
                        target = low + iv.coef * (high - low)
                    for t in where:
                        out[0, t] = edited(output[0, t], iv, w, u, target)
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
