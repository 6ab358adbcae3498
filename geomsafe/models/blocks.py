"""The decoder's blocks, found by structure: what reads from the residual stream and writes to it.

A block is an entry of the one list of modules that has as many entries as the config says there are layers:
`model.layers` of Llama, Qwen, Gemma and Phi, `transformer.h` of GPT-2. Inside it, what is neither norm nor dropout
writes to the stream; where a norm follows it (Gemma 2 and 3), that norm does.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from geomsafe.errors import ModelError

_POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
_BEFORE_FEEDFORWARD = "pre_feedforward_layernorm"


def decoder_blocks(model: Any) -> list[nn.Module]:
    """Find the blocks of a decoder, in their order.

    Args:
        model: a causal LM of transformers, also one that peft has wrapped.

    Returns:
        One module a layer; its first argument is the residual stream, and so is (the first of) what it returns.

    Raises:
        ModelError: no list of modules has as many entries as the model has layers.
    """
    base = plain(model)
    count = getattr(base.config.get_text_config(), "num_hidden_layers", None)
    # The outermost comes first: lists of experts stand inside the blocks.
    for module in base.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise ModelError(
        f"{type(base).__name__} has no list of {count} blocks: its residual stream cannot be read, "
        "directions are measured on decoders of transformers only"
    )


def backbone(model: Any) -> Any:
    """Return the model without its head: the residual stream needs no logits."""
    return plain(model).base_model


def writers(block: nn.Module) -> list[nn.Module]:
    """Return the parts of a block whose outputs are added to the residual stream."""
    parts = dict(block.named_children())
    if _BEFORE_FEEDFORWARD in parts:
        return [parts[name] for name in _POST_NORMS if name in parts]
    return [part for name, part in parts.items() if not _is_norm(name, part) and any(True for _ in part.parameters())]


def plain(model: Any) -> Any:
    """Return the transformers model inside a peft model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _is_norm(name: str, part: nn.Module) -> bool:
    return "norm" in type(part).__name__.lower() or name.startswith("ln_")
