"""Tiny random models of many families, from transformers' own configurations: what they share, and what each needs."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from gating.models import tiny

SHARED: dict[str, Any] = {
    "vocab_size": 261,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
DEEPSEEK = {
    "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
    "first_k_dense_replace": 1,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}
# What a family needs beside SHARED.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "qwen3_moe": {"head_dim": 8, **EXPERTS},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0},
    "mistral": {"head_dim": 8},
    "mixtral": EXPERTS,
    "phi": {},
    "phi3": {},
    "olmo2": {},
    "granite": {"logits_scaling": 7.0, "residual_multiplier": 0.4, "embedding_multiplier": 9.0},
    "cohere": {"logit_scale": 0.25},
    "glm4": {"head_dim": 8},
    "gpt_oss": {"head_dim": 8, **EXPERTS},
    "deepseek_v3": {"num_key_value_heads": 4, **DEEPSEEK},
    "smollm3": {},
    "starcoder2": {},
    "stablelm": {},
    "llama4_text": {"head_dim": 8, "intermediate_size_mlp": 48, **EXPERTS},
    "falcon": {"ffn_hidden_size": 48},
    "falcon_h1": {"lm_head_multiplier": 0.3, "head_dim": 8, "mamba_d_ssm": 32, **MAMBA},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "gpt_neox": {},
    "gpt2": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {},
    "mamba": {"state_size": 4},
    "hyperclovax": {"head_dim": 8, "logits_scaling": 0.2},
}


MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
TOWER = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
IMAGES = {"image_size": 28, "patch_size": 14}
# Models that see images too, which are asked with text alone: their text decoder, and their tower for images.
SEEING: dict[str, dict[str, Any]] = {
    "qwen2_vl": {
        "text_config": {**SHARED, "rope_parameters": MROPE},
        "vision_config": {"depth": 4, "embed_dim": 16, "num_heads": 2, "hidden_size": 32},
    },
    "gemma3": {"text_config": {**SHARED, "head_dim": 8}, "vision_config": {**TOWER, **IMAGES}},
    "llava": {
        "text_config": {"model_type": "llama", **SHARED},
        "vision_config": {"model_type": "clip_vision_model", **TOWER, **IMAGES},
    },
}


def config(family: str) -> PreTrainedConfig:
    """A tiny configuration of a family."""
    made: PreTrainedConfig = AutoConfig.for_model(
        family, **(SEEING.get(family) or {**SHARED, **FAMILIES.get(family, {})})
    )
    return made


def model(family: str) -> PreTrainedModel:
    """A random model of it."""
    return tiny.randomised(config(family), 1)
