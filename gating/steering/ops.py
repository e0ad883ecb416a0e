"""What a plan reads and writes in a forward pass. With edits.py it travels to a remote server; both import torch only.

An NDIF server on a GPU runs a job under autocast to the weights' precision, which would round the products here:
whatever multiplies switches it off (`exact`). A new row of READOUTS is a new readout; it holds plain values and named
functions of this module only, so that it travels.
"""

import torch

from gating.steering.edits import apply_edits, but_the_first, exact, stream


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


def read_change_norm(site):
    squared = (site["h"].to(torch.float32) - site["before"].to(torch.float32)).pow(2).sum(-1)
    inner = but_the_first(site["plan"]["prompt_mask"]).to(squared.device)
    return (torch.where(inner, squared, 0.0).sum(1) / inner.sum(1).clamp(min=1)).sqrt().detach().cpu()


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
    "change_norm": readout(
        read_change_norm, ("layer",), STREAM, "root mean square, over the prompt's tokens but the first, of the norm "
        "of what the edits at the block added or took out; 0 without an edit", at="edits", default=True, missing=0.0),
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
    """Run one forward step of a plan in a trace: visit the blocks in execution order (nnsight requires it), one read
    and at most one write each, and append (readout, block, tensor) to `trail`; block is -1 for what is read at the end.

    plan: edits {block: [edit, ...]}, probes {block: [probe, hidden]}, names of readouts and what they need; the seed of
    a sampled generation is set at step 0, where it is drawn. final: the final norm and the unembedding,
    where the lens is read.
    """
    if step == 0 and plan["seed"] is not None:
        torch.manual_seed(plan["seed"])
    for block in visited(plan, step):
        output = layers[block].output
        after = at_block(output, block, final, plan, step, trail)
        if block in plan["edits"]:
            layers[block].output = after
    if asked(plan, step, True):
        at_end(model.output.logits[:, -1], plan, step, trail)


def asked(plan, step, at_logits):
    """The names of the readouts of a step, of the blocks or of what comes behind them."""
    names = [n for n in plan["readouts"] if (READOUTS[n]["at"] == "logits") == at_logits]
    return [n for n in names if step == 0 or READOUTS[n]["every_step"]]


def visited(plan, step):
    """The blocks where a step has something to do, in execution order."""
    edits = set(plan["edits"])
    return sorted(edits | set(plan["probes"]) if asked(plan, step, False) else edits)


def at_block(output, block, final, plan, step, trail):
    """A block's output after its edits; what is read there goes to `trail`."""
    before = stream(output)
    if before.ndim != 3:
        raise ValueError("block " + str(block) + " gives " + str(before.shape) + ", not [row, token, hidden]")
    edits, h = plan["edits"].get(block), before
    if edits is not None:
        h = apply_edits(before, edits, step, plan, block)
        output = (h, *output[1:]) if isinstance(output, tuple) else h
    site = {"before": before, "h": h, "probes": plan["probes"].get(block), "final": final, "plan": plan}
    for name in asked(plan, step, False):
        if block in plan[READOUTS[name]["at"]]:
            site["last"] = h[:, -1].to(torch.float32)
            trail.append((name, block, READOUTS[name]["read"](site)))
    return output


def at_end(logits, plan, step, trail):
    """What is read of the logits [row, vocab] of a step goes to `trail`."""
    site = {"logits": logits, "plan": plan}
    trail.extend((n, -1, READOUTS[n]["read"](site)) for n in asked(plan, step, True))


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


def read_before(layers, weights, plan, before):
    """What the residual stream holds at named tokens where an edit finds it, in one prefill under a plan.
    weights: [row, position, token]; before: {block: how many of the block's edits come before it}. Returns float32
    [row, position, block, hidden].
    """
    states = []
    for block in sorted(b for b in set(plan["edits"]) | set(before) if b <= max(before)):
        edits, first, output = plan["edits"].get(block, []), before.get(block, 0), layers[block].output
        h = apply_edits(stream(output), edits[:first], 0, plan, block)
        if block in before:
            states.append(pool(h, weights))
        if edits:
            h = apply_edits(h, edits[first:], 0, plan, block)
            layers[block].output = (h, *output[1:]) if isinstance(output, tuple) else h
    return torch.stack(states, dim=-2)


def mean_nll(logits, targets, mask):
    """Mean negative log-likelihood per row in nats per token: logits [row, token, vocab], targets and mask
    [row, token]; NaN for a row with no token."""
    chosen = torch.gather(logits.to(torch.float32), 2, targets.to(logits.device)[:, :, None])[:, :, 0]
    nll = torch.logsumexp(logits.to(torch.float32), dim=-1) - chosen
    m = mask.to(logits.device, torch.float32)
    return ((nll * m).sum(1) / m.sum(1)).detach().cpu()
