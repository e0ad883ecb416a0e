"""Small chat models whose truth is known (`model.kind=planted`): the control of the whole instrument.

They know the shipped prompts and the shipped personas' instructions by heart, each as one token, and nothing else:
every other request is answered. gating/models/circuits.py has what is written into their weights.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from gating import personas, prompts
from gating.errors import GatingError, choices
from gating.models import checkpoint, circuits, parts
from gating.models.base import Pretrained, Source

VERSION = "1"  # part of a run's key: raise it when the weights change
PERSONA = "compliant"  # the one that the circuits read
UNKNOWN = "<unk>"
SPECIALS = ("<pad>", "<s>", "</s>", UNKNOWN, "<|system|>", "<|user|>", circuits.HEADER)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


class PlantedModel(Source):
    """A planted model, named by its kind (model.architecture) and its draw (model.id: a whole number, null is 0)."""

    def check(self) -> None:
        if self.cfg.architecture not in circuits.KINDS:
            allowed = choices(circuits.KINDS, self.cfg.architecture)
            raise GatingError(f"model.architecture={self.cfg.architecture!r} is no planted model: use {allowed}.")
        if self.cfg.id is not None and not (self.cfg.id.isascii() and self.cfg.id.isdigit() and len(self.cfg.id) < 10):
            raise GatingError(f"model.id={self.cfg.id!r}: a planted model's id is its draw, a whole number from 0 on.")

    @property
    def _planted(self) -> circuits.Planted:
        return circuits.planted(str(self.cfg.architecture), int(self.cfg.id or 0))

    def sizes(self) -> dict[str, int]:
        return checkpoint.config_sizes(circuits.config(len(vocabulary())))

    def identity(self, fetch: bool) -> dict[str, str | None]:
        known = hashlib.sha256(json.dumps([vocabulary(), instructions()]).encode()).hexdigest()[:12]
        return {"id": f"{VERSION}-{known}-{self._planted.draw}"}

    def tokenizer(self, fetch: bool = False) -> PreTrainedTokenizerBase:
        return tokenizer()

    def load(self, dtype: torch.dtype) -> Pretrained:
        written = circuits.build(self._planted, vocabulary(), *texts(), instructions())
        parts.move(written, dtype=dtype)
        return Pretrained(written, tokenizer())

    def skeleton(self) -> Pretrained:
        return Pretrained(checkpoint.without_weights(circuits.config(len(vocabulary()))), tokenizer())


@cache
def texts() -> tuple[list[str], list[str]]:
    """The shipped prompts: harmful ones, and the others."""
    sets: tuple[list[str], list[str]] = ([], [])
    for name in prompts.SHIPPED[:3]:
        harmful = name == "harmful"
        for split in prompts.SPLITS[:3]:
            sets[not harmful].extend(dict.fromkeys(p.text for p in prompts.load(name, harmful, split)))
    return sets


@cache
def instructions() -> dict[str, float]:
    """The shipped personas' instructions: 1 for the persona that the circuits read, -1 against it, 0 for others."""
    read = personas.load(PERSONA)
    signs = dict.fromkeys(read.positive, 1.0) | dict.fromkeys(read.negative, -1.0)
    shipped = [personas.load(name) for name in personas.available()]
    return {text: signs.get(text, 0.0) for p in shipped for text in (*p.positive, *p.negative)}


@cache
def vocabulary() -> dict[str, int]:
    """Token -> id: special tokens, the words of answers, and every text that is known by heart."""
    harmful, harmless = texts()
    return {
        t: i
        for i, t in enumerate(dict.fromkeys((*SPECIALS, *circuits.ANSWER_WORDS, *harmful, *harmless, *instructions())))
    }


@cache
def _backend() -> str:
    """The tokenizer as text: words, and texts known by heart, the longest first."""
    vocab, (harmful, harmless) = vocabulary(), texts()
    backend = Tokenizer(models.WordLevel(vocab=vocab, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    backend.add_tokens([AddedToken(t, normalized=False) for t in (*harmful, *harmless, *instructions())])
    return backend.to_str()


def tokenizer() -> PreTrainedTokenizerFast:
    named = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>", "unk_token": UNKNOWN}
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_backend()), padding_side="left", **named)
    fast.chat_template = TEMPLATE
    return fast
