"""The logit lens is trusted only where it gives the model's own score at the last block."""

from __future__ import annotations

import numpy as np

from gating.models import parts
from gating.steering.backend import SIGNATURE_TOKENS, Backend
from gating.steering.readouts import Readouts

# How far apart the two may be, relative to 1 nat and to the score: the roundings of one product.
TOLERANCE = {"float32": 2e-3, "bfloat16": 0.1, "float16": 0.02}


def check(backend: Backend) -> None:
    """Compare the lens at the last block with the score, on three texts of fixed tokens.

    Raises GatingError naming the model's family where they differ: something that this package does not know of stands
    between its last block and its logits.
    """
    loaded = backend.loaded
    ids = [list(range(3 + k, 3 + k + SIGNATURE_TOKENS)) for k in range(3)]
    probes = np.zeros((loaded.n_layers, 1, loaded.hidden), dtype="float32")
    wanted = Readouts(probes, [5], extra=("lens_score",))
    read = backend.generate(ids, {}, 1, wanted, about="the check of the logit lens").read
    lens, score = read["lens_score"][:, -1], read["refusal_score"]
    apart = np.abs(lens - score) / (1 + np.abs(score))
    if not (apart < TOLERANCE[str(loaded.dtype).removeprefix("torch.")]).all():  # NaN is not below it
        worst = int(np.argmax(apart))
        reason = f"at the last block it gives {lens[worst]:.3f} where the score is {score[worst]:.3f}"
        raise parts.no_lens(loaded.model, reason)
