"""The only place that opens an nnsight trace: `capture` activations, `generate` under a plan, score `nll`.

The bodies of the traces are bare lines that call gating.steering.ops, the same here and on a server: what differs is
who runs them, which is the nnsight backend that `via` gives (None: this process).
"""

from __future__ import annotations

import itertools
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import nnsight
import numpy as np
import torch
import xarray as xr
from nnsight import TransformersModel
from transformers import DynamicCache, GenerationConfig

from gating import chat
from gating.errors import GatingError
from gating.models import Loaded, padding
from gating.models.parts import decoder_layers, final_modules, head_of
from gating.steering import decode, ops, preamble, scoring
from gating.steering.calls import Call, Inputs, Plan, Reading, Sampling, Scored, Via, planned
from gating.steering.edits import but_the_first
from gating.steering.lowering import Edits
from gating.steering.readouts import Entries, Generation, Readouts, collect
from gating.steering.room import Item, Result, Room, in_halves
from gating.steering.scheduler import Turn, each
from gating.steering.watch import Monitor

NO_READOUTS = Readouts()
SIGNATURE_TOKENS = 32
TOP_P = 0.95  # of sampled answers


class Backend:
    """A model behind nnsight. One process per model: traces that run here are not thread-safe.

    via: gives each trace the nnsight backend that runs it. None: all runs here, and answers are decoded and scored
    without a trace (gating.steering.decode, scoring). width: traces under way at once (one, unless they run elsewhere),
    which take turns at everything but waiting (`turn`).
    """

    def __init__(
        self, loaded: Loaded, batch_rows: int, via: Via | None = None, width: int = 1, turn: Turn | None = None
    ) -> None:
        self.loaded = loaded
        self.batch_rows = batch_rows
        self.via, self.width, self.turn = via, width, turn or Turn()
        self.room = Room()
        self.pad_id = int(loaded.tokenizer.pad_token_id)
        where = {"device": "meta"} if loaded.model.device.type == "meta" else {}  # no weights to move elsewhere
        self.lm = TransformersModel(loaded.model, tokenizer=loaded.tokenizer, task="text-generation", **where)
        self.layers = operator.attrgetter(decoder_layers(loaded.model))(self.lm)

    def each(self, do: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result]]:
        """(item, do(item)) as they come, up to `width` of them under way at once."""
        return each(do, items, self.width, self.turn)

    def capture(
        self,
        prompts: Sequence[Sequence[int]],
        positions: Sequence[str],
        responses: Sequence[Sequence[int]] | None = None,
        sides: np.ndarray | None = None,
        about: str = "prompts",
        progress: Callable[[int], None] = lambda rows: None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Residual stream resid_post at named positions, at every block, in one forward pass per batch.

        prompts: token ids; responses: ids that follow them; sides: [side, row, position], weights of each row and
        position in each side's sum, so that sums leave the model and not rows. Returns float32 [row, position, block,
        hidden], or with sides float64 [side, block, hidden]; and the median residual norm over all tokens but the first
        (an outlier in most models), float64 [block].
        """
        responses = responses or [[] for _ in prompts]
        texts = [[*p, *r] for p, r in zip(prompts, responses, strict=True)]
        if not texts:
            raise ValueError("no prompt to capture")
        weights = None if sides is None else torch.from_numpy(np.ascontiguousarray(sides, dtype="float64"))

        def capture_batch(rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
            """States of these rows (or their share of every side), and norms of inner tokens [block, token]."""
            asked, what = [texts[r] for r in rows], f"{about}, {len(rows)} of {len(texts)}"
            most = min(chat.unread(positions, len(prompts[r])) for r in rows)
            begun = 0 if self.via is not None else preamble.length(self.loaded.model, asked, most=most)
            ids, mask = chat.pad_behind(asked, begun, self.pad_id)
            lengths = [len(texts[r]) for r in rows]
            at = chat.position_weights(positions, ids.shape[1], [len(responses[r]) for r in rows], lengths)
            shares = None if weights is None else weights[:, list(rows)]
            with self.room.of("texts", len(rows)):
                read = self._read(self._inputs(ids, mask), at, shares, what, begun)
            return read["state"].numpy(), read["norm"][:, but_the_first(mask)].numpy()

        batches = self._batches(texts)
        by_batch: dict[int, list[tuple[Sequence[int], tuple[np.ndarray, np.ndarray]]]] = {}
        for i, parts in self.each(lambda i: in_halves(capture_batch, batches[i]), range(len(batches))):
            by_batch[i] = parts
            progress(len(batches[i]))
        # in the order of batches, not in that in which they came: a sum's last bit depends on it
        parts = [part for i in sorted(by_batch) for part in by_batch[i]]
        norm = np.median(np.concatenate([norms for _, (_, norms) in parts], axis=1).astype("float64"), axis=1)
        if sides is not None:
            return sum((state for _, (state, _) in parts[1:]), start=parts[0][1][0]), norm
        states = {row: state for rows, (read, _) in parts for row, state in zip(rows, read, strict=True)}
        return np.stack([states[r] for r in range(len(texts))]), norm

    def states(
        self,
        prompts: Sequence[Sequence[int]],
        edits: Edits,
        before: Mapping[int, int],
        at: Sequence[Sequence[int]],
        about: str = "rows",
    ) -> np.ndarray:
        """Residual stream of one batch under a lowered plan, where one of its edits finds it.

        before: for each block to read, how many of its edits come first; at: tokens of each row, counted from its end,
        as many in each. Returns float32 [row, position, block, hidden].
        """
        ids, mask = chat.pad_left(prompts, self.pad_id)
        weights = torch.zeros(len(prompts), len(at[0]), ids.shape[1])
        for r, tokens in enumerate(at):
            weights[r, torch.arange(len(tokens)), torch.tensor(tokens)] = 1.0
        plan = self._plan(ids, mask, edits, NO_READOUTS, None)
        return self._states(self._inputs(ids, mask), weights, plan, dict(before), about).numpy()

    def signature(self) -> xr.Dataset:
        """What tells this model from another: resid_post at the last of SIGNATURE_TOKENS fixed tokens, [layer, hidden]
        float32, with the precision that it ran in."""
        ids, mask = chat.pad_left([list(range(3, 3 + SIGNATURE_TOKENS))], self.pad_id)
        at = chat.position_weights(["last"], SIGNATURE_TOKENS, [0], [SIGNATURE_TOKENS])
        read = self._read(self._inputs(ids, mask), at, None, "the model's signature")
        attrs = {"dtype": read["dtype"].removeprefix("torch.")}
        return xr.Dataset({"signature": (("layer", "hidden"), read["state"][0, 0].numpy())}, attrs=attrs)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        edits: Edits,
        max_new_tokens: int,
        readouts: Readouts = NO_READOUTS,
        sampling: Sampling | None = None,
        about: str = "rows",
        watch: Monitor | None = None,
    ) -> Generation:
        """Decode one batch of rows under a lowered plan, greedily or with `sampling` (temperature, seed) and top_p
        0.95.

        prompts: token ids a row; edits: from lowering.lower, one entry a row; about: which rows, in words; watch: a
        monitor over their tokens. Raises GatingError for a watch where a trace runs elsewhere.
        """
        if watch is not None and watch.stops.any() and not self.loaded.end_ids:
            raise GatingError("stop: the model has no token that ends an answer, so that no row can be ended.")
        begun = 0 if self.via is not None else preamble.length(self.loaded.model, prompts, edits)
        ids, mask = chat.pad_behind(prompts, begun, self.pad_id)
        plan = self._plan(ids, mask, edits, readouts, sampling[1] if sampling else None)
        inputs = self._inputs(ids, mask)
        ids_out, packed = self._generate(inputs, plan, max_new_tokens, sampling, about, watch, begun)
        end = set(self.loaded.end_ids)
        tokens = [list(itertools.takewhile(lambda t: t not in end, row)) for row in ids_out.tolist()]
        n_probes = 0 if readouts.probes is None else readouts.probes.shape[1]
        sizes = {"step": max_new_tokens, "layer": self.loaded.n_layers, "direction": n_probes}
        return collect(tokens, packed, readouts.names, sizes)

    def _plan(self, ids: torch.Tensor, mask: torch.Tensor, edits: Edits, readouts: Readouts, seed: int | None) -> Plan:
        return planned(ids, mask, edits, readouts, head_of(self.loaded.model.config), seed)

    def nll(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], about: str = "answers"
    ) -> np.ndarray:
        """Mean negative log-likelihood of each completion under the unsteered model: [row], nats per token.

        NaN for an empty completion. exp of it is the completion's perplexity. Rows that are the same are scored once:
        under many conditions a prompt gets the very same answer.
        """
        keys = [(tuple(p), tuple(c)) for p, c in zip(prompts, completions, strict=True)]
        unique = [key for key in dict.fromkeys(keys) if key[1]]
        scored = dict(zip(unique, self._nll(unique, about), strict=True))
        return np.array([scored.get(key, np.nan) for key in keys], dtype="float32")

    def _nll(self, rows: Sequence[Scored], about: str) -> list[float]:
        if self.via is None:
            here = scoring.scores(self.loaded.model, rows, self.pad_id, self.batch_rows, self.room)
            if here is not None:
                return here
        step = scoring.rows_at_once(self.loaded.model, max((len(c) for _, c in rows), default=0))

        def score_batch(batch: Sequence[Scored]) -> list[float]:
            ids, mask = chat.pad_left([[*p, *c] for p, c in batch], self.pad_id)
            keep = max(len(c) for _, c in batch)
            targets = ids[:, -keep:]
            lengths = torch.tensor([len(c) for _, c in batch])
            scored = torch.arange(keep)[None, :] >= keep - lengths[:, None]
            return cast(list[float], self._score(self._inputs(ids, mask), keep + 1, targets, scored, about).tolist())

        def score_from(start: int) -> list[float]:
            return [nll for _, nlls in in_halves(score_batch, rows[start : start + step]) for nll in nlls]

        by_start = dict(self.each(score_from, range(0, len(rows), step)))
        return [nll for start in sorted(by_start) for nll in by_start[start]]

    def _batches(self, texts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Rows that are captured together, those of one length, or, here, of one preamble."""
        if self.via is None:
            return preamble.batches(self.loaded.model, texts, self.batch_rows)
        order = sorted(range(len(texts)), key=lambda r: len(texts[r]))
        return [order[start : start + self.batch_rows] for start in range(0, len(order), self.batch_rows)]

    def _inputs(self, ids: torch.Tensor, mask: torch.Tensor) -> Inputs:
        return {"input_ids": ids.to(self.loaded.device), "attention_mask": mask.to(self.loaded.device)}

    def _decoding(self, max_new_tokens: int, temperature: float | None) -> GenerationConfig:
        # A fresh configuration: a model's own may carry a repetition penalty or a temperature.
        how = {"do_sample": True, "temperature": temperature, "top_p": TOP_P} if temperature else {"do_sample": False}
        return GenerationConfig(
            max_new_tokens=max_new_tokens, eos_token_id=self.loaded.end_ids, pad_token_id=self.pad_id, **how
        )

    def _generate(
        self,
        enc: Inputs,
        plan: Plan,
        n: int,
        sampling: Sampling | None,
        about: str,
        watch: Monitor | None,
        begun: int = 0,
    ) -> tuple[torch.Tensor, dict[str, Entries]]:
        lm, layers, width = self.lm, self.layers, enc["input_ids"].shape[1]
        config = self._decoding(n, sampling[0] if sampling else None)
        if self.via is None:
            with self.room.of("rows", len(enc["input_ids"])):
                return decode.decode(self.loaded.model, enc, plan, config, watch, begun)
        if watch is not None:
            raise GatingError("backend: a guard or stop=label acts between tokens, which only backend=local does.")
        via = self.via(Call("generate", (enc, plan, n, sampling, self.loaded.end_ids), about))
        paths = final_modules(self.loaded.model) if "lens_score" in plan["readouts"] else ()
        final = [operator.attrgetter(path)(lm) for path in paths]
        with warnings.catch_warnings():
            # every row may end before max_new_tokens: then the loop's last steps are never reached, which is fine
            warnings.filterwarnings("ignore", message=".*never reached.*")
            with lm.generate(generation_config=config, backend=via) as tracer:
                trail: list = []
                with tracer.invoke(enc):
                    for step in tracer.iter[:n]:
                        ops.visit(lm, layers, final, plan, step, trail)
                with tracer.invoke():
                    out = nnsight.save(ops.new_tokens(tracer.result, width))
                    read = nnsight.save(ops.pack(trail))
        return out, read

    def _read(
        self, enc: Inputs, weights: torch.Tensor, sides: torch.Tensor | None, about: str, begun: int = 0
    ) -> Reading:
        """begun: tokens of a preamble, which goes through the model once."""
        if begun:
            return self._read_behind(enc, weights, sides, begun)
        lm, layers, enc = self.lm, self.layers, padding.placed(self.loaded.model, enc)
        via = self.via and self.via(Call("read", (enc, weights, sides), about))
        with torch.no_grad(), lm.trace(enc, logits_to_keep=1, backend=via):
            out = nnsight.save(ops.read(layers, weights, sides))
        return cast(Reading, out)

    def _read_behind(self, enc: Inputs, weights: torch.Tensor, sides: torch.Tensor | None, n: int) -> Reading:
        lm, layers, model, cache = (
            self.lm,
            self.layers,
            self.loaded.model,
            DynamicCache(config=self.loaded.model.config),
        )
        first = padding.placed(model, {k: x[:1, :n] for k, x in enc.items()})
        with torch.no_grad(), lm.trace(first, logits_to_keep=1, past_key_values=cache, use_cache=True):
            once = nnsight.save(ops.read(layers, weights[:1, :0, :n], None))
        rest = preamble.behind(model, enc, n, cache)
        with torch.no_grad(), lm.trace(rest, logits_to_keep=1, use_cache=True):
            out = nnsight.save(ops.read(layers, weights[:, :, n:], sides))
        norm = torch.cat([once["norm"].expand(-1, len(weights), -1), out["norm"]], dim=2)
        return cast(Reading, {**out, "norm": norm})

    def _states(
        self, enc: Inputs, weights: torch.Tensor, plan: Plan, before: dict[int, int], about: str
    ) -> torch.Tensor:
        lm, layers, enc = self.lm, self.layers, padding.placed(self.loaded.model, enc)
        via = self.via and self.via(Call("states", (enc, weights, plan, before), about))
        with torch.no_grad(), lm.trace(enc, logits_to_keep=1, backend=via):
            out = nnsight.save(ops.read_before(layers, weights, plan, before))
        return cast(torch.Tensor, out)

    def _score(self, enc: Inputs, keep: int, targets: torch.Tensor, scored: torch.Tensor, about: str) -> torch.Tensor:
        lm, enc = self.lm, padding.placed(self.loaded.model, enc)
        via = self.via and self.via(Call("score", (enc, keep, targets, scored), about))
        with torch.no_grad(), lm.trace(enc, logits_to_keep=keep, backend=via):
            out = nnsight.save(ops.mean_nll(lm.output.logits[:, :-1], targets, scored))
        return out
