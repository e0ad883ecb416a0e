"""What a plan does to activations. Imports torch only: this is the one module that travels to a remote server.

Everything is vectorised over rows, so rows of different conditions share one forward pass. An edit on a row with
coefficient 0 adds an exact zero, which leaves that row bit-identical to no intervention.
"""

import torch


def apply_edits(h, edits, step, prompt_mask, last_mask):
    """Return `h` [row, token, hidden] after a block's edits, in order.

    edits: list of (op, scope, vector [row, hidden], coefficient [row]). `add`: h + c v. `ablate`: h - c (h.v) v with v
    a unit vector (directional ablation; Arditi et al. 2024, arXiv 2406.11717, section 2.4). The change is computed in
    float32 at least and rounded once to the dtype of `h`. Pads are never touched.

    Scopes: `all`, `prompt` (every prompt token), `generated` (tokens the model has produced, as inputs of later
    steps), `last` (the last prompt token), `response` (`last` and `generated`: the positions whose output predicts an
    answer token).
    """
    wide = torch.promote_types(h.dtype, torch.float32)
    for op, scope, vector, coefficient in edits:
        if (step == 0 and scope == "generated") or (step > 0 and scope in ("prompt", "last")):
            continue
        v = vector.to(h.device, wide)[:, None, :]
        c = coefficient.to(h.device, wide)[:, None, None]
        if step == 0:
            mask = last_mask if scope in ("last", "response") else prompt_mask
            c = c * mask.to(h.device, wide)[:, :, None]
        if op == "add":
            change = c * v
        elif op == "ablate":
            change = -c * (h.to(wide) * v).sum(-1, keepdim=True) * v
        else:
            raise ValueError("unknown op " + str(op))
        h = h + change.to(h.dtype)
    return h


def last_token_readout(h, probes):
    """Projections on unit probes [probe, hidden] and the residual norm at the last token: [row, probe + 1] float32."""
    last = h[:, -1].to(torch.float32)
    projections = last @ probes.to(h.device, torch.float32).T
    return torch.cat([projections, last.norm(dim=-1, keepdim=True)], dim=-1).detach().cpu()


def log_odds(logits, token_ids):
    """log p/(1-p) of the next token being one of `token_ids`, from logits [row, vocab]: [row] float32."""
    logits = logits.to(torch.float32)
    inside = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    inside[token_ids.to(logits.device)] = True
    yes = torch.logsumexp(logits[:, inside], dim=-1)
    no = torch.logsumexp(logits[:, ~inside], dim=-1)
    return (yes - no).detach().cpu()


def visit(model, layers, plan, step, trail):
    """Run one forward step of a plan: visit the blocks in execution order (nnsight requires it), one read and at most
    one write each; at step 0 append the readouts [row, probe + 1] per block and the first-token log-odds to `trail`.
    """
    edits, probes = plan["edits"], plan["probes"]
    touched = sorted(set(edits) | set(probes)) if step == 0 else sorted(edits)
    for block in touched:
        h = layers[block].output
        if h.ndim != 3:
            raise ValueError(
                "block " + str(block) + " gives shape " + str(tuple(h.shape)) + ", not [row, token, hidden]"
            )
        if block in edits:
            h = apply_edits(h, edits[block], step, plan["prompt_mask"], plan["last_mask"])
            layers[block].output = h
        if step == 0 and block in probes:
            trail.append((block, last_token_readout(h, probes[block])))
    if step == 0 and plan["score_ids"] is not None:
        trail.append(("score", log_odds(model.output.logits[:, -1], plan["score_ids"])))


def pool(h, weights):
    """Positions as weights: [row, token, hidden] and [row, position, token] give [row, position, hidden] float32.

    A one-hot weight reads a token exactly, a uniform one a mean over a span.
    """
    return torch.bmm(weights.to(h.device, torch.float32), h.to(torch.float32)).detach().cpu()


def token_norms(h):
    """Residual norms [row, token] float32."""
    return h.to(torch.float32).norm(dim=-1).detach().cpu()


def read(layers, weights, trail):
    """Append (pooled [row, position, hidden], norms [row, token]) of every block, in execution order."""
    for layer in layers:
        h = layer.output
        trail.append((pool(h, weights), token_norms(h)))


def mean_nll(logits, targets, mask):
    """Mean negative log-likelihood per row in nats per token: logits [row, token, vocab], targets and mask
    [row, token]; NaN for a row with no token."""
    chosen = torch.gather(logits.to(torch.float32), 2, targets.to(logits.device)[:, :, None])[:, :, 0]
    nll = torch.logsumexp(logits.to(torch.float32), dim=-1) - chosen
    m = mask.to(logits.device, torch.float32)
    return ((nll * m).sum(1) / m.sum(1)).detach().cpu()
