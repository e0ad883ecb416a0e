"""What a plan does to activations. Imports torch only: this is the one module that travels to a remote server.

Rows of different conditions share one forward pass. An edit on a row with strength 0 adds an exact zero, which leaves
that row bit-identical to no intervention. An NDIF server on a GPU runs a job under autocast to the weights' precision,
which would round the products here: whatever multiplies switches it off (`exact`). A new row of OPERATIONS or READOUTS
is a new operation or readout; they hold plain values and named functions of this module only, so that they travel.

An edit is a mapping of plain tensors:
    op          a name in OPERATIONS
    scope       all, prompt, generated, last or response
    write       [row, k, hidden]: what is written; k is 1 but for the ablation of a subspace
    measure     [row, k, hidden]: unit vectors whose projections decide how much is written, or None
    strength    [row]: 0 for a row that has no such edit
    target      [row]: the projection that clamp, cap and floor lead to
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


def change_of(h, edit):
    """What one edit would add to `h` [row, token, hidden], at least float32, before masks: the same shape."""
    if edit["op"] not in OPERATIONS:
        raise ValueError("unknown op " + str(edit["op"]))
    c, t = (edit[k].to(h.device, h.dtype)[:, None, None] for k in ("strength", "target"))
    w, u = (None if edit[k] is None else edit[k].to(h.device, h.dtype) for k in ("write", "measure"))
    p = None if u is None else torch.bmm(h, u.transpose(1, 2))  # projections [row, token, k]
    return OPERATIONS[edit["op"]]["change"](h, c, w, p, t)


def added(h, c, w, p, t):
    """c w."""
    return (c * w).expand(-1, h.shape[1], -1)


def projected_out(h, c, w, p, t):
    """-c p w: directional ablation (Arditi et al. 2024, arXiv 2406.11717, section 2.4)."""
    return -c * torch.bmm(p, w)


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


def operation(change, coef=None, neutral=0.0, writes="unit", target=False, signed=False, subspace=False):
    """A row of OPERATIONS. change: what is added, from strength c, written vectors w, projections p and target t;
    coef: the coefficient where none is given (None: it must be); neutral: the one that leaves activations as they are:
    an edit's strength is how far `coef` lies from it; writes: `vector` (the direction under its norm policy), `unit`
    (the unit vectors that it measures) or `undo` (what the condition added before, with the opposite sign); target:
    `coef` is a place between the direction's two sides (0 the negative one's mean projection, 1 the positive one's),
    to which the projection is led; signed: the opposite `coef` is the control `reversed`; subspace: it takes a+b."""
    return dict(locals())


OPERATIONS = {
    "add": operation(added, coef=1.0, writes="vector", signed=True),
    "ablate": operation(projected_out, coef=1.0, subspace=True),
    "scale": operation(scaled, neutral=1.0),
    "clamp": operation(clamped, coef=0.0, target=True),
    "cap": operation(capped, coef=0.0, target=True),
    "floor": operation(floored, coef=0.0, target=True),
    "rotate": operation(rotated, signed=True),
    "remove": operation(added, coef=1.0, writes="undo"),
}


def apply_edits(h, edits, step, prompt_mask, last_mask, gates, block):
    """Return `h` [row, token, hidden] after a block's edits, in order.

    A change is computed in float32 at least and rounded once to the dtype of `h`. Pads are never touched. gates: a
    mapping that keeps each row's gate decision from step 0 for the later steps. Scopes: `all`, `prompt`
    (every prompt token), `generated` (tokens the model has produced, as inputs of later steps), `last` (the last prompt
    token), `response` (`last` and `generated`: the positions whose output predicts an answer token).
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


def log_odds(logits, token_ids):
    """log p/(1-p) of the next token being one of `token_ids`, from logits [row, vocab]: [row] float32."""
    logits = logits.to(torch.float32)
    inside = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    inside[token_ids.to(logits.device)] = True
    yes = torch.logsumexp(logits[:, inside], dim=-1)
    no = torch.logsumexp(logits[:, ~inside], dim=-1)
    return (yes - no).detach().cpu()


