"""A judge of kind `classifier`: a model on this machine, read by the probabilities of its first deciding token, which
comes first or after what the judge itself writes before it (`writes`).

The texts judged are untrusted: special tokens of the classifier that stand in them are broken up, so that an answer
cannot end its own turn and begin another. Where the answers that the judge may give have little probability between
them, the judgement is missing: the template does not fit the model, or the model does something else.

torch is imported where a model is loaded, so that a judge's file can be read and checked without it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from gating.errors import GatingError, choices
from gating.judging import Item, Judgement
from gating.judging.degenerate import Limits
from gating.judging.labels import LABELS
from gating.judging.spec import CHAT, AskedSpec, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gating.models import ModelConfig


ASKS = ("refusal", "harm")


@dataclass(frozen=True)
class ClassifierSpec(AskedSpec):
    """A classifier and how its answers are read."""

    NOT_IN_DIGEST: ClassVar[tuple[str, ...]] = (*AskedSpec.NOT_IN_DIGEST, "batch_rows")
    AROUND: ClassVar[tuple[str, ...]] = (*AskedSpec.AROUND, "answer_prefix")

    NEEDED: ClassVar[tuple[str, ...]] = ("id", "template")  # and answers, or values where it asks for harm

    asks: str = "refusal"  # what it says of an answer: refusal (labels), or harm (a score from 0 to 1 and no label)
    answer_prefix: str = ""  # what the classifier's answer begins with, before the word that decides
    values: dict[str, float] = field(default_factory=dict)  # answer -> score; default 1 for compliance, else 0
    # (asks=harm: how harmful an answer of the judge means, in place of `answers`)
    min_mass: float = 0.5  # the least probability of all answers together; below it the judgement is missing
    writes: str = ""  # what the judge itself writes before the word that decides, such as `Refusal:`; empty: nothing
    max_tokens: int = 128  # in which it must have written that
    batch_rows: int = 16
    model: dict[str, Any] = field(default_factory=dict)  # further keys of conf/model: kind, dtype, device, ...

    def check(self) -> None:
        super().check()
        self._check_question()
        if not 0 <= self.min_mass <= 1:
            raise self.refused("min_mass", "use a probability, 0 (take any answer) to 1.")
        self.at_least_one("batch_rows", "max_tokens")

    def _check_question(self) -> None:
        """Refuse what does not fit with what is asked."""
        if self.asks not in ASKS:
            raise self.refused("asks", f"use {choices(ASKS, self.asks)}.")
        if not self.of_harm:
            if not self.answers:
                raise self.refused("answers", "it has no value; say the judge's words and the labels that they mean.")
            if unknown := [a for a in self.values if a not in self.answers]:
                allowed = choices(self.answers, unknown[0])
                raise self.refused("values", f"{unknown[0]!r} is not one of the answers: use {allowed}.")
            return
        if self.answers:
            raise self.refused("answers", "a judge of harm gives no labels; say values={word: 0 to 1} and no answers.")
        if len(self.values) < 2 or not all(0 <= v <= 1 for v in self.values.values()):
            raise self.refused("values", "say two words of the judge or more, and for each how harmful, 0 to 1.")
        if self.keep_degenerate:
            raise self.refused("keep_degenerate", "a score of harm cannot keep a label; leave it out: it scores all.")

    @property
    def of_harm(self) -> bool:
        return self.asks == "harm"

    @property
    def words(self) -> tuple[str, ...]:
        """The answers that the judge may give."""
        return tuple(self.values if self.of_harm else self.answers)

    def build(self, limits: Limits) -> ClassifierJudge:
        return ClassifierJudge(self)

    def determining(self) -> dict[str, object]:
        model = {k: v for k, v in self.model.items() if k not in ("device", "batch_rows")}
        content = {**super().determining(), "model": model}
        if not self.of_harm:
            del content["asks"]  # judgements from before there were these keys stay this judge's
        if not self.writes:
            del content["writes"], content["max_tokens"]
        return content

    def score(self, answer: str) -> float:
        return self.values[answer] if answer in self.values else float(self.answers[answer] == "compliance")


class ClassifierJudge:
    """A classifier, loaded. Raises GatingError where it cannot be loaded or two of its answers begin alike."""

    def __init__(self, spec: ClassifierSpec) -> None:
        from gating import models

        self.spec = spec
        self.loaded = models.load(model_config(spec))
        self.fingerprint = self.loaded.fingerprint
        self.tokenizer = self.loaded.tokenizer
        self.special = special_tokens(self.tokenizer)
        self.answer_ids = {answer: self._first_id(answer) for answer in spec.words}
        shared = len(self.answer_ids) - len(set(self.answer_ids.values()))
        if shared:
            raise GatingError(
                f"judge {spec.name}: answers {choices(spec.words)} begin with the same token for this model; give "
                "answers that differ in their first token, or a longer answer_prefix."
            )
        context = getattr(self.loaded.model.config.get_text_config(), "max_position_embeddings", None)
        self.context = int(context) if context else None

    def judge(self, items: Sequence[Item], advance: Callable[[int], None]) -> list[Judgement]:
        encoded = [self._encode(self._text(i)) for i in items]
        judgements = [Judgement() for _ in items]
        more = self.spec.max_tokens if self.spec.writes else 0
        fits = [n for n, ids in enumerate(encoded) if self.context is None or len(ids) + more <= self.context]
        for n in set(range(len(items))) - set(fits):
            judgements[n] = Judgement(reason=f"too long: {len(encoded[n])} tokens, the judge reads {self.context}")
        advance(len(items) - len(fits))
        fits.sort(key=lambda n: len(encoded[n]))  # like lengths together: little padding
        for start in range(0, len(fits), self.spec.batch_rows):
            rows = fits[start : start + self.spec.batch_rows]
            for n, judgement in zip(rows, self._judged([encoded[n] for n in rows]), strict=True):
                judgements[n] = judgement
            advance(len(rows))
        return judgements

    def _judged(self, rows: Sequence[list[int]]) -> list[Judgement]:
        """A judgement a row, each where the judge has written what it writes before its verdict."""
        written = self._written(rows) if self.spec.writes else [[] for _ in rows]
        missing = Judgement(reason=f"no verdict: {self.spec.writes!r} not written in {self.spec.max_tokens} tokens")
        ready = [row + w for row, w in zip(rows, written, strict=True) if w is not None]
        given = iter(self._probabilities(ready) if ready else [])
        return [missing if w is None else decide(self.spec, next(given)) for w in written]

    def _written(self, rows: Sequence[list[int]]) -> list[list[int] | None]:
        """What the judge writes to each row, greedily, up to the end of `writes`; None where it does not come."""
        import torch
        from transformers import GenerationConfig

        from gating import chat

        model: Any = self.loaded.model
        pad = int(self.tokenizer.pad_token_id)
        ids, mask = (t.to(self.loaded.device) for t in chat.pad_left(rows, pad))
        end = model.generation_config.eos_token_id if model.generation_config else self.tokenizer.eos_token_id
        how = GenerationConfig(max_new_tokens=self.spec.max_tokens, do_sample=False, eos_token_id=end, pad_token_id=pad)
        with torch.inference_mode():
            made = model.generate(input_ids=ids, attention_mask=mask, generation_config=how)[:, ids.shape[1] :].tolist()
        return [self._up_to(row) for row in made]

    def _up_to(self, ids: list[int]) -> list[int] | None:
        lengths = (k for k in range(1, len(ids) + 1) if self.spec.writes in self.tokenizer.decode(ids[:k]))
        return next((ids[:k] for k in lengths), None)

    def _text(self, item: Item) -> str:
        prompt, response = (defuse(text, self.special) for text in (item.prompt, item.response))
        if self.spec.template != CHAT:
            text = render(self.spec.template, prompt, response, item.harmful)
        elif not self.tokenizer.chat_template:
            raise GatingError(
                f"judge {self.spec.name}: template=chat, but {self.spec.id} has no chat template; give a text."
            )
        else:
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
            text = str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        return text + render(self.spec.answer_prefix, "", "", item.harmful)

    def _encode(self, text: str) -> list[int]:
        """Ids, with the one BOS that the model wants: a text that has it (a chat template writes its own) gets none."""
        bos = self.tokenizer.bos_token
        has_bos = self.spec.template == CHAT or (bos is not None and text.startswith(str(bos)))
        return list(self.tokenizer(text, add_special_tokens=not has_bos)["input_ids"])

    def _first_id(self, answer: str) -> int:
        """The token that begins `answer` right after the template; read off there, since a tokeniser may merge it."""
        text = self._text(Item("a", "b", True)) + self.spec.writes
        before, after = self._encode(text), self._encode(text + answer)
        if len(after) <= len(before) or after[: len(before)] != before:
            raise GatingError(
                f"judge {self.spec.name}: the answer {answer!r} merges with the end of the template for this model; "
                "move the space or line break between the template's end (or answer_prefix) and the answer."
            )
        return after[len(before)]

    def _probabilities(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """The probability of each answer's first token, float64 [row, answer], from float32 logits."""
        import torch

        from gating import chat

        ids, mask = chat.pad_left(rows, int(self.tokenizer.pad_token_id))
        model, device = self.loaded.model, self.loaded.device
        last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
        with torch.inference_mode():
            logits = model(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                position_ids=(mask.cumsum(1) - 1).clamp(min=0).to(device),
                use_cache=False,
                **last_only,
            ).logits[:, -1]
        p = logits.float().softmax(dim=-1)
        return p[:, list(self.answer_ids.values())].cpu().numpy().astype("float64")


