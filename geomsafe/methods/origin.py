"""theta_0 as methods use it: displacements from it, and weights placed at a distance from it.

displacement = theta - theta_0 by base name; under LoRA that of delta W = (alpha / r) B A. Sums and
differences are taken in float64 (float32 on MPS), one tensor at a time, and rounded once to the
weight's dtype: theta_0 + 1 * (theta - theta_0) is theta to the bit. A tied weight is one tensor.

`geomsafe.models.Anchor` says how far a model is from theta_0; this also goes there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from geomsafe.errors import TrainingError
from geomsafe.methods.adapters import adapted_layers, without_adapters
from geomsafe.methods.swap import swapped
from geomsafe.models import l2_norm, trained_parameters


class Origin:
    """theta_0 of the weights that training changes, taken when it is made."""

    def __init__(self, model: nn.Module) -> None:
        """Copy theta_0.

        Args:
            model: the model at theta_0.
        """
        self._weights = {name: weight.detach().clone() for name, weight in trained_parameters(model).items()}
        # B starts at zero, so that a fresh adapter adds nothing: kept only where it does.
        deltas = {layer.name: layer.delta().detach() for layer in adapted_layers(model)}
        self.adapted = frozenset(deltas)
        self._deltas = {name: delta.clone() for name, delta in deltas.items() if bool(delta.any())}

    @property
    def starts_bare(self) -> bool:
        """Whether LoRA, if any, adds nothing at theta_0."""
        return not self._deltas

    @torch.no_grad()
    def norm(self, model: nn.Module) -> float:
        """Return ||theta_0||_2 over the effective weights.

        Args:
            model: the model, anywhere; it holds the base weights of LoRA layers.

        Returns:
            The norm.
        """
        squares = [l2_norm(weight) ** 2 for weight in self._weights.values()]
        for layer in adapted_layers(model):
            squares.append(l2_norm(self._base(layer.name, layer.weight)) ** 2)
        return math.sqrt(math.fsum(squares))

    @torch.no_grad()
    def displacement(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Yield theta - theta_0, one tensor at a time.

        Args:
            model: the model at theta.

        Yields:
            (base name, float64 tensor on the weight's device; float32 on MPS).
        """
        for layer in adapted_layers(model):
            delta = wide(layer.delta())
            start = self._deltas.get(layer.name)
            yield layer.name, delta if start is None else delta - wide(start)
        for name, weight in trained_parameters(model).items():
            yield name, wide(weight.detach()) - wide(self._weights[name])

    def norms(self, moved: Iterable[tuple[str, Tensor]]) -> dict[str, float]:
        """Return the L2 norm of each tensor of a displacement, by base name."""
        return {name: l2_norm(change) for name, change in moved}

    @contextmanager
    def placed(self, model: nn.Module, moved: Iterable[tuple[str, Tensor]]) -> Iterator[nn.Module]:
        """Put theta_0 + moved into the model for the length of a block; LoRA layers get it merged.

        Args:
            model: the model; afterwards it has its own weights again, bitwise.
            moved: displacement by base name, of all effective weights; read one by one, each
                before the model's own weight of that name is taken out.

        Yields:
            The model.
        """
        layers = {layer.name: layer for layer in adapted_layers(model)}
        weights = trained_parameters(model)

        def pairs() -> Iterator[tuple[nn.Parameter, Tensor]]:
            for name, change in moved:
                if name in layers:
                    yield layers[name].weight, self._base(name, layers[name].weight) + change
                else:
                    yield weights[name], wide(self._weights[name]) + change
            yield from without_adapters(list(layers.values()))

        with swapped(pairs()):
            yield model

    @contextmanager
    def visited(self, model: nn.Module) -> Iterator[nn.Module]:
        """Put theta_0 itself into the model for the length of a block, without copying it.

        Args:
            model: the model; nothing may write to its weights inside. Afterwards it has its own again, bitwise.

        Yields:
            The model.
        """
        weights = trained_parameters(model)
        layers = list(adapted_layers(model))
        started = [layer for layer in layers if layer.name in self._deltas]
        own = {name: weight.data for name, weight in weights.items()}
        try:
            for name, weight in weights.items():
                weight.data = self._weights[name]
            merged = ((layer.weight, self._base(layer.name, layer.weight)) for layer in started)
            with swapped([*merged, *without_adapters(layers)]):
                yield model
        finally:
            for name, weight in weights.items():
                weight.data = own[name]

    @torch.no_grad()
    def weights(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Yield theta_0 of every effective weight, one at a time.

        Args:
            model: the model, anywhere; it holds the base weights of LoRA layers.

        Yields:
            (base name, float64 tensor; float32 on MPS).
        """
        for layer in adapted_layers(model):
            yield layer.name, self._base(layer.name, layer.weight)
        for name, weight in self._weights.items():
            yield name, wide(weight)

    def start(self, name: str) -> Tensor:
        """Return theta_0 of a weight that is trained as it is, in the weight's dtype.

        Args:
            name: its base name.

        Returns:
            The tensor, not a copy.
        """
        return self._weights[name]

    def start_delta(self, name: str) -> Tensor | None:
        """Return what LoRA added to a weight at theta_0; None where that was nothing."""
        return self._deltas.get(name)

    def state_dict(self) -> dict[str, Tensor]:
        """Return theta_0 under unique names."""
        weights = {f"weight.{name}": tensor for name, tensor in self._weights.items()}
        return weights | {f"delta.{name}": tensor for name, tensor in self._deltas.items()}

    @torch.no_grad()
    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Take theta_0 from a checkpoint, since the model has moved on.

        Args:
            tensors: what `state_dict` returned.

        Raises:
            TrainingError: the checkpoint's theta_0 is not that of this model.
        """
        wanted = {f"weight.{name}" for name in self._weights}
        known = wanted | {f"delta.{name}" for name in self.adapted}
        odd = sorted((wanted - tensors.keys()) | (tensors.keys() - known))
        if odd:
            raise TrainingError(f"the checkpoint's theta_0 does not fit this model: '{odd[0]}' has no partner")
        for name, weight in self._weights.items():
            weight.copy_(tensors[f"weight.{name}"])
        device = next(iter((self._weights | self._deltas).values()), torch.zeros(())).device
        self._deltas = {
            name: tensors[f"delta.{name}"].to(device) for name in self.adapted if f"delta.{name}" in tensors
        }

    def _base(self, name: str, weight: Tensor) -> Tensor:
        start = self._deltas.get(name)
        return wide(weight.detach()) if start is None else wide(weight.detach()) + wide(start)


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, or float32 where the device has nothing wider."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)
