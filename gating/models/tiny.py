"""Tiny chat models with random weights, made on the spot: every architecture's shapes and templates, for tests."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

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
_COMMON: dict[str, Any] = {
    "vocab_size": 256 + len(SPECIALS),
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 5, "head_dim": 12},
    "qwen2": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6},
    "gemma2": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "head_dim": 16},
}


def bare(architecture: str) -> PreTrainedModel:
    """A model of the right shape, its weights whatever transformers starts from."""
    shape = {**_COMMON, **_SHAPES[architecture]}
    if architecture == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape))
    if architecture == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**shape))
    # Gemma 2 caps its attention scores, which only the eager kernel does.
    more: dict[str, Any] = {"query_pre_attn_scalar": 16, "sliding_window": 512, "attn_implementation": "eager"}
    return Gemma2ForCausalLM(Gemma2Config(**shape, **more))


def model(architecture: str) -> PreTrainedModel:
    """A random model, the same in every process, in float32. The global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        made = bare(architecture)
        with torch.no_grad():
            # Weights large enough that every block matters and no two logits come close: text varies with the prompt.
            for name, p in sorted(made.named_parameters()):
                if p.dim() > 1:
                    p.normal_(0.0, 0.5 if "embed" in name else 1.0 if "lm_head" in name else 1.5 / p.shape[1] ** 0.5)
                elif "bias" in name:
                    p.normal_(0.0, 0.2)
    return made.eval()


def sizes(architecture: str) -> dict[str, int]:
    shape = {**_COMMON, **_SHAPES[architecture]}
    head = shape.get("head_dim") or shape["hidden_size"] // shape["num_attention_heads"]
    return {
        "layers": int(shape["num_hidden_layers"]),
        "hidden": int(shape["hidden_size"]),
        "parameters": sum(p.numel() for p in model(architecture).parameters()),
        "kv_heads": int(shape["num_key_value_heads"]),
        "head_dim": int(head),
        "vocab": int(shape["vocab_size"]),
    }


def tokenizer(architecture: str) -> PreTrainedTokenizerFast:
    """One token a byte, plus the special ones; made offline."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {t: i for i, t in enumerate((*SPECIALS, *letters))}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    if architecture != "qwen2":
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokens = {"pad_token": "<pad>", "eos_token": "</s>", **({} if architecture == "qwen2" else {"bos_token": "<s>"})}
    fast = PreTrainedTokenizerFast(tokenizer_object=made, padding_side="left", **tokens)
    fast.chat_template = TEMPLATES[architecture]
    return fast
