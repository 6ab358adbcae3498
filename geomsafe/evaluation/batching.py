"""Which models may share a batch, and beginnings within it, without one row changing another's numbers."""

from __future__ import annotations

import inspect
from typing import Any

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

SHARING = frozenset({
    "cohere", "gemma", "gemma2", "gemma3_text", "glm", "gpt2", "gpt_neox", "granite", "llama", "mistral", "mixtral",
    "olmo", "olmo2", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "stablelm", "starcoder2",
})  # fmt: skip
"""Architectures that take every distance from position_ids: padding between a beginning and its rest is unseen.
Others (ALiBi, local attention by place) count places in the cache."""


def may_share_beginnings(base: Any) -> bool:
    """Return whether prompts may be read with padding between a shared beginning and the rest.

    Args:
        base: a causal LM of transformers, not wrapped.

    Returns:
        True for architectures known to place tokens by position alone, without a window in any layer.
    """
    if base.config.model_type not in SHARING:
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=base.config).layers)


def goes_alone(base: Any, tokens: int) -> bool:
    """Return whether each prompt has to be decoded by itself, without padding.

    Args:
        base: a causal LM of transformers, not wrapped.
        tokens: longest prompt and answer together.

    Returns:
        True for models without position_ids (padding moves ALiBi's distances and makes NaN of masked rows), and for
        rotary scalings that look at the longest row ("dynamic", "longrope") where rows reach beyond the length at
        which they set in.
    """
    if "position_ids" not in inspect.signature(base.forward).parameters:
        return True
    config = base.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") not in {"dynamic", "longrope"}:
        return False
    before = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    return tokens > int(before or config.max_position_embeddings)
