"""docs/scaling.md says what the models' sizes give."""

import re
from pathlib import Path

import pytest

from gating import models
from tests.bench import model_config

PAGE = Path(__file__).parent.parent / "docs/scaling.md"
H100, H200 = 3.35e12, 4.8e12  # bytes a second
ROW_TOKENS = 300


def sizes(name):
    """Bytes of the weights and of one token's cache, bfloat16."""
    arch = models.architecture(model_config(name))
    return 2 * arch["parameters"], 2 * 2 * arch["layers"] * arch["kv_heads"] * arch["head_dim"]


def step(name, rows, bandwidth):
    weights, token = sizes(name)
    return (weights + rows * ROW_TOKENS * token) / bandwidth


def cells(first):
    row = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


@pytest.mark.parametrize("name", ["qwen", "llama"])
def test_the_floor_of_a_step_follows_from_the_models_size(name):
    weights, token = sizes(name)
    fit = int((80e9 - weights) / (ROW_TOKENS * token))
    times = [" / ".join(f"{1e3 * step(name, rows, bandwidth):.1f}" for rows in (64, 256)) for bandwidth in (H100, H200)]
    assert cells(name) == [f"{weights / 1e9:.1f}", f"{token / 1e3:.1f}", f"{fit:,}", *times]


@pytest.mark.parametrize(("plan", "rows", "tokens"), [("grid", 64 * 313, 200), ("audit", 10**6, 48)])
def test_the_plans_follow_from_the_floor(plan, rows, tokens):
    minutes = rows * tokens / 256 * step("qwen", 256, H100) / 60
    floor = f"{minutes:.1f}" if minutes < 10 else f"{minutes:.0f}"
    new, one, eight, _ = cells(plan)
    assert new == f"{rows * tokens / 1e6:.1f} M" and one == f"{floor} / {10 * minutes:.0f} min"
    assert eight == f"{10 * minutes / 8:.0f} min"
    assert re.search(r"\*\*No figure on this page was measured on a\s+GPU\*\*", PAGE.read_text())
