"""A second set of weights kept beside a model in training: what averages and early stops are made of.

Kept are the trained weights in float32 or wider. With LoRA and `products`, a layer is kept as its
delta W = (alpha / r) B A: an average of products has a rank above r, so it is held as full matrices
and placed into the model merged, the factors zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from geomsafe.errors import TrainingError
from geomsafe.methods.adapters import AdaptedLayer, adapted_layers, without_adapters
from geomsafe.methods.swap import swapped


class Shadow:
    """Weights of a model's shape that are moved towards the model's own.

    Attributes:
        products: whether LoRA layers are kept as delta W.
        tensors: parameter name (for delta W: name of the base weight) -> values.
    """

    def __init__(self, model: nn.Module, *, products: bool) -> None:
        """Copy the weights that the model has now.

        Args:
            model: the model that is trained.
            products: keep the delta W of LoRA layers, not their factors.
        """
        self.products = products
        self.tensors = {name: widened(tensor()) for name, tensor in self._sources(model).items()}

    @torch.no_grad()
    def fold(self, model: nn.Module, eta: float) -> float:
        """Move towards the model: shadow <- (1 - eta) shadow + eta theta.

        Args:
            model: the model at theta.
            eta: weight of theta, 0 to 1; at 1 the shadow becomes theta exactly.

        Returns:
            ||theta - shadow||_2 before.
        """
        if self.products:
            return _fold_one_by_one(self.tensors, self._sources(model), eta)
        return _fold(self.tensors, dict(_trained(model)), eta)

    @torch.no_grad()
    def feed_back(self, model: nn.Module) -> None:
        """Set the model's trained weights to the shadow, which must not be one of products.

        Args:
            model: the model.
        """
        parameters = dict(_trained(model))
        torch._foreach_copy_(list(parameters.values()), [self.tensors[name] for name in parameters])

    @contextmanager
    def placed(self, model: nn.Module) -> Iterator[nn.Module]:
        """Put the shadow into the model for the length of a block.

        Args:
            model: the model; afterwards it has its own weights again, bitwise.

        Yields:
            The model.
        """
        trained = dict(_trained(model))
        if not self.products:
            with swapped((parameter, self.tensors[name]) for name, parameter in trained.items()):
                yield model
            return
        layers = list(adapted_layers(model))
        others = [(parameter, self.tensors[name]) for name, parameter in trained.items() if name in self.tensors]
        with swapped([*_merged(layers, self.tensors), *without_adapters(layers), *others]):
            yield model

    def _sources(self, model: nn.Module) -> dict[str, Callable[[], Tensor]]:
        # Each value is a function, so that products can be formed one at a time.
        if not self.products:
            return {name: partial(_itself, parameter) for name, parameter in _trained(model)}
        layers = list(adapted_layers(model))
        factors = {id(factor) for layer in layers for factor in layer.factors}
        others = {
            name: partial(_itself, parameter) for name, parameter in _trained(model) if id(parameter) not in factors
        }
        return {layer.name: layer.delta for layer in layers} | others


@torch.no_grad()
def restore_tensors(label: str, own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint's tensors into a method's own, by name.

    Args:
        label: the method's label, for the message.
        own: the method's tensors, as its `state_dict` names them.
        saved: those of the checkpoint.

    Raises:
        TrainingError: a name has no partner.
    """
    if own.keys() != saved.keys():
        odd = sorted(own.keys() ^ saved.keys())[0]
        raise TrainingError(f"method {label}: the checkpoint does not fit this model: '{odd}' has no partner")
    for name, tensor in own.items():
        tensor.copy_(saved[name])


def widened(tensor: Tensor) -> Tensor:
    """Return a copy in float32 or, where the weights are wider, in their dtype."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32), copy=True)


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _merged(layers: list[AdaptedLayer], deltas: Mapping[str, Tensor]) -> Iterator[tuple[nn.Parameter, Tensor]]:
    for layer in layers:
        yield layer.weight, layer.weight.to(deltas[layer.name].dtype) + deltas[layer.name]


def _fold(shadow: dict[str, Tensor], current: Mapping[str, Tensor], eta: float) -> float:
    # All weights at once where dtypes agree, else one by one; the gap is that before averaging.
    if any(tensor.dtype != shadow[name].dtype for name, tensor in current.items()):
        return _fold_one_by_one(shadow, {name: partial(_itself, tensor) for name, tensor in current.items()}, eta)
    gap = math.sqrt(sum(float((tensor - shadow[name]).square().sum()) for name, tensor in current.items()))
    torch._foreach_lerp_([shadow[name] for name in current], list(current.values()), eta)
    return gap


def _fold_one_by_one(shadow: dict[str, Tensor], current: Mapping[str, Callable[[], Tensor]], eta: float) -> float:
    # For tensors that have to be cast or formed first: only one is held at a time.
    squares = 0.0
    for name, tensor in current.items():
        new = tensor().detach().to(shadow[name].dtype)
        squares += float((new - shadow[name]).square().sum())
        shadow[name].lerp_(new, eta)
    return math.sqrt(squares)