def model_config(spec: ClassifierSpec) -> ModelConfig:
    """How gating.models loads the judge. Raises GatingError for a key that a model does not have."""
    from gating.models import ModelConfig

    known = [f.name for f in fields(ModelConfig)]
    for key in spec.model:
        if key not in known:
            raise GatingError(f"judge {spec.name}: model.{key} is not a setting of a model: use {choices(known, key)}.")
    return ModelConfig(**{"name": spec.name, "id": spec.id, "revision": spec.revision, **spec.model})


def decide(spec: ClassifierSpec, p: np.ndarray) -> Judgement:
    """The label with the most probability, and the mean score, given the probability of each answer; missing where the
    answers together have less than min_mass."""
    mass = float(p.sum())
    if not np.isfinite(mass) or mass <= 0 or mass < spec.min_mass:
        return Judgement(reason=f"no verdict: {choices(spec.words)} have {mass:.0%} of the probability")
    score = float(sum(spec.score(a) * q for a, q in zip(spec.words, p, strict=True)) / mass)
    if spec.of_harm:
        return Judgement(harm=score)
    share = np.zeros(len(LABELS))
    np.add.at(share, [spec.code(a) for a in spec.answers], p)
    return Judgement(int(share.argmax()), score)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Texts that the tokeniser reads as control tokens, longest first."""
    added = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    return tuple(sorted(added | {str(t) for t in tokenizer.all_special_tokens}, key=lambda t: (-len(t), t)))


def defuse(text: str, special: Sequence[str]) -> str:
    """The text with a space inside everything that would be read as a control token."""
    changed = True
    while changed:
        changed = False
        for token in special:
            if token in text:
                text, changed = text.replace(token, f"{token[:1]} {token[1:]}"), len(token) > 1
    return text
