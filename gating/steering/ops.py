"""What a plan does to activations. Imports torch only: this is the one module that travels to a remote server.

Everything is vectorised over rows, so rows of different conditions share one forward pass. An edit on a row with
strength 0 adds an exact zero, which leaves that row bit-identical to no intervention. An NDIF server on a GPU runs a
job under autocast to the weights' precision, which would round the products here: each function that multiplies
switches it off for itself (`exact`).

An edit is a mapping of plain tensors:
    op          add, ablate, clamp, cap, floor or rotate
    scope       all, prompt, generated, last or response
    write       [row, k, hidden]: what is written; k is 1 but for the ablation of a subspace
    measure     [row, k, hidden]: unit vectors whose projections decide how much is written (None for add)
    strength    [row]: 0 for a row that has no such edit
    target      [row]: the projection that clamp, cap and floor lead to (None for the others)
    gate        None, or (unit vector [row, hidden], threshold [row]): only where the last prompt token's projection on the
                vector exceeds the threshold, decided once a row (conditional steering; Lee et al. 2024, arXiv 2409.05907)
"""

import torch


def exact(h):
    """No autocast on the device of `h` while this is entered: float32 products stay float32."""
    return torch.autocast(h.device.type, enabled=False)


def change_of(h, edit):
    """What one edit would add to `h` [row, token, hidden], at least float32, before masks: the same shape.

    p is the projection on `measure`, u what is written. add: c w. ablate: -c p u, directional ablation where u is the
    measured vector (Arditi et al. 2024, arXiv 2406.11717, section 2.4). clamp: (t - p) u; cap: min(0, t - p) u; floor:
    max(0, t - p) u. rotate: by c degrees towards u in the plane of h and u, never past it, with the norm of h kept.
    """
    op, c = edit["op"], edit["strength"].to(h.device, h.dtype)[:, None, None]
    write = edit["write"].to(h.device, h.dtype)
    if op == "add":
        return (c * write).expand(-1, h.shape[1], -1)
    p = torch.bmm(h, edit["measure"].to(h.device, h.dtype).transpose(1, 2))  # [row, token, k]
    if op == "ablate":
        return -c * torch.bmm(p, write)
    if op == "rotate":
        return rotation(h, p, edit["measure"].to(h.device, h.dtype), write, torch.deg2rad(c))
    gap = edit["target"].to(h.device, h.dtype)[:, None, None] - p
    if op == "cap":
        gap = gap.clamp(max=0)
    elif op == "floor":
        gap = gap.clamp(min=0)
    elif op != "clamp":
        raise ValueError("unknown op " + str(op))
    return c * torch.bmm(gap, write)


def rotation(h, p, measure, write, angle):
    """h turned by `angle` [row, 1, 1] radians towards the measured unit vector, in their plane, minus h. A written vector
    other than the measured one takes the place of the plane's second axis (a control with the same angle)."""
    norm = h.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    cosine = (p / norm).clamp(-1, 1)
    angle = torch.minimum(angle, torch.arccos(cosine))
    axis = write - (write * h).sum(-1, keepdim=True) / norm**2 * h
    axis = axis / axis.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return (torch.cos(angle) - 1) * h + torch.sin(angle) * norm * axis


def apply_edits(h, edits, step, prompt_mask, last_mask, gates, block):
    """Return `h` [row, token, hidden] after a block's edits, in order.

    A change is computed in float32 at least and rounded once to the dtype of `h`. Pads are never touched. gates: a
    mapping that keeps each row's gate decision from step 0 for the later steps.

    Scopes: `all`, `prompt` (every prompt token), `generated` (tokens the model has produced, as inputs of later
    steps), `last` (the last prompt token), `response` (`last` and `generated`: the positions whose output predicts an
    answer token).
    """
    wide = torch.promote_types(h.dtype, torch.float32)
    for i, edit in enumerate(edits):
        scope = edit["scope"]
        if step == 0 and edit["gate"] is not None:
            vector, threshold = (x.to(h.device, wide) for x in edit["gate"])
            gates[(block, i)] = ((h[:, -1].to(wide) * vector).sum(-1) > threshold)[:, None, None]
        if (step == 0 and scope == "generated") or (step > 0 and scope in ("prompt", "last")):
            continue
        with exact(h):
            change = change_of(h.to(wide), edit)
        if step == 0:
            mask = last_mask if scope in ("last", "response") else prompt_mask
            change = change * mask.to(h.device, wide)[:, :, None]
        if edit["gate"] is not None:
            change = change * gates[(block, i)]
        h = h + change.to(h.dtype)
    return h


def last_token_readout(h, probes):
    """Projections on unit probes [probe, hidden] and the residual norm at the last token: [row, probe + 1] float32."""
    last = h[:, -1].to(torch.float32)
    with exact(h):
        projections = last @ probes.to(h.device, torch.float32).T
    return torch.cat([projections, last.norm(dim=-1, keepdim=True)], dim=-1).detach().cpu()


def relative_change(before, after):
    """|after - before| / |before| at the last token: [row] float32."""
    a, b = before[:, -1].to(torch.float32), after[:, -1].to(torch.float32)
    return ((b - a).norm(dim=-1) / a.norm(dim=-1)).detach().cpu()


def log_odds(logits, token_ids):
    """log p/(1-p) of the next token being one of `token_ids`, from logits [row, vocab]: [row] float32."""
    logits = logits.to(torch.float32)
    inside = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    inside[token_ids.to(logits.device)] = True
    yes = torch.logsumexp(logits[:, inside], dim=-1)
    no = torch.logsumexp(logits[:, ~inside], dim=-1)
    return (yes - no).detach().cpu()