def kl_to(logits, reference):
    """KL(p_reference || p) of the next token in nats: logits [row, vocab], reference [row] the row that each is
    compared with: [row] float32. A row that is its own reference gives an exact 0."""
    logp = torch.log_softmax(logits.to(torch.float32), dim=-1)
    base = logp[reference.to(logits.device)]
    return (base.exp() * (base - logp)).sum(-1).detach().cpu()


def read_projection(site):
    with exact(site["last"]):
        return (site["last"] @ site["probes"].to(site["last"].device, torch.float32).T).detach().cpu()


def read_norm(site):
    return site["last"].norm(dim=-1).detach().cpu()


def read_cosine(site):
    return read_projection(site) / read_norm(site)[:, None].clamp(min=1e-12)


def read_relative_change(site):
    before = site["before"][:, -1].to(torch.float32)
    return ((site["last"] - before).norm(dim=-1) / before.norm(dim=-1)).detach().cpu()


def read_lens_score(site):
    """The residual stream through the model's own final norm and unembedding, as nnsight calls them."""
    norm, unembed = site["final"]
    logits, cap = unembed(norm(site["h"][:, -1:]))[:, 0] * site["plan"]["head"]["scale"], site["plan"]["head"]["cap"]
    return log_odds(torch.tanh(logits / cap) * cap if cap else logits, site["plan"]["score_ids"])


def read_refusal_score(site):
    return log_odds(site["logits"], site["plan"]["score_ids"])


def read_kl(site):
    return kl_to(site["logits"], site["plan"]["reference"])


def readout(read, dims, units, long_name, at="probes", every_step=False, needs=("probes",), default=False,
            group="readouts", missing=float("nan")):  # fmt: skip
    """A row of READOUTS; its name is the same in the trail, in a `Generation` and in the store. read: the function
    that gives it for a batch, [row] or [row, direction] float32; dims: in the store, behind (condition, prompt); at:
    after the edits of every block that has `probes`, or that has `edits`, or from the `logits` at the end; every_step:
    at each generated token too, as it is read in; needs: entries of a plan that it cannot do without; default: read
    wherever they are there (others are asked for); group: of the store; missing: its value where nothing is read."""
    return dict(locals())


LAST, PROBE, STREAM = "at the last prompt token, after edits", ("layer", "direction"), "residual stream"
READOUTS = {
    "projection": readout(
        read_projection, PROBE, STREAM, "projection of resid_post on the unit direction " + LAST, default=True),
    "residual_norm": readout(read_norm, ("layer",), STREAM, "norm of resid_post " + LAST, default=True),
    "relative_change": readout(
        read_relative_change, ("layer",), "1", "norm of what the edits added at the last prompt token, over the "
        "residual's norm before them; 0 without an edit", at="edits", default=True, missing=0.0),
    "kl": readout(
        read_kl, (), "nat", "first-token KL(baseline || condition)", at="logits", needs=("score_ids", "reference"),
        default=True),
    "lens_score": readout(
        read_lens_score, ("layer",), "nat", "refusal log-odds read off resid_post at the last prompt token "
        "(logit lens)", needs=("probes", "score_ids")),
    "step_projection": readout(
        read_projection, ("step", *PROBE), STREAM, "projection at the last prompt token (step 0) and at each generated "
        "token as it is read in", every_step=True),
    "cosine": readout(read_cosine, PROBE, "1", "cosine of resid_post with the direction " + LAST),
    "refusal_score": readout(
        read_refusal_score, (), "nat", "log-odds of a refusal opening as first token", at="logits",
        needs=("score_ids",), default=True, group="outcomes"),
}  # fmt: skip


