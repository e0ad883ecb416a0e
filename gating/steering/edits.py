"""Edits: what an intervention does to the residual stream of a batch. Imports torch only: it travels to servers.

Rows of different conditions share one forward pass. An edit on a row with strength 0 adds an exact zero, which leaves
that row bit-identical to no intervention. A new row of OPERATIONS is a new operation; it holds plain values and named
functions of this module only, so that it travels.

An edit is a mapping of plain tensors:
    op          a name in OPERATIONS
    scope       all, prompt, generated, last or response
    write       [row, k, hidden]: what is written; k is 1 but for the ablation of a subspace
    measure     [row, k, hidden]: unit vectors whose projections decide how much is written, or None
    strength    [row]: 0 for a row that has no such edit
    target      [row, k]: the projections that clamp, cap, floor and ablate lead to
    of          [row]: the row of the same prompt that gives the target instead (see `targets`), -1 for none
    gate        None, or (unit vector [row, hidden], threshold [row]): only where the last prompt token's projection on
                the vector exceeds the threshold, decided once a row (Lee et al. 2024, arXiv 2409.05907)
"""

import torch


def exact(h):
    """No autocast on the device of `h` while this is entered: float32 products stay float32."""
    return torch.autocast(h.device.type, enabled=False)


def stream(output):
    """The residual stream [row, token, hidden] in a block's output, which in some families is a tuple."""
    return output[0] if isinstance(output, tuple) else output


def targets(h, edit, step, plan, place):
    """The projections that an edit leads to, [row, token or 1, k].

    A row whose `of` names another row takes that row's, as it is before this edit: token by token in the prompt, where
    both hold the same text; elsewhere, and for what is generated, the mean over that row's prompt, but for its first
    token, whose norm is an outlier in most models.
    """
    t = edit["target"].to(h.device, h.dtype)[:, None]
    if not (edit["of"] >= 0).any():
        return t
    if step == 0:
        of, mask = edit["of"].clamp(min=0), plan["prompt_mask"]
        p = torch.bmm(h[of.to(h.device)], edit["measure"].to(h.device, h.dtype).transpose(1, 2))
        inner = but_the_first(mask[of]).to(h.device)[:, :, None]
        mean = torch.where(inner, p, 0.0).sum(1, keepdim=True) / inner.sum(1, keepdim=True).clamp(min=1)
        plan["kept"][(place, "mean")] = mean
        there = torch.where(same_suffix(plan["ids"], mask, of).to(h.device)[:, :, None], p, mean)
    else:
        there = plan["kept"][(place, "mean")]
    return torch.where((edit["of"] >= 0).to(h.device)[:, None, None], there, t)


def but_the_first(mask):
    """Every prompt token but the first, whose norm is an outlier in most models: [row, token] boolean."""
    return (mask.cumsum(1) > 1) & (mask == 1)


def same_suffix(ids, mask, of):
    """Where each row holds the same text as another, counted from the end of the prompt, up to which both are padded:
    [row, token] boolean. ids, mask: [row, token]; of: [row] the other."""
    equal = (ids == ids[of]) & (mask == 1) & (mask[of] == 1)
    return equal.flip(1).cumprod(1).flip(1).bool()


def change_of(h, edit, t):
    """What one edit would add to `h` [row, token, hidden], at least float32, before masks: the same shape. t: from
    `targets`."""
    if edit["op"] not in OPERATIONS:
        raise ValueError("unknown op " + str(edit["op"]))
    c = edit["strength"].to(h.device, h.dtype)[:, None, None]
    w, u = (None if edit[k] is None else edit[k].to(h.device, h.dtype) for k in ("write", "measure"))
    p = None if u is None else torch.bmm(h, u.transpose(1, 2))  # projections [row, token, k]
    return OPERATIONS[edit["op"]]["change"](h, c, w, p, t)


def added(h, c, w, p, t):
    """c w."""
    return (c * w).expand(-1, h.shape[1], -1)


def projected_out(h, c, w, p, t):
    """-c (p - t) w: with t = 0 directional ablation (Arditi et al. 2024, arXiv 2406.11717, section 2.4)."""
    return -c * torch.bmm(p - t, w)


