"""Decoding on this machine: transformers' forward under plain hooks, in which a row that has ended leaves the batch.

The hooks do what a trace does (gating.steering.ops), so that tokens are the same wherever a plan runs; a trace that is
sent elsewhere decodes in transformers' own loop, where rows that have ended are computed until the last one has.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from nnsight.intervention.source import Controller
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

from gating.models.parts import decoder_blocks, final_modules
from gating.steering import ops, prefill
from gating.steering.calls import Inputs, Plan
from gating.steering.lowering import Edit, Edits
from gating.steering.preamble import Preamble, kinds
from gating.steering.readouts import Entries
from gating.steering.watch import Monitor

BY_ROW = ("write", "measure", "strength", "target", "of")  # of an edit; its gate is by row too
Trail = list[tuple[str, int, torch.Tensor]]  # readout, block, value [row, ...]


def decode(
    model: PreTrainedModel,
    enc: Inputs,
    plan: Plan,
    config: GenerationConfig,
    watch: Monitor | None = None,
    preamble: int = 0,
) -> tuple[torch.Tensor, dict[str, Entries]]:
    """New token ids [row, new] int32, pads behind a row's end, and what ops.pack gives of the readouts. watch: a
    monitor that reads every generated token, after the plan's edits. preamble: tokens that all rows begin with, behind
    which their pads stand."""
    rows, width = enc["input_ids"].shape
    of = kinds(plan["edits"], rows) if preamble else []
    paths = final_modules(model) if "lens_score" in plan["readouts"] else ()
    final = [model.get_submodule(path) for path in paths]
    live, prompt = torch.arange(rows, device=model.device), prefill.numbers(plan["ids"], plan["prompt_mask"])
    run = _Decoding(model, _on(plan, model.device), final, live, rows, prompt, watch)
    if preamble and max(of) + 1 < rows:
        run.preamble = _preamble(model, run.plan, preamble, of)
    with unwrapped(model), run.hooks():
        ids = run.model.generate(**enc, generation_config=config, custom_generate=run.loop)
    return ops.new_tokens(ids, width), ops.pack(run.trail)


@contextmanager
def unwrapped(model: PreTrainedModel) -> Iterator[None]:
    """nnsight's part of every module's call is left out while this is entered: 400 of them take milliseconds a step."""
    held = [(m.__dict__, forward) for m in model.modules() for forward in [m.__dict__.get("forward")]
            if isinstance(forward, Controller) and forward.state.body is type(m).forward]  # fmt: skip
    for own, _ in held:
        del own["forward"]
    try:
        yield
    finally:
        for own, forward in held:
            own["forward"] = forward


@dataclass
class _Decoding:
    """One batch under way. live: the numbers of the rows that are still decoded, of `rows` at first; prompt: the
    number of each row's prompt."""

    model: Any
    plan: Plan
    final: list[torch.nn.Module]
    live: torch.Tensor
    rows: int
    prompt: list[int]
    watch: Monitor | None = None
    step: int = 0
    preamble: Preamble | None = None
    trail: Trail = field(default_factory=list)

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """The plan's blocks edit and read their output while this is entered."""
        blocks = decoder_blocks(self.model)
        handles = [blocks[b].register_forward_hook(self._hook(b)) for b in ops.visited(self.plan, 0)]
        watched = () if self.watch is None else self.watch.layers
        handles += [blocks[b].register_forward_hook(self._watched(b)) for b in watched]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, block: int) -> Any:
        def hook(module: torch.nn.Module, args: object, output: Any) -> Any:
            begun, h = self.preamble, ops.stream(output)
            if begun is not None and begun.reading:
                begun.streams[block] = h
                return ops.at_block(output, block, self.final, begun.plan, 0, [])
            read: Trail = []
            alone = len(h) == len(self.live)  # else a row for each prompt
            if begun is not None and not self.step:
                of = begun.of if alone else begun.of[prefill.firsts(self.prompt)]
                whole = ops.at_block(begun.whole(block, h, of), block, self.final, self.plan, 0, read)[:, begun.n :]
                after = (whole, *output[1:]) if isinstance(output, tuple) else whole
            else:
                after = ops.at_block(output, block, self.final, self.plan, self.step, read)
            self._keep(read if alone else [(name, b, value[self.prompt]) for name, b, value in read])
            return after

        return hook

    def _watched(self, block: int) -> Any:
        def hook(module: torch.nn.Module, args: object, output: Any) -> Any:
            if self.watch is None or not self.step:
                return None
            h = self.watch.read(block, ops.stream(output), self.live)
            return output if h is None else (h, *output[1:]) if isinstance(output, tuple) else h

        return hook

    def _keep(self, read: Trail) -> None:
        """Readings of the rows that are live, with NaN for the others."""
        for name, block, value in read:
            if len(value) < self.rows:
                whole = value.new_full((self.rows, *value.shape[1:]), torch.nan)
                whole[self.live.cpu()] = value
                value = whole
            self.trail.append((name, block, value))

    def _prefill(self, asked: dict[str, Any]) -> Any:
        """The whole prompt: what all rows begin with is computed once for each kind of edits, and below the first edit
        what rows of one prompt share once."""
        blocks, shared = decoder_blocks(self.model), min(self.plan["edits"], default=0)
        plain = can_leave(self.model, asked, self.rows)
        if not plain or asked.get("position_ids") is None:
            self.preamble = None
        if self.preamble is not None:
            self.preamble.read(self.model, asked)
        if shared and plain and prefill.fits(asked, blocks, len(set(self.prompt))):
            try:
                of = torch.tensor(self.prompt, device=self.live.device)
                return prefill.once(self.model, self._behind(asked, shared), blocks, shared, of)
            except prefill.Apart:
                self.trail.clear()
        return self.model(**self._behind(asked, 0), return_dict=True)

    def _behind(self, asked: dict[str, Any], shared: int) -> dict[str, Any]:
        """What the model is asked behind the preamble, with a cache of its own. shared: the first blocks, which see
        each prompt once."""
        if self.preamble is None:
            return {**asked, "past_key_values": copy.deepcopy(asked["past_key_values"])} if shared else asked
        of = self.preamble.of
        each = [of[prefill.firsts(self.prompt)] if b < shared else of for b in range(len(self.preamble.cache.layers))]
        return self.preamble.rest(asked, self.model.config, each)

    def loop(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **inputs: Any,
    ) -> torch.Tensor:
        """In the place of transformers' own decoding loop: token ids [row, token] of prompts and answers."""
        if self.plan["seed"] is not None:
            torch.manual_seed(self.plan["seed"])
        ids, new, pad = input_ids, [], generation_config._pad_token_tensor.to(input_ids.device)
        ended = torch.zeros(self.rows, dtype=torch.bool, device=ids.device)  # of the rows that are live
        while True:
            asked = model.prepare_inputs_for_generation(
                ids,
                next_sequence_length=1 if self.step and inputs["use_cache"] else None,
                is_first_iteration=self.step == 0,
                **inputs,
            )
            given = model(**asked, return_dict=True) if self.step else self._prefill(asked)
            inputs = model._update_model_kwargs_for_generation(given, inputs)
            logits = given.logits[:, -1].to(ids.device, torch.float32, copy=True)
            del given  # the logits of a whole prompt may be large
            read: Trail = []
            ops.at_end(logits, self.plan, self.step, read)
            self._keep(read)
            scores = logits_processor(ids, logits)
            token = self._drawn(scores) if generation_config.do_sample else scores.argmax(-1)
            if self.watch is not None and self.step:
                stops = self.watch.settle(self.live, ids[:, input_ids.shape[1] :], ended)
                if stops.any():
                    end = generation_config._eos_token_tensor[0].to(ids.device)
                    token = torch.where(stops.to(ids.device), end, token)
            token = torch.where(ended, pad, token)
            new.append(pad.repeat(self.rows).index_copy(0, self.live, token))
            ids, self.step = torch.cat([ids, token[:, None]], dim=-1), self.step + 1
            ended = ended | stopping_criteria(ids, None)
            n = int(ended.sum())
            if n == len(ended):
                return torch.cat([input_ids, torch.stack(new, dim=1)], dim=1)
            if n and can_leave(model, inputs, len(ended)):
                stays = (~ended).nonzero()[:, 0]
                self.live, ended, ids = self.live[stays], ended[stays], ids[stays]
                inputs, self.plan = _left(inputs, stays), _plan_of(self.plan, stays)

    def _drawn(self, scores: torch.Tensor) -> torch.Tensor:
        """One token a row. A number is drawn for every row of the batch, live or not, so that a row's draws do not
        depend on when others end."""
        whole = scores.new_ones(self.rows, scores.shape[1])
        whole[self.live] = scores.softmax(-1)
        return torch.multinomial(whole, 1)[self.live, 0]


