"""Inspect's way in: `inspect eval EVAL --model gating/NAME -M run=RUN -M condition=NAME` answers under a condition of a
finished run; the task `gating/refusal` asks our own prompts and scores with our own judge."""

from __future__ import annotations

import math
import secrets
from typing import Any

import anyio
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessage, GenerateConfig, ModelAPI, ModelOutput, ModelUsage, modelapi
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import TaskState, generate
from inspect_ai.tool import ToolChoice, ToolInfo

from gating import prompts
from gating.errors import GatingError
from gating.judging import Item
from gating.judging.degenerate import Limits
from gating.judging.labels import LABELS
from gating.judging.own import own_judge

UNSUPPORTED = (
    "stop_seqs", "top_k", "top_p", "num_choices", "logprobs", "frequency_penalty", "presence_penalty", "logit_bias",
    "response_schema",
)  # fmt: skip


@modelapi(name="gating")
class Steered(ModelAPI):
    """A model under one condition of a finished run: model_args `run`, `condition` (baseline where none is given)."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  as Inspect's own providers
        run: str | None = None,
        condition: str = "baseline",
        **other: Any,
    ) -> None:
        from gating.serving.condition import OfRun

        super().__init__(model_name, base_url, api_key, [], config)
        if run is None or other:
            raise GatingError(
                f"model_args: {', '.join(other) or 'there is no run'}; give run=FOLDER and condition=NAME alone."
            )
        self.steered = OfRun(run, condition)
        if model_name not in (name := self.steered.study.run.model.name, self.steered.study.run.model.id):
            raise GatingError(f"model gating/{model_name}: run={run} is of {name}; say --model gating/{name}.")

    def max_tokens(self) -> int | None:
        """As many as the run's answers have, where an eval says nothing."""
        return self.steered.study.max_new_tokens

    def max_connections(self) -> int:
        return 1

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """One answer; greedy unless the eval sets a temperature. Raises GatingError for what the run has no way for."""
        asked = [name for name in UNSUPPORTED if getattr(config, name, None) is not None]
        if tools or asked:
            raise GatingError(f"gating/: {', '.join(asked) or 'tools'} cannot be had here; leave them out of the eval.")
        turns = [{"role": m.role, "content": m.text} for m in input]
        most, drawn = config.max_tokens or self.steered.study.max_new_tokens, None
        if config.temperature:
            drawn = (config.temperature, secrets.randbits(31) if config.seed is None else config.seed)
        said = await anyio.to_thread.run_sync(self.steered.answer, turns, most, drawn)
        out = ModelOutput.from_content(self.model_name, said.text, "stop" if said.ended else "max_tokens")
        n, new = len(said.prompt), len(said.tokens)
        out.usage = ModelUsage(input_tokens=n, output_tokens=new, total_tokens=n + new)
        out.metadata = {"token_ids": said.tokens, "answer_ids": said.answer}
        out.metadata["nll"] = said.nll if math.isfinite(said.nll) else None
        return out


@scorer(metrics=[mean(), stderr()])
def refused(judge: str = "learned") -> Scorer:
    """1 where a run's own judge calls the answer a refusal, else 0; its label in words is the score's answer."""
    built = own_judge(judge).build(Limits())

    async def score(state: TaskState, target: Target) -> Score:
        held = state.output.metadata or {}
        nll = math.nan if held.get("nll") is None else float(held["nll"])
        ids = tuple(held.get("answer_ids", ()))
        item = Item(state.input_text, state.output.completion, bool(state.metadata["harmful"]), ids, nll)
        (judgement,) = built.judge([item], lambda n: None)
        label = LABELS[judgement.label]
        return Score(value=int(label == "refusal"), answer=label)

    return score


@task
def refusal(harmful: bool = True, n: int | None = None, split: str = "test", judge: str = "learned") -> Task:
    """Our own harmful or harmless requests, and the rate at which they are refused."""
    name = "harmful" if harmful else "harmless"
    asked = prompts.sample(prompts.deduplicate(prompts.load(name, harmful, split))[0], n, 0)
    samples = [Sample(p.text, id=p.hash, metadata={"harmful": harmful, "category": p.category}) for p in asked]
    return Task(MemoryDataset(samples, name=f"gating {name} ({split})"), solver=generate(), scorer=refused(judge))