def scaled(h, c, w, p, t):
    """c p w: the projection becomes 1 + c times what it is."""
    return c * torch.bmm(p, w)


def clamped(h, c, w, p, t):
    """(t - p) w."""
    return c * torch.bmm(t - p, w)


def capped(h, c, w, p, t):
    """min(0, t - p) w."""
    return c * torch.bmm((t - p).clamp(max=0), w)


def floored(h, c, w, p, t):
    """max(0, t - p) w."""
    return c * torch.bmm((t - p).clamp(min=0), w)


def rotated(h, c, w, p, t):
    """By c degrees towards the measured unit vector, never past it, in the plane of the two, keeping the norm of h. A
    written vector other than the measured one takes the place of the plane's second axis (a control of equal angle)."""
    norm = h.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    angle = torch.minimum(torch.deg2rad(c), torch.arccos((p / norm).clamp(-1, 1)))
    axis = w - (w * h).sum(-1, keepdim=True) / norm**2 * h
    axis = axis / axis.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return (torch.cos(angle) - 1) * h + torch.sin(angle) * norm * axis


def operation(change, coef=None, neutral=0.0, writes="unit", target=False, signed=False, subspace=False,
              references=("zero",)):  # fmt: skip
    """A row of OPERATIONS. change: what is added, from strength c, written vectors w, projections p and target t;
    coef: the coefficient where none is given (None: it must be); neutral: the one that leaves activations as they are:
    an edit's strength is how far `coef` lies from it; writes: `vector` (the direction under its norm policy), `unit`
    (the unit vectors that it measures) or `undo` (what the condition added before, with the opposite sign); target:
    `coef` is a place between the direction's two sides (0 the negative one's mean projection, 1 the positive one's),
    to which the projection is led; signed: the opposite `coef` is the control `reversed`; subspace: it takes a+b;
    references: what the projection may be led to: zero, the mean of harmless prompts, the unsteered row's own; with
    `own` also another condition's."""
    return dict(locals())


OPERATIONS = {
    "add": operation(added, coef=1.0, writes="vector", signed=True),
    "ablate": operation(projected_out, coef=1.0, subspace=True, references=("zero", "mean", "own")),
    "scale": operation(scaled, neutral=1.0),
    "clamp": operation(clamped, coef=0.0, target=True),
    "cap": operation(capped, coef=0.0, target=True),
    "floor": operation(floored, coef=0.0, target=True),
    "rotate": operation(rotated, signed=True),
    "remove": operation(added, coef=1.0, writes="undo"),
}


def apply_edits(h, edits, step, plan, block):
    """Return `h` [row, token, hidden] after a block's edits, in order.

    A change is computed in float32 at least and rounded once to the dtype of `h`. Pads are never touched. plan: `ids`
    and the masks `prompt_mask` and `last_mask`, all [row, token], and `kept`, which keeps from step 0 what later steps
    need: each row's gate decision and the mean projections that it is led to. Scopes: `all`, `prompt` (every prompt
    token), `generated` (tokens the model has produced, as inputs of later steps), `last` (the last prompt token),
    `response` (`last` and `generated`: the positions whose output predicts an answer token).
    """
    wide = torch.promote_types(h.dtype, torch.float32)
    for i, edit in enumerate(edits):
        scope, place, kept = edit["scope"], (block, i), plan["kept"]
        if step == 0 and edit["gate"] is not None:
            vector, threshold = (x.to(h.device, wide) for x in edit["gate"])
            kept[(place, "gate")] = ((h[:, -1].to(wide) * vector).sum(-1) > threshold)[:, None, None]
        if step > 0 and scope in ("prompt", "last"):
            continue
        with exact(h):
            whole = h.to(wide)
            t = targets(whole, edit, step, plan, place)  # at step 0 for all scopes: later steps are led to its means
            if step == 0 and scope == "generated":
                continue
            change = change_of(whole, edit, t)
        if step == 0:
            mask = plan["last_mask"] if scope in ("last", "response") else plan["prompt_mask"]
            change = change * mask.to(h.device, wide)[:, :, None]
        if edit["gate"] is not None:
            change = change * kept[(place, "gate")]
        h = h + change.to(h.dtype)
    return h
