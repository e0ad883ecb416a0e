"""The arithmetic of a plan, by hand."""

import torch

from gating.steering import ops

PROMPT = torch.tensor([[0, 1, 1], [1, 1, 1]])  # row 0 has one pad
LAST = torch.tensor([[0, 0, 1], [0, 0, 1]])


def edit(op, scope, vectors, coefs, target=(0.0, 0.0), write=None, gate=None, of=(-1, -1)):
    """vectors [row, hidden], or [row, k, hidden] for a subspace; what is written is what is measured unless `write`."""
    v = torch.as_tensor(vectors, dtype=torch.float32)
    v = v[:, None] if v.ndim == 2 else v
    w = v if write is None else torch.tensor(write)[:, None]
    return [{
        "op": op, "scope": scope, "write": w, "measure": None if op == "add" else v, "strength": torch.tensor(coefs),
        "target": torch.tensor(target)[:, None], "of": torch.tensor(of), "gate": gate,
    }]  # fmt: skip


def apply(h, edits, step=0, kept=None):
    plan = {
        "prompt_mask": PROMPT, "last_mask": LAST, "ids": PROMPT, "kept": {} if kept is None else kept,
    }  # fmt: skip
    return ops.apply_edits(h, edits, step, plan, 0)


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


def test_ablate_leads_to_a_reference_and_leaves_a_row_that_is_there_already():
    h = torch.tensor([[[9.0, 9.0], [3.0, 4.0], [5.0, -1.0]]]).expand(2, 3, 2).clone()
    out = apply(h, edit("ablate", "all", [[1.0, 0.0], [1.0, 0.0]], [1.0, 1.0], target=(2.0, 3.0)))
    assert out[0].tolist() == [[9, 9], [2, 4], [2, -1]] and out[1, 1].tolist() == [3, 4]


def test_own_is_the_reference_rows_projection_token_by_token_then_its_mean():
    h = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [4.0, 0.0]], [[1.0, 0.0], [7.0, 0.0], [8.0, 0.0]]])
    full = torch.ones(2, 3, dtype=torch.long)
    edits = edit("ablate", "all", [[1.0, 0.0]] * 2, [1.0, 1.0], of=(0, 0))
    plan = {"prompt_mask": full, "last_mask": LAST, "kept": {}, "ids": torch.tensor([[1, 2, 3], [9, 2, 3]])}
    out = ops.apply_edits(h, edits, 0, plan, 0)
    assert torch.equal(out[0], h[0])  # the unsteered row itself
    assert out[1, :, 0].tolist() == [3.0, 2.0, 4.0]  # where the texts differ, the mean of all but the first token
    later = ops.apply_edits(torch.full((2, 1, 2), 9.0), edits, 1, plan, 0)
    assert later[:, 0].tolist() == [[3.0, 9.0], [3.0, 9.0]]


def test_scale_multiplies_the_projection_and_leaves_the_rest():
    h = torch.tensor([[[9.0, 9.0], [3.0, 4.0], [5.0, 0.0]]]).expand(2, 3, 2).clone()
    out = apply(h, edit("scale", "all", [[1.0, 0.0], [1.0, 0.0]], [2.0 - 1, 0.0 - 1]))  # strength is factor - 1
    assert out[0].tolist() == [[9, 9], [6, 4], [10, 0]] and out[1].tolist() == [[0, 9], [0, 4], [0, 0]]


def test_a_coefficient_of_zero_is_bit_identical_in_every_dtype():
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        h = torch.randn(2, 3, 8).to(dtype) * 37
        for op in ("add", "ablate", "clamp", "cap", "floor", "rotate"):
            out = apply(h, edit(op, "all", torch.randn(2, 8), [0.0, 0.0], target=(5.0, -5.0)))
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


E = [[1.0, 0.0], [1.0, 0.0]]


def test_clamp_cap_and_floor_lead_the_projection_to_a_target_or_bound_it():
    h = torch.tensor([[9.0, 9.0], [-2.0, 7.0], [3.0, 7.0]]).expand(2, 3, 2).clone()
    for op, expected in (("clamp", [1, 1]), ("cap", [-2, 1]), ("floor", [1, 3])):
        out = apply(h, edit(op, "all", E, [1.0, 1.0], target=(1.0, 1.0)))
        assert out[0, 1:, 0].tolist() == expected and out[0, 1:, 1].tolist() == [7, 7]
        assert out[0, 0].tolist() == [9, 9]  # the pad


def test_a_rotation_keeps_the_norm_and_turns_by_its_angle_but_never_past_the_direction():
    h = torch.tensor([[0.0, 5.0]] * 3).expand(2, 3, 2).clone()
    out = apply(h, edit("rotate", "all", E, [30.0, 120.0]))
    assert torch.allclose(out[0, 1], torch.tensor([2.5, 5 * 3**0.5 / 2]), atol=1e-5)
    assert torch.allclose(out[1, 1], torch.tensor([5.0, 0.0]), atol=1e-5)
    away = apply(h, edit("rotate", "all", E, [-30.0, 0.0]))
    assert torch.allclose(away[0, 1], torch.tensor([-2.5, 5 * 3**0.5 / 2]), atol=1e-5)


def test_ablating_a_subspace_removes_all_of_it_and_a_shorter_rows_padding_does_nothing():
    h = torch.tensor([[3.0, 4.0, 5.0]] * 3).expand(2, 3, 3).clone()
    both = [[[1.0, 0, 0], [0, 1.0, 0]], [[0, 0, 1.0], [0, 0, 0]]]
    out = apply(h, edit("ablate", "all", both, [1.0, 1.0]))
    assert out[0, 1].tolist() == [0, 0, 5] and out[1, 1].tolist() == [3, 4, 0]


def test_a_random_control_of_an_ablation_takes_out_exactly_as_much_elsewhere():
    h = torch.tensor([[3.0, 4.0]] * 3).expand(2, 3, 2).clone()
    out = apply(h, edit("ablate", "all", E, [1.0, 1.0], write=[[0.0, 1.0], [0.6, 0.8]]))
    assert out[0, 1].tolist() == [3, 1] and torch.allclose(out[1, 1], torch.tensor([3 - 1.8, 4 - 2.4]))


def test_a_gate_is_decided_by_the_last_prompt_token_and_holds_for_the_whole_answer():
    gate = (torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([1.0, 1.0]))
    h = torch.zeros(2, 3, 2)
    h[0, 2, 1] = 2.0  # only row 0's last prompt token lies above the threshold
    held = {}
    out = apply(h, edit("add", "all", E, [1.0, 1.0], gate=gate), kept=held)
    assert out[0, 1].tolist() == [1, 0] and out[1].abs().sum() == 0
    later = apply(torch.zeros(2, 1, 2), edit("add", "all", E, [1.0, 1.0], gate=gate), step=1, kept=held)
    assert later[:, 0, 0].tolist() == [1, 0]


def test_kl_is_the_reference_rows_divergence_and_zero_to_itself():
    p, q = torch.tensor([0.2, 0.8]), torch.tensor([0.5, 0.5])
    out = ops.kl_to(torch.log(torch.stack([p, q])), torch.tensor([0, 0]))
    assert out[0] == 0 and torch.allclose(out[1], (p * (p / q).log()).sum())


def test_relative_change_is_of_the_last_token_alone():
    before, after = torch.ones(1, 2, 4), torch.ones(1, 2, 4)
    after[0, 0] += 9
    after[0, 1, 0] += 1
    assert torch.allclose(ops.read_relative_change({"before": before, "last": after[:, -1]}), torch.tensor([0.5]))


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
