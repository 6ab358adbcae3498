"""How many rows decode together within the memory there is."""

from __future__ import annotations

import gc
from typing import Any

import torch

SHARE = 0.6
"""Share of the free memory that a batch may plan with; the rest is for what the estimate leaves out."""


def rows_that_fit(model: Any, tokens: int) -> int:
    """Estimate how many rows of a length decode together.

    A row holds keys and values of every layer, `2 x layers x key-value heads x head size x tokens` numbers, once
    more while rows are dropped from the cache, and for its prompt the widest activations of one layer.

    Args:
        model: a causal LM of transformers.
        tokens: of prompt and answer together.

    Returns:
        The number of rows, at least 1.
    """
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    width = max(config.hidden_size * 4, getattr(config, "intermediate_size", None) or 0)
    numbers = tokens * (2 * 2 * config.num_hidden_layers * shared * head_size + 4 * width) + 4 * config.vocab_size
    size = next(model.parameters()).element_size()
    return max(1, int(SHARE * free_bytes(model.device) / (numbers * size)))


def free_bytes(device: torch.device) -> int:
    """Return the bytes that are free on a device, those that torch holds in reserve included."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    import psutil

    return int(psutil.virtual_memory().available)


def release_memory() -> None:
    """Give back what is no longer used, after a batch that did not fit."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
