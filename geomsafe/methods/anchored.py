"""What the methods that look at a safety gradient share: the anchor, its gradient, and what a step made of it.

The anchor is one refusal, or a few: a harmful prompt with the refusal that is to stay likely. A run
provides it (`Method.anchor_wanted`); in a plain Trainer it is given to the constructor:

    MethodsCallback([Spf(SpfOptions(rank=20), anchor={"input_ids": .., "attention_mask": .., "labels": ..})])

The safety gradient is that of the anchor's mean negative log-likelihood over all of its target tokens,
at the weights as they are, with dropout off, with respect to the tensors that the optimizer moves: all
weights, or LoRA's factors. It raises the loss: <update, safety_gradient> > 0 means less safe, to first order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from geomsafe.config import Settings
from geomsafe.errors import ConfigError
from geomsafe.gradients import GradientFactors, Sum, gradient_factors
from geomsafe.methods.base import AnchorWanted, Method, Schedule
from geomsafe.models import base_parameter_name, is_adapter_name


class AnchorOptions(Settings):
    """Options of every method with an anchor."""

    anchor: str = Field("safety", description="safety, benign, sham, or a data set or file with answers")
    anchors: int = Field(1, ge=1, description="examples in the anchor (Zhang et al.: one)")


class Anchored(Method):
    """Base of methods that compare what training does with the gradient of an anchor."""

    Options: ClassVar[type[Settings]] = AnchorOptions
    options: AnchorOptions
    acts_on_gradient: ClassVar[bool] = True

    def __init__(self, options: Settings | None = None, *, anchor: Mapping[str, Tensor] | None = None) -> None:
        """Prepare the method.

        Args:
            options: its options.
            anchor: `input_ids`, `attention_mask`, `labels` (examples, tokens), outside of a run.
        """
        super().__init__(options)
        self.anchor = anchor
        self._adapted = False
        self._before: dict[str, Tensor] = {}

    @property
    def anchor_wanted(self) -> AnchorWanted | None:
        """The anchor that the options name."""
        return AnchorWanted(self.options.anchor, self.options.anchors)

    def start(self, model: nn.Module, optimizer: torch.optim.Optimizer | None, schedule: Schedule) -> None:
        """Check that there is an anchor.

        Args:
            model: the model that is trained.
            optimizer: not used here.
            schedule: not used.

        Raises:
            ConfigError: nobody has given one.
        """
        if self.anchor is None:
            raise ConfigError(f"method {self.label} has no anchor: give {type(self).__name__}(..., anchor=batch)")
        self._adapted = any(is_adapter_name(name) for name, _ in model.named_parameters())

    def describe(self, schedule: Schedule) -> dict[str, Any]:
        """Return the record's entry, with the size of the anchor and what the gradients are gradients of."""
        labels = self.anchor["labels"] if self.anchor is not None else torch.zeros((0, 1))
        return super().describe(schedule) | {
            "anchor_examples": len(labels),
            "anchor_tokens": int((labels[:, 1:] != -100).sum()),
            "acts_on": "factors" if self._adapted else "weights",
        }

    @torch.no_grad()
    def _remember(self, tensors: Mapping[str, nn.Parameter]) -> None:
        self._before = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def _update(self, model: nn.Module) -> dict[str, Tensor]:
        """Return theta after the optimizer minus theta before it, and forget the latter."""
        now = trained_tensors(model)
        # Into the copies, where they are wide enough.
        found = {
            name: torch.sub(now[name], before, out=before)
            if before.dtype == wide(before).dtype
            else wide(now[name]) - wide(before)
            for name, before in self._before.items()
        }
        self._before = {}
        return found

    @staticmethod
    def _effect(update: Mapping[str, Tensor], safety: Mapping[str, Tensor], size: float) -> dict[str, float]:
        """Return `update_dot` = <update, safety_gradient> in nats and `update_cosine`, given ||safety_gradient||."""
        each, length = products(update, safety)
        found = {"update_dot": sum(each.values())}
        return found | with_cosine("update_cosine", found["update_dot"], length, size)


def trained_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the tensors that the optimizer moves, LoRA's factors among them, under their base names."""
    return {base_parameter_name(name): tensor for name, tensor in model.named_parameters() if tensor.requires_grad}


def safety_factors(model: nn.Module, anchor: Mapping[str, Tensor]) -> GradientFactors:
    """Return the anchor's gradients, token-summed, as factors; the model, `.grad` included, stays as it is."""
    return gradient_factors(model, anchor, parameters="factors", reduction="sum")


@torch.no_grad()
def token_mean(factors: GradientFactors) -> dict[str, Tensor]:
    """Return the gradient of the mean over all target tokens, by name, in float32 (float64 for a float64 model)."""
    each = torch.full((len(factors.tokens),), 1 / int(factors.tokens.sum()), dtype=torch.float64)
    found: dict[str, Tensor] = factors.quantity(Sum(weights=each))
    return found


def anchor_loss(factors: GradientFactors) -> float:
    """Return the anchor's negative log-likelihood, mean over all target tokens, in nats."""
    return float(factors.losses.sum() / factors.tokens.sum())


def products(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> tuple[dict[str, float], float]:
    """Return <first, second> of each tensor of `first`, all of which `second` has, and ||first||_2 over all."""
    flat = [(one.flatten(), second[name].flatten().to(one.dtype)) for name, one in first.items()]
    if not flat:
        return {}, 0.0
    # Both products of a tensor while it is in the cache.
    pairs = torch.stack([torch.stack((torch.dot(one, other), torch.dot(one, one))) for one, other in flat]).double()
    return dict(zip(first, pairs[:, 0].tolist(), strict=True)), float(pairs[:, 1].sum()) ** 0.5


def norm(tensors: Mapping[str, Tensor]) -> float:
    """Return the L2 norm over all tensors."""
    return math.hypot(*torch.stack([tensor.norm().double() for tensor in tensors.values()]).tolist()) if tensors else 0


def with_cosine(key: str, dot: float, first: float, second: float) -> dict[str, float]:
    """Return {key: cosine}, nothing where one of the norms is zero and there is none."""
    return {key: dot / (first * second)} if first and second else {}


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 or, where it is wider, as it is."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
