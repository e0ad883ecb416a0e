"""Tiny chat models with random weights, made on the spot (`model.kind=tiny`), for tests: shapes and templates."""

from __future__ import annotations

from typing import TypedDict

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    Gemma2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from gating.errors import GatingError, choices
from gating.models import checkpoint, parts
from gating.models.base import Pretrained, Source

ARCHITECTURES = ("llama", "qwen2", "gemma2")
VERSION = "1"  # part of a run's key: raise it when the weights or the tokenizer change
SEED = 20260623
SPECIALS = ("<pad>", "<s>", "</s>", "<|turn|>", "<|end|>")
_TURNS = "{% for m in messages %}{{ '<|turn|>' + m['role'] + '\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
_CHAT = _TURNS + "{% if add_generation_prompt %}{{ '<|turn|>assistant\n' }}{% endif %}"
_FIRST_IS = "{% if messages[0]['role'] == 'system' %}"
TEMPLATES = {
    # writes BOS itself, as Llama 3's: a tokenizer that adds its own gives two
    "llama": "{{ bos_token }}" + _CHAT,
    # no BOS, and a system message of its own where none is given, as Qwen 2.5's
    "qwen2": _FIRST_IS + "{% else %}{{ '<|turn|>system\nYou are tiny.<|end|>\n' }}{% endif %}" + _CHAT,
    # no system role, as Gemma 2's
    "gemma2": "{{ bos_token }}" + _FIRST_IS + "{{ raise_exception('System role not supported') }}{% endif %}" + _CHAT,
}


class Tiny(Source):
    """A tiny model, named by its architecture."""

    def check(self) -> None:
        if self.cfg.architecture not in ARCHITECTURES:
            allowed = choices(ARCHITECTURES, self.cfg.architecture)
            raise GatingError(f"model.architecture={self.cfg.architecture!r} has no tiny model: use {allowed}.")

    def sizes(self) -> dict[str, int]:
        return checkpoint.config_sizes(config(str(self.cfg.architecture)))

    def identity(self, fetch: bool) -> dict[str, str | None]:
        return {"id": VERSION}

    def tokenizer(self, fetch: bool = False) -> PreTrainedTokenizerBase:
        return tokenizer(str(self.cfg.architecture))

    def load(self, dtype: torch.dtype) -> Pretrained:
        random_model = model(str(self.cfg.architecture))
        parts.move(random_model, dtype=dtype)
        return Pretrained(random_model, self.tokenizer())

    def skeleton(self) -> Pretrained:
        return Pretrained(checkpoint.without_weights(config(str(self.cfg.architecture))), self.tokenizer())


class _Common(TypedDict):
    vocab_size: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    pad_token_id: int
    bos_token_id: int
    eos_token_id: int


_COMMON = _Common(
    vocab_size=256 + len(SPECIALS),
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=4096,
    tie_word_embeddings=False,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)


def config(architecture: str) -> PreTrainedConfig:
    if architecture == "llama":
        return LlamaConfig(hidden_size=48, intermediate_size=96, num_hidden_layers=5, head_dim=12, **_COMMON)
    if architecture == "qwen2":
        return Qwen2Config(hidden_size=64, intermediate_size=96, num_hidden_layers=6, **_COMMON)
    return Gemma2Config(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=512,
        **_COMMON,
    )


def model(architecture: str) -> PreTrainedModel:
    """A random model, the same in every process, in float32."""
    return randomised(config(architecture), SEED)


def randomised(described: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """A random model of any configuration. The global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random_model = checkpoint.untrained(described)
        with torch.no_grad():
            # Weights large enough that every block matters and no two logits come close: text varies with the prompt.
            for name, p in sorted(random_model.named_parameters()):
                if p.dim() > 1:
                    p.normal_(0.0, 0.5 if "embed" in name else 1.0 if "lm_head" in name else 1.5 / p.shape[1] ** 0.5)
                elif "bias" in name:
                    p.normal_(0.0, 0.2)
    return random_model.eval()


def tokenizer(architecture: str) -> PreTrainedTokenizerFast:
    """One token a byte, plus the special ones; made offline."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {t: i for i, t in enumerate((*SPECIALS, *letters))}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    if architecture != "qwen2":
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokens = {"pad_token": "<pad>", "eos_token": "</s>", **({} if architecture == "qwen2" else {"bos_token": "<s>"})}
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", **tokens)
    fast.chat_template = TEMPLATES[architecture]
    return fast
