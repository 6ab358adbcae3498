"""AsFT: hold the update in the space of alignment (Yang et al., arXiv 2506.08473).

    loss += lambda * sum over LoRA layers of ||(I - C) B A||_F^2,    V = W_0 - W_base

Followed is the released code where it differs from the paper's text: C = V V^T / ||V||_F, which is no projector (the
text writes one; `projector=true` is it), and B A without the scale alpha / r (`scaled=true` takes delta W as the
forward pass has it). The code adds the whole penalty to every micro-batch; here a step sees it once, whatever the
accumulation, so that lambda means the same at every batch size. lambda = 1 is its default.

With X = B - C B the penalty is tr((X^T X)(A A^T)), r x r: nothing of the weight's size is formed. Only LoRA
layers on linear weights have it; with all weights trained `l2sp` is the nearest thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from geomsafe.config import Settings
from geomsafe.errors import ConfigError
from geomsafe.methods.adapters import AdaptedLayer, adapted_layers
from geomsafe.methods.alignment import Alignment, Projector, alignments
from geomsafe.methods.base import Schedule
from geomsafe.methods.loss import LossMethod, Term


class AsftOptions(Settings):
    """Options of `asft`."""

    strength: float = Field(1.0, ge=0, allow_inf_nan=False, description="lambda (released code: 1)")
    projector: Projector = Field("released", description="C = V V^T / ||V||, or the true projector")
    rank: int | None = Field(default=None, ge=1, description="projector=true: leading directions of V (default: all)")
    scaled: bool = Field(False, description="penalise (alpha / r) B A, not B A")

    @model_validator(mode="after")
    def _rank_is_of_the_projector(self) -> AsftOptions:
        if self.rank is not None and self.projector != "true":
            raise ValueError("rank= belongs to projector=true")
        return self


class Asft(LossMethod):
    """Penalise what the update has outside the space of alignment."""

    name: ClassVar[str] = "asft"
    Options: ClassVar[type[Settings]] = AsftOptions
    options: AsftOptions
    uses_origin: ClassVar[bool] = True
    needs_base: ClassVar[bool] = True

    def __init__(self, options: Settings | None = None, *, base: Mapping[str, Tensor] | None = None) -> None:
        """Prepare the method.

        Args:
            options: its options.
            base: theta_base by name, outside of a run: `base_weights(model)`.
        """
        super().__init__(options)
        self.base = base
        self._maps: dict[str, Alignment] = {}
        self._layers: list[AdaptedLayer] = []

    def start(self, model: nn.Module, optimizer: torch.optim.Optimizer | None, schedule: Schedule) -> None:
        """Prepare C of each LoRA layer.

        Args:
            model: the model that is trained.
            optimizer: not used.
            schedule: not used.

        Raises:
            ConfigError: there is no LoRA, it does not start at B A = 0, or a layer is not linear.
        """
        self._layers = list(adapted_layers(model))
        if not self._layers:
            raise ConfigError(
                f"method {self.label} penalises LoRA's B A, and all weights are trained here: give --lora"
            )
        if not self.origin.starts_bare:
            raise ConfigError(f"method {self.label} needs an adapter that starts at B A = 0")
        odd = [layer.name for layer in self._layers if not _is_linear(layer)]
        if odd:
            raise ConfigError(
                f"method {self.label} is defined for one adapter on linear layers, these are not: {', '.join(odd)}"
            )
        self._maps = alignments(self.label, model, self.origin, self.base, self.options.projector, self.options.rank)

    def term(self, model: nn.Module, inputs: Mapping[str, Any], outputs: Any, seen: Any) -> Term:
        """Return lambda x the penalty; it belongs to the step, not to the micro-batch."""
        parts = [self._outside(layer) for layer in self._layers]
        return Term(self.options.strength * torch.stack(parts).sum(), None)

    def _outside(self, layer: AdaptedLayer) -> Tensor:
        adapter = layer.layer.active_adapters[0]
        inward, outward = layer.layer.lora_A[adapter].weight, layer.layer.lora_B[adapter].weight
        width = torch.promote_types(outward.dtype, torch.float32)
        a, b = inward.to(width), outward.to(width)
        x = b - self._maps[layer.name].apply(b)
        scale = float(layer.layer.scaling[adapter]) if self.options.scaled else 1.0
        penalty: Tensor = ((x.T @ x) * (a @ a.T)).sum()
        return scale**2 * penalty


def _is_linear(layer: AdaptedLayer) -> bool:
    adapters = layer.layer.active_adapters
    return len(adapters) == 1 and adapters[0] in layer.layer.lora_A and layer.weight.dim() == 2