def can_leave(model: PreTrainedModel, inputs: dict[str, Any], rows: int) -> bool:
    """Whether all that a family keeps between steps is a cache by row and inputs [row, token]. Where it is not, a row
    that has ended stays, and pads are read in."""
    tensors = [x for x in inputs.values() if isinstance(x, torch.Tensor)]
    plain = all(x.ndim == 2 and len(x) == rows for x in tensors)
    return plain and isinstance(inputs.get("past_key_values"), DynamicCache) and not model._is_stateful


def _left(inputs: dict[str, Any], stays: torch.Tensor) -> dict[str, Any]:
    inputs["past_key_values"].reorder_cache(stays)
    return {k: _rows(x, stays) if isinstance(x, torch.Tensor) else x for k, x in inputs.items()}


def _rows(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return x.index_select(0, rows.to(x.device))


def _plan_of(plan: Plan, rows: torch.Tensor) -> Plan:
    """Some rows of a plan, after step 0: masks, and the rows that others are led to, are of no use any more."""
    edits = {b: [edit_of(edit, rows) for edit in of_block] for b, of_block in plan["edits"].items()}
    return {**plan, "edits": edits, "kept": {k: _rows(x, rows) for k, x in plan["kept"].items()}}


def _preamble(model: PreTrainedModel, plan: Plan, n: int, of: Sequence[int]) -> Preamble:
    """Of a batch's plan: what edits one row of each kind at the preamble's n tokens, where nothing is read."""
    there = torch.ones(max(of) + 1, n, dtype=torch.int64)
    rows = torch.tensor(prefill.firsts(of))
    edits = {b: [edit_of(edit, rows) for edit in of_block] for b, of_block in plan["edits"].items()}
    alone = {"edits": edits, "readouts": (), "prompt_mask": there, "last_mask": torch.zeros_like(there), "kept": {}}
    return Preamble(n, torch.tensor(of), cast(Plan, {**plan, **alone}), DynamicCache(config=model.config))


def edit_of(edit: Edit, rows: torch.Tensor) -> Edit:
    """Some rows of an edit, in the order given."""
    of_rows = {k: None if edit[k] is None else _rows(edit[k], rows) for k in BY_ROW}  # type: ignore[literal-required]
    gate = None if edit["gate"] is None else tuple(_rows(x, rows) for x in edit["gate"])
    return cast(Edit, {**edit, **of_rows, "gate": gate})


def placed(edits: Edits, device: torch.device) -> Edits:
    """Edits where the model is, instead of a copy at every step; `of` is asked for by the host."""

    def one(edit: Edit) -> Edit:
        moved = {k: x if x is None or k == "of" else x.to(device) for k in BY_ROW for x in [edit[k]]}  # type: ignore[literal-required]
        gate = None if edit["gate"] is None else tuple(x.to(device) for x in edit["gate"])
        return cast(Edit, {**edit, **moved, "gate": gate})

    return {b: [one(edit) for edit in of_block] for b, of_block in edits.items()}


def _on(plan: Plan, device: torch.device) -> Plan:
    probes = {b: p.to(device) for b, p in plan["probes"].items()}
    return {**plan, "edits": placed(plan["edits"], device), "probes": probes}
