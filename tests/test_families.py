"""Many families of models, each a tiny random one: what is read and written is what the family's own code computes."""

import operator

import numpy as np
import pytest
import torch

from gating import chat
from gating.errors import GatingError
from gating.models import checkpoint, padding, parts, tiny
from gating.models.loading import Loaded
from gating.steering import lens
from gating.steering.backend import Backend
from gating.steering.interventions import Condition, Intervention
from gating.steering.lowering import lower
from gating.steering.readouts import Readouts
from tests import families
from tests.test_backend import two_directions

BASE = Condition("baseline")
ADD = Condition("s", "steered", (Intervention("add", "a", (1,), 3.0, "residual"),))
ABLATE = Condition("a", "named", (Intervention("ablate", "a", (2,), 1.0),))


def loaded(model):
    tokenizer, device = tiny.tokenizer("llama"), torch.device("cpu")
    n_layers, hidden = len(parts.decoder_blocks(model)), model.config.get_text_config().hidden_size
    return Loaded(model.requires_grad_(False), tokenizer, "", None, device, torch.float32, n_layers, hidden, "m")


def own_states(model, ids):
    """What the family's own code computes for one row: each block's output at the last token, and the logits."""
    states: list = []
    blocks = operator.attrgetter(parts.decoder_layers(model))(model)
    handles = [
        block.register_forward_hook(lambda m, a, out: states.append((out[0] if isinstance(out, tuple) else out)[0, -1]))
        for block in blocks
    ]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
    for handle in handles:
        handle.remove()
    return torch.stack(states).double().numpy(), logits.double()


@pytest.mark.parametrize("family", [*families.FAMILIES, *families.SEEING])
def test_a_family_is_read_and_steered_at_every_block_and_a_batch_is_its_rows(family):
    m = loaded(families.model(family))
    backend = Backend(m, 8)
    ids = [chat.encode(m.tokenizer, text) for text in ("Hi", "Tell me about boats.")]
    states, norms = backend.capture(ids, ["last"])
    own = [own_states(m.model, row) for row in ids]
    scale = np.abs(own[0][0]).max()
    assert np.allclose(states[:, 0], [s for s, _ in own], atol=1e-4 * scale)

    made = two_directions(m, norms)
    unit = np.ascontiguousarray(made["vector"].transpose("layer", "direction", "hidden").values)
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    rows = [c for _ in ids for c in (BASE, ADD, ABLATE)]
    wanted = Readouts(unit, [4, 9], [0, 0, 0, 3, 3, 3], extra=("lens_score",))
    read = backend.generate([i for i in ids for _ in range(3)], lower(rows, made, 0), 3, wanted).read
    expected = np.stack([np.einsum("lh,ldh->ld", s, unit) for s, _ in own])
    assert np.allclose(read["projection"][::3], expected, atol=1e-4 * scale)
    p = torch.stack([logits for _, logits in own]).softmax(-1)[:, [4, 9]].sum(-1)
    assert np.allclose(read["refusal_score"][::3], torch.log(p / (1 - p)), atol=1e-3)
    # the lens at the last block is the score, whatever a family does between its last block and its logits
    assert np.allclose(read["lens_score"][:, -1], read["refusal_score"], atol=1e-3)
    assert (np.abs(read["lens_score"][:, 0] - read["refusal_score"]) > 1e-3).any()
    assert (np.abs(read["projection"][2::3, 2, 0]) < 1e-4 * scale).all()
    assert (np.abs(read["projection"][::3, 2, 0]) > 1e-3 * norms[2]).any()
    assert (np.abs(read["refusal_score"][1::3] - read["refusal_score"][::3]) > 1e-3).all()
    assert (read["kl"][1::3] > 1e-5).all()


def test_a_lens_that_leaves_something_out_is_refused_and_the_family_named(monkeypatch):
    monkeypatch.setattr(parts, "LOGIT_SCALES", {})
    with pytest.raises(GatingError, match=r"family granite \(GraniteForCausalLM\).*the score is.*readouts\.lens=false"):
        lens.check(Backend(loaded(families.model("granite")), 8))


def test_a_family_that_takes_no_notice_of_pads_is_refused():
    padding.check(families.model("gpt2"))
    with pytest.raises(GatingError, match=r"family rwkv \(RwkvForCausalLM\).*pads"):
        padding.check(families.model("rwkv"))


@pytest.mark.parametrize("family", ["mamba", "falcon", "gpt2", "deepseek_v3"])
def test_sizes_of_a_family_are_found_without_weights(family):
    sizes = checkpoint.config_sizes(families.config(family))
    assert (sizes["layers"], sizes["hidden"], sizes["vocab"]) == (4, 32, 261)
