"""The LoRA layers of a model, seen through what they add to the base weight.

Which layers there are and what they are called is `geomsafe.models`' to say; here each comes
with the parameters that an average has to be put into.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from geomsafe.models import is_adapter_name, lora_layers


@dataclass(frozen=True)
class AdaptedLayer:
    """One layer with a LoRA adapter.

    Attributes:
        name: name of the base weight in the model without adapters.
        layer: peft's layer.
        factors: the trained A and B.
        output_factors: the B among them, one an adapter; they scale delta W and start at zero.
    """

    name: str
    layer: Any
    factors: tuple[nn.Parameter, ...]
    output_factors: tuple[nn.Parameter, ...]

    @property
    def weight(self) -> nn.Parameter:
        """The frozen base weight, in the layer's own orientation."""
        held = self.layer.get_param() if hasattr(self.layer, "get_param") else self.layer.get_base_layer().weight
        return cast(nn.Parameter, held)

    def delta(self) -> Tensor:
        """Return delta W = (alpha / rank) B A, shaped like the base weight, in the factors' dtype."""
        deltas = [self.layer.get_delta_weight(adapter) for adapter in self.layer.active_adapters]
        return cast(Tensor, sum(deltas[1:], start=deltas[0]))


def adapted_layers(model: nn.Module) -> Iterator[AdaptedLayer]:
    """Walk through the LoRA layers of a model.

    Args:
        model: a peft model, or any other model, which has none.

    Yields:
        Each adapted layer, named by its base weight.
    """
    for name, layer in lora_layers(model).items():
        factors = {
            path: factor
            for path, factor in layer.named_parameters()
            if factor.requires_grad and is_adapter_name(f".{path}")
        }
        outputs = [factor for path, factor in factors.items() if path.startswith(("lora_B.", "lora_embedding_B."))]
        yield AdaptedLayer(name, layer, tuple(factors.values()), tuple(outputs))


@torch.no_grad()
def without_adapters(layers: list[AdaptedLayer]) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Pair the factors of each layer with zeros, so that its delta W is zero.

    Args:
        layers: the adapted layers.

    Yields:
        Pairs for `swapped`.
    """
    for layer in layers:
        for factor in layer.factors:
            yield factor, torch.zeros_like(factor)
