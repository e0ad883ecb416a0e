"""The arithmetic of a plan, by hand."""

import torch

from gating import ops

PROMPT = torch.tensor([[0, 1, 1], [1, 1, 1]])  # row 0 has one pad
LAST = torch.tensor([[0, 0, 1], [0, 0, 1]])


def edit(op, scope, vectors, coefs):
    return [(op, scope, torch.tensor(vectors), torch.tensor(coefs))]


def apply(h, edits, step=0):
    return ops.apply_edits(h, edits, step, PROMPT, LAST)


def test_add_moves_every_row_by_its_own_vector_and_never_a_pad():
    h = torch.zeros(2, 3, 2)
    out = apply(h, edit("add", "all", [[1.0, 2.0], [3.0, 4.0]], [2.0, -1.0]))
    assert out.tolist() == [[[0, 0], [2, 4], [2, 4]], [[-3, -4], [-3, -4], [-3, -4]]]


def test_ablate_removes_the_projection_and_nothing_else():
    h = torch.tensor([[[9.0, 9.0], [3.0, 4.0], [5.0, -1.0]]]).expand(2, 3, 2).clone()
    out = apply(h, edit("ablate", "all", [[0.6, 0.8], [0.6, 0.8]], [1.0, 0.0]))
    assert torch.allclose(out[0, 1], torch.tensor([0.0, 0.0]), atol=1e-6)  # (3, 4) is 5 times the unit vector
    assert torch.allclose(out[0, 2], torch.tensor([5 - 2.2 * 0.6, -1 - 2.2 * 0.8]), atol=1e-6)
    assert torch.equal(out[0, 0], h[0, 0])  # the pad


def test_a_coefficient_of_zero_is_bit_identical_in_every_dtype():
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        h = torch.randn(2, 3, 8).to(dtype) * 37
        for op in ("add", "ablate"):
            out = apply(h, [(op, "all", torch.randn(2, 8), torch.zeros(2))])
            assert torch.equal(out, h) and out.dtype == dtype


def test_each_scope_touches_its_own_tokens_at_each_step():
    touched = {}
    for scope in ("all", "prompt", "generated", "last", "response"):
        edits = edit("add", scope, [[1.0], [1.0]], [1.0, 1.0])
        first = apply(torch.zeros(2, 3, 1), edits)[:, :, 0].tolist()
        later = apply(torch.zeros(2, 1, 1), edits, step=1)[:, 0, 0].tolist()
        touched[scope] = (first, later)
    prompt, last, none = [[0, 1, 1], [1, 1, 1]], [[0, 0, 1], [0, 0, 1]], [[0, 0, 0], [0, 0, 0]]
    assert touched == {
        "all": (prompt, [1, 1]),
        "prompt": (prompt, [0, 0]),
        "generated": (none, [1, 1]),
        "last": (last, [0, 0]),
        "response": (last, [1, 1]),
    }


def test_edits_of_one_block_apply_in_order():
    add = edit("add", "all", [[1.0, 0.0], [1.0, 0.0]], [5.0, 5.0])
    ablate = edit("ablate", "all", [[1.0, 0.0], [1.0, 0.0]], [1.0, 1.0])
    h = torch.ones(2, 3, 2)
    assert apply(h, add + ablate)[1, 0].tolist() == [0, 1]
    assert apply(h, ablate + add)[1, 0].tolist() == [5, 1]


def test_log_odds_is_the_log_of_p_over_one_minus_p():
    logits = torch.log(torch.tensor([[0.2, 0.3, 0.5]]))
    assert torch.allclose(ops.log_odds(logits, torch.tensor([0, 1])), torch.log(torch.tensor([1.0])), atol=1e-6)
    assert torch.allclose(ops.log_odds(logits, torch.tensor([0])), torch.log(torch.tensor([0.25])), atol=1e-6)


def test_mean_nll_averages_over_the_scored_tokens_only():
    logits = torch.log(torch.tensor([[[0.5, 0.5], [0.9, 0.1], [0.25, 0.75]]]))
    targets, mask = torch.tensor([[0, 0, 1]]), torch.tensor([[False, True, True]])
    expected = -(torch.log(torch.tensor(0.9)) + torch.log(torch.tensor(0.75))) / 2
    assert torch.allclose(ops.mean_nll(logits, targets, mask), expected)
    assert torch.isnan(ops.mean_nll(logits, targets, torch.zeros_like(mask))).all()


def test_pool_reads_one_token_exactly_and_averages_a_span():
    h = torch.randn(1, 4, 3)
    weights = torch.tensor([[[0.0, 0, 0, 1], [0, 0.5, 0.5, 0]]])
    out = ops.pool(h, weights)
    assert torch.equal(out[0, 0], h[0, 3])
    assert torch.allclose(out[0, 1], h[0, 1:3].mean(0))
