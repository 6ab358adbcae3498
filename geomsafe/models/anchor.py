"""The anchor: theta_0 kept beside a model in training, to say how far training has gone.

displacement = theta - theta_0 over the effective weights, by name. Differences are taken in float32 and squares
summed in float64, so that a bfloat16 model's small steps are not lost in the sum. A tied weight is one parameter
and counts once. Under LoRA the displacement is (alpha / rank)(B A - B_0 A_0): the base weight never moves and is
not copied.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from geomsafe.errors import ModelError
from geomsafe.models.effective import effective_weights, lora_delta, lora_layers, trained_parameters


class Distance(NamedTuple):
    """How far the weights are from theta_0 in L2.

    Attributes:
        total: over all effective weights, sqrt of the sum of squares.
        parameters: by base name.
    """

    total: float
    parameters: dict[str, float]


class Anchor:
    """theta_0 of the effective weights, taken when the anchor is made."""

    def __init__(self, model: nn.Module, device: torch.device | str | None = None) -> None:
        """Copy theta_0.

        Args:
            model: the model at theta_0; later calls must get the same model or one with the same names.
            device: where the copy is kept; by default beside each weight.
        """
        self._weights = {
            name: weight.detach().to(device=device, copy=True) for name, weight in trained_parameters(model).items()
        }
        # B starts at zero, so that the start of an adapter is usually nothing: kept only where it is something.
        self._deltas: dict[str, Tensor | None] = {}
        for name, layer in lora_layers(model).items():
            delta = lora_delta(layer)
            self._deltas[name] = delta.to(device=device, copy=True) if bool(delta.any()) else None
        self._norms = {name: l2_norm(weight) for name, weight in effective_weights(model)}

    def norms(self) -> dict[str, float]:
        """Return ||theta_0||_2 by base name."""
        return dict(self._norms)

    def norm(self) -> float:
        """Return ||theta_0||_2 over all effective weights."""
        return math.sqrt(math.fsum(norm**2 for norm in self._norms.values()))

    def displacement(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Yield theta - theta_0.

        Args:
            model: the model as it is now.

        Yields:
            (base name, float32 tensor on the weight's device).

        Raises:
            ModelError: the model's effective weights are not those of the anchor.
        """  # noqa: DOC502
        yield from self.changes(model).items()

    def changes(self, model: nn.Module) -> Changes:
        """Return theta - theta_0 by base name, each difference taken when it is asked for.

        Args:
            model: the model, as it is when an item is read.

        Returns:
            A mapping that holds no difference itself.

        Raises:
            ModelError: the model's effective weights are not those of the anchor.
        """
        layers, weights = lora_layers(model), trained_parameters(model)
        if {*layers, *weights} != self._norms.keys():
            odd = sorted({*layers, *weights} ^ self._norms.keys())
            raise ModelError(
                f"{len(odd)} trained weights are not those of theta_0 (the first is '{odd[0]}'): "
                "make the Anchor after adapters are added and parameters are frozen"
            )
        return Changes(layers, weights, self._deltas, self._weights)

    def distance(self, model: nn.Module) -> Distance:
        """Return ||theta - theta_0||_2, in all and by parameter."""
        parameters = {name: l2_norm(change) for name, change in self.displacement(model)}
        return Distance(math.sqrt(math.fsum(norm**2 for norm in parameters.values())), parameters)


class Changes(Mapping[str, Tensor]):
    """theta - theta_0 by base name: float32 tensors on the weights' devices, one in memory at a time."""

    def __init__(
        self,
        layers: Mapping[str, Any],
        weights: Mapping[str, nn.Parameter],
        deltas: Mapping[str, Tensor | None],
        starts: Mapping[str, Tensor],
    ) -> None:
        self._layers, self._weights, self._deltas, self._starts = layers, weights, deltas, starts

    def __getitem__(self, name: str) -> Tensor:
        if name in self._layers:
            delta, start = lora_delta(self._layers[name]), self._deltas[name]
            return delta if start is None else delta - start.to(delta.device)
        weight = self._weights[name].detach()
        return weight.float() - self._starts[name].to(weight.device).float()

    def __iter__(self) -> Iterator[str]:
        yield from self._layers
        yield from self._weights

    def __len__(self) -> int:
        return len(self._layers) + len(self._weights)


def l2_norm(tensor: Tensor) -> float:
    """Return the L2 norm of a tensor of any float dtype, squares summed in float64."""
    wide = torch.float32 if tensor.device.type == "mps" else torch.float64
    return float(torch.linalg.vector_norm(tensor.detach(), dtype=wide))
