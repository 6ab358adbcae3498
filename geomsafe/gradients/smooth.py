"""Run a model on kernels that can be differentiated twice."""

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
    other fused attention (flash, flex) takes transformers' eager one, and so do fused experts. Settings are
    written into the configurations that the modules read at every call, and put back on the way out.

    Args:
        model: a transformers model, or one that peft has wrapped.

    Yields:
        Nothing.
    """
    changed: list[tuple[Any, str, Any]] = []
    try:
        for config in _configs(model):
            for setting, plain in ((_ATTENTION, {"eager", "sdpa"}), (_EXPERTS, {"eager"})):
                found = getattr(config, setting, None)
                if found is not None and found not in plain:
                    changed.append((config, setting, found))
                    setattr(config, setting, "eager")
        with sdpa_kernel([SDPBackend.MATH]):
            yield
    finally:
        for config, setting, found in changed:
            setattr(config, setting, found)


def _configs(model: Module) -> list[Any]:
    """Return every configuration that a part of the model reads, each once."""
    return [*{id(config): config for part in model.modules() if (config := getattr(part, "config", None))}.values()]