def kl_to(logits, reference):
    """KL(p_reference || p) of the next token in nats: logits [row, vocab], reference [row] the row that each is compared
    with: [row] float32. A row that is its own reference gives an exact 0."""
    logp = torch.log_softmax(logits.to(torch.float32), dim=-1)
    base = logp[reference.to(logits.device)]
    return (base.exp() * (base - logp)).sum(-1).detach().cpu()


def lens(h, norm, head, token_ids, softcap):
    """The refusal log-odds that the residual stream already carries: the last token of `h` through the final norm and
    the unembedding (the logit lens): [row] float32. norm, head: the model's own modules, as nnsight calls
    them (also where a server splits them); softcap: its logit cap or 0."""
    logits = head(norm(h[:, -1:]))[:, 0]
    if softcap:
        logits = torch.tanh(logits / softcap) * softcap
    return log_odds(logits, token_ids)


def visit(model, layers, final, plan, step, trail):
    """Run one forward step of a plan: visit the blocks in execution order (nnsight requires it), one read and at most
    one write each, and append (what, block, tensor) to `trail`.

    At step 0 the seed of a sampled generation is set, where it is drawn, and there are `readout` [row, probe + 1] and
    `change` [row] a block, `lens` [row] a block where asked, then `score` and `kl` [row]. At later steps `readout` alone, and only where every step is asked for. final: the final norm and the
    unembedding.
    """
    edits, probes = plan["edits"], plan["probes"]
    if step == 0 and plan["seed"] is not None:
        torch.manual_seed(plan["seed"])
    read = step == 0 or plan["every_step"]
    touched = sorted(set(edits) | set(probes)) if read else sorted(edits)
    for block in touched:
        before = layers[block].output
        if before.ndim != 3:
            raise ValueError(
                "block " + str(block) + " gives shape " + str(tuple(before.shape)) + ", not [row, token, hidden]"
            )
        h = before
        if block in edits:
            h = apply_edits(before, edits[block], step, plan["prompt_mask"], plan["last_mask"], plan["gates"], block)
            layers[block].output = h
        if read and block in probes:
            trail.append(("readout", block, last_token_readout(h, probes[block])))
        if step == 0 and block in edits:
            trail.append(("change", block, relative_change(before, h)))
        if step == 0 and plan["lens"] and block in probes:
            trail.append(("lens", block, lens(h, final[0], final[1], plan["score_ids"], plan["softcap"])))
    if step == 0 and plan["score_ids"] is not None:
        logits = model.output.logits[:, -1]
        trail.append(("score", -1, log_odds(logits, plan["score_ids"])))
        if plan["reference"] is not None:
            trail.append(("kl", -1, kl_to(logits, plan["reference"])))


def new_tokens(result, width):
    """The tokens behind the prompt, from ids [row, width + new]: [row, new] int32."""
    return result[:, width:].to(torch.int32).detach().cpu()


def pack(trail):
    """The trail of `visit` as few tensors, so that little travels: {what: {block: [entry], value: [entry, row, ...]}},
    entries in the order in which they came."""
    out = {}
    for what in dict.fromkeys(entry[0] for entry in trail):
        some = [entry for entry in trail if entry[0] == what]
        out[what] = {"block": torch.tensor([e[1] for e in some]), "value": torch.stack([e[2] for e in some])}
    return out


def pool(h, weights):
    """Positions as weights: [row, token, hidden] and [row, position, token] give [row, position, hidden] float32.

    A one-hot weight reads a token exactly, a uniform one a mean over a span.
    """
    with exact(h):
        return torch.bmm(weights.to(h.device, torch.float32), h.to(torch.float32)).detach().cpu()


def token_norms(h):
    """Residual norms [row, token] float32."""
    return h.to(torch.float32).norm(dim=-1).detach().cpu()


def group_sums(pooled, groups):
    """[row, position, hidden] and weights [group, row, position] give [group, hidden] float64. A position that a row does
    not have is NaN, which only a group that asks for it gets."""
    missing = torch.isnan(pooled)
    sums = torch.einsum("grp,rph->gh", groups, torch.where(missing, 0.0, pooled.double()))
    lacks = torch.einsum("grp,rph->gh", (groups != 0).double(), missing.double()) > 0
    return torch.where(lacks, torch.nan, sums)


def read(layers, weights, groups):
    """What every block's residual stream holds at named positions, blocks visited in execution order.

    weights: [row, position, token]; groups: [group, row, position] weights of the rows in each group's sum, or None for
    every row by itself. Returns {state, norm}: state [row, position, block, hidden] float32, or [group, block, hidden]
    float64; norm [block, row, token] float32.
    """
    states, norms = [], []
    for layer in layers:
        h = layer.output
        pooled = pool(h, weights)
        states.append(pooled if groups is None else group_sums(pooled, groups))
        norms.append(token_norms(h))
    return {"state": torch.stack(states, dim=-2), "norm": torch.stack(norms), "dtype": str(h.dtype)}


def mean_nll(logits, targets, mask):
    """Mean negative log-likelihood per row in nats per token: logits [row, token, vocab], targets and mask
    [row, token]; NaN for a row with no token."""
    chosen = torch.gather(logits.to(torch.float32), 2, targets.to(logits.device)[:, :, None])[:, :, 0]
    nll = torch.logsumexp(logits.to(torch.float32), dim=-1) - chosen
    m = mask.to(logits.device, torch.float32)
    return ((nll * m).sum(1) / m.sum(1)).detach().cpu()
