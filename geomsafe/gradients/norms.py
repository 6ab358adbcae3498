"""Norms written out in Python: a copy of the weight for each example gives each example's gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from geomsafe.gradients.uses import Dense
from geomsafe.gradients.watch import Watch


@contextlib.contextmanager
def expanded_norms(model: nn.Module, watch: Watch) -> Iterator[None]:
    """Give norms with one weight vector a copy of it for each example while the body runs.

    RMSNorm is written out in Python, in as many ways as there are models: weight times x, or
    (1 + weight) times x. With the weight expanded to (examples, 1, .., width) every one of
    them computes the same output, and autograd's gradient of the copy is each example's own.
    """
    handles: list[Any] = []
    swapped: list[tuple[nn.Module, nn.Parameter]] = []

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        weight = module._parameters["weight"]
        read = args[0]
        if weight is None or read.dim() < 3 or read.shape[0] != watch.layout.examples:
            return
        name = watch.names[id(weight)]
        with torch._C.DisableTorchFunction():
            copies = weight.detach().expand(len(read), *[1] * (read.dim() - 2), -1)
            leaf = nn.Parameter(copies, requires_grad=True)
        watch.expect(name)

        def arrived(gradient: Tensor) -> None:
            if name not in watch.uncovered:
                watch.deliver(name, Dense(gradient.detach().reshape(len(gradient), -1).to(watch.dtype)))

        leaf.register_hook(arrived)  # type: ignore[no-untyped-call]
        module._parameters["weight"] = leaf
        swapped.append((module, weight))

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        while swapped:
            owner, weight = swapped.pop()
            owner._parameters["weight"] = weight

    try:
        for module in model.modules():
            if _is_written_norm(module) and id(module._parameters["weight"]) in watch.names:
                handles.append(module.register_forward_pre_hook(before))
                handles.append(module.register_forward_hook(after))
        yield
    finally:
        for handle in handles:
            handle.remove()
        while swapped:
            owner, weight = swapped.pop()
            owner._parameters["weight"] = weight


def _is_written_norm(module: nn.Module) -> bool:
    # Of the norms in transformers it is known that the weight is multiplied in, element by element.
    if "Norm" not in type(module).__name__ or not type(module).__module__.startswith("transformers."):
        return False
    held = {name: weight for name, weight in module._parameters.items() if weight is not None}
    return set(held) == {"weight"} and held["weight"].dim() == 1
