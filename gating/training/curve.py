"""The losses of a training, step by step: losses.json beside the adapter."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

FILE = "losses.json"


@dataclass
class Curve:
    """One entry a step: its number, the learning rate, and each term of the loss that the batch had rows for: the mean
    over them without its weight, nats/token.

    Where it was measured, an entry has `select teach` and `select keep` too: the same of prompts that are not trained.
    """

    steps: list[dict[str, float]] = field(default_factory=list)

    def text(self, key: str, adapter: str) -> str:
        """The file. key: of what decided the weights; adapter: digest of the weights that came of it."""
        lines = ",\n".join("  " + json.dumps(step) for step in self.steps)
        return f'{{\n "key": {json.dumps(key)},\n "adapter": {json.dumps(adapter)},\n "steps": [\n{lines}\n ]\n}}\n'
