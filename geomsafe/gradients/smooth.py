"""Run a model on plain kernels: those that can be differentiated twice, and those whose products are seen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn import Module
from torch.nn.attention import SDPBackend, sdpa_kernel

_ATTENTION, _EXPERTS = "_attn_implementation_internal", "_experts_implementation_internal"


@contextmanager
def smooth_kernels(model: Module) -> Iterator[None]:
    """Swap fused kernels, which have first derivatives only, for plain ones while the body runs.

    Attention by `scaled_dot_product_attention` takes torch's math backend, the same function from plain operations;
    other fused attention (flash, flex) takes transformers' eager one, and so do fused experts.

    Args:
        model: a transformers model, or one that peft has wrapped.

    Yields:
        Nothing.
    """
    with _eager(model, _ATTENTION, besides="sdpa"), plain_experts(model), sdpa_kernel([SDPBackend.MATH]):
        yield


@contextmanager
def plain_experts(model: Module) -> Iterator[None]:
    """Run fused experts one after another, in plain products, while the body runs.

    Args:
        model: a transformers model, or one that peft has wrapped.

    Yields:
        Nothing.
    """
    with _eager(model, _EXPERTS):
        yield


@contextmanager
def _eager(model: Module, setting: str, besides: str = "eager") -> Iterator[None]:
    # Written into the configurations that the modules read at every call, and put back on the way out.
    changed: list[tuple[Any, Any]] = []
    try:
        for config in _configs(model):
            found = getattr(config, setting, None)
            if found not in (None, "eager", besides):
                changed.append((config, found))
                setattr(config, setting, "eager")
        yield
    finally:
        for config, found in changed:
            setattr(config, setting, found)


def _configs(model: Module) -> list[Any]:
    """Return every configuration that a part of the model reads, each once."""
    return [*{id(config): config for part in model.modules() if (config := getattr(part, "config", None))}.values()]