def visit(model, layers, final, plan, step, trail):
    """Run one forward step of a plan: visit the blocks in execution order (nnsight requires it), one read and at most
    one write each, and append (readout, block, tensor) to `trail`; block is -1 for what is read at the end.

    plan: edits {block: [edit, ...]}, probes {block: [probe, hidden]}, names of readouts and what they need; the seed of
    a sampled generation is set at step 0, where it is drawn. final: the final norm and the unembedding,
    where the lens is read.
    """
    edits, probes = plan["edits"], plan["probes"]
    if step == 0 and plan["seed"] is not None:
        torch.manual_seed(plan["seed"])
    names = [n for n in plan["readouts"] if step == 0 or READOUTS[n]["every_step"]]
    at_blocks = [n for n in names if READOUTS[n]["at"] != "logits"]
    for block in sorted(set(edits) | set(probes)) if at_blocks else sorted(edits):
        output = layers[block].output
        before = stream(output)
        if before.ndim != 3:
            raise ValueError("block " + str(block) + " gives " + str(before.shape) + ", not [row, token, hidden]")
        h = before
        if block in edits:
            h = apply_edits(before, edits[block], step, plan["prompt_mask"], plan["last_mask"], plan["gates"], block)
            layers[block].output = (h, *output[1:]) if isinstance(output, tuple) else h
        site = {"before": before, "h": h, "probes": probes.get(block), "final": final, "plan": plan}
        for name in at_blocks:
            if block in plan[READOUTS[name]["at"]]:
                site["last"] = h[:, -1].to(torch.float32)
                trail.append((name, block, READOUTS[name]["read"](site)))
    if len(names) > len(at_blocks):
        site = {"logits": model.output.logits[:, -1], "plan": plan}
        trail.extend((n, -1, READOUTS[n]["read"](site)) for n in names if n not in at_blocks)


def new_tokens(result, width):
    """The tokens behind the prompt, from ids [row, width + new]: [row, new] int32."""
    return result[:, width:].to(torch.int32).detach().cpu()


def pack(trail):
    """The trail of `visit` as few tensors, so that little travels: {name: {block: [entry], value: [entry, row, ...]}},
    entries in the order in which they came."""
    packed = {}
    for name in dict.fromkeys(entry[0] for entry in trail):
        entries = [entry for entry in trail if entry[0] == name]
        packed[name] = {"block": torch.tensor([e[1] for e in entries]), "value": torch.stack([e[2] for e in entries])}
    return packed


def pool(h, weights):
    """Positions as weights (one-hot for a token, uniform for the mean of a span): [row, token, hidden] and
    [row, position, token] give [row, position, hidden] float32."""
    with exact(h):
        return torch.bmm(weights.to(h.device, torch.float32), h.to(torch.float32)).detach().cpu()


def side_sums(pooled, sides):
    """[row, position, hidden] and weights [side, row, position] give [side, hidden] float64. A position that a row does
    not have is NaN, which only a side that asks for it gets."""
    missing = torch.isnan(pooled)
    sums = torch.einsum("grp,rph->gh", sides, torch.where(missing, 0.0, pooled.double()))
    lacks = torch.einsum("grp,rph->gh", (sides != 0).double(), missing.double()) > 0
    return torch.where(lacks, torch.nan, sums)


def read(layers, weights, sides):
    """What every block's residual stream holds at named positions, blocks visited in execution order.
    weights: [row, position, token]; sides: [side, row, position] weights of the rows in each side's sum, or None for
    every row by itself. Returns {state, norm, dtype}: state [row, position, block, hidden] float32, or [side, block,
    hidden] float64; norm [block, row, token] float32.
    """
    states, norms = [], []
    for layer in layers:
        h = stream(layer.output)
        pooled = pool(h, weights)
        states.append(pooled if sides is None else side_sums(pooled, sides))
        norms.append(h.to(torch.float32).norm(dim=-1).detach().cpu())
    return {"state": torch.stack(states, dim=-2), "norm": torch.stack(norms), "dtype": str(h.dtype)}


def mean_nll(logits, targets, mask):
    """Mean negative log-likelihood per row in nats per token: logits [row, token, vocab], targets and mask
    [row, token]; NaN for a row with no token."""
    chosen = torch.gather(logits.to(torch.float32), 2, targets.to(logits.device)[:, :, None])[:, :, 0]
    nll = torch.logsumexp(logits.to(torch.float32), dim=-1) - chosen
    m = mask.to(logits.device, torch.float32)
    return ((nll * m).sum(1) / m.sum(1)).detach().cpu()
