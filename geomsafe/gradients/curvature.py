"""Curvature of a set's loss: products with its Hessian, exact to rounding, never the Hessian itself.

What is covered: H u, u^T H u with each weight's share, the top eigenvalues of H over some or all of the weights that
gradients are taken of (`gradient_targets`: under LoRA the base weights that carry adapters). Forward over reverse
mode (`torch.func.jvp` of `torch.func.grad`; Pearlmutter 1994) takes about three times as long as a gradient; where an
operation has no forward rule, the gradient is differentiated a second time instead, and the result says so.

What is not: fused kernels are swapped for plain ones, so memory is that of eager attention; products are computed in
the weights' dtype, and a bfloat16 model's carry an error of about one percent: load it in float32 for eigenvalues.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from geomsafe.gradients.hessian import FORWARD, Reduction, hessian_of, inner, wide


@dataclass(frozen=True)
class HessianVector(Mapping[str, Tensor]):
    """H u by parameter name.

    Attributes:
        products: base name -> tensor of the parameter's shape, float32 (float64 for float64 weights).
        route: `FORWARD` or `BACKWARD`.
        reason: why the route is not `FORWARD`; empty where it is.
    """

    products: dict[str, Tensor]
    route: str
    reason: str

    def __getitem__(self, name: str) -> Tensor:
        """Return the product's part in one parameter."""
        return self.products[name]

    def __iter__(self) -> Iterator[str]:
        """Return an iterator over the names in the model's order."""
        return iter(self.products)

    def __len__(self) -> int:
        """Return the number of parameters."""
        return len(self.products)


@dataclass(frozen=True)
class Curvature:
    """The loss along one direction, to second order: L(theta + u) = L + slope + value / 2 + ...

    Attributes:
        value: u^T H u, in nats.
        shares: base name -> u_p^T (H u)_p, which sum to `value`; cross terms between weights count half in each.
        slope: u^T g with g the gradient, in nats.
        slopes: base name -> u_p^T g_p.
        squared_norm: ||u||^2.
        route: `FORWARD` or `BACKWARD`.
        reason: why the route is not `FORWARD`; empty where it is.
    """

    value: float
    shares: dict[str, float]
    slope: float
    slopes: dict[str, float]
    squared_norm: float
    route: str
    reason: str

    def __float__(self) -> float:
        """Return u^T H u."""
        return self.value

    @property
    def predicted_change(self) -> float:
        """What a step u changes the loss by, to second order: u^T g + u^T H u / 2, in nats."""
        return self.slope + self.value / 2

    @property
    def per_unit(self) -> float:
        """The Rayleigh quotient u^T H u / ||u||^2; 0 for u = 0."""
        return self.value / self.squared_norm if self.squared_norm else 0.0


def hessian_vector(
    model: Any,
    batch: Mapping[str, Tensor],
    direction: Mapping[str, Tensor],
    *,
    reduction: Reduction = "token-mean",
    parameters: str | Collection[str] | None = None,
    route: str = FORWARD,
    batch_size: int | None = None,
    memory_budget: int | str = "2GiB",
) -> HessianVector:
    """Multiply the Hessian of a set's loss by a direction.

    The set is summed over sub-batches, each with the weights that `reduction` gives its examples in the whole set.
    Dropout is off. The model is left exactly as found: weights, `.grad`, flags, kernels, hooks, random state.

    Args:
        model: a causal LM, or a peft model (see `gradient_targets` for what is differentiated).
        batch: `input_ids`, `attention_mask`, `labels` (examples, tokens), -100 outside the answer.
        direction: base name -> tensor of the parameter's shape; weights that it leaves out have u = 0.
        reduction: the set's loss, see `Reduction`.
        parameters: rows of H u to return: names, "factors", "all", by default what `gradient_targets` gives.
        route: `FORWARD`, or `BACKWARD` to differentiate the gradient once more from the start.
        batch_size: examples in a sub-batch (default: what fits into the budget).
        memory_budget: bytes for activations, such as "2GiB"; one example is always taken.

    Returns:
        H u and the route taken.
    """
    measured = parameters if parameters is None or isinstance(parameters, str) else {*parameters, *direction}
    with hessian_of(model, batch, measured, reduction, batch_size, memory_budget) as hessian:
        hessian.take(route)
        wanted = hessian.chosen(parameters)
        names = hessian.chosen({*wanted, *hessian.checked(direction)})
        sums = {name: torch.zeros_like(hessian.targets[name], dtype=wide(hessian.targets[name])) for name in wanted}
        for part in hessian.products(direction, names):
            for name in wanted:
                sums[name] += part.products[name]
        return HessianVector({name: value.detach() for name, value in sums.items()}, hessian.route, hessian.reason)


def curvature_along(
    model: Any,
    batch: Mapping[str, Tensor],
    direction: Mapping[str, Tensor],
    *,
    reduction: Reduction = "token-mean",
    batch_size: int | None = None,
    memory_budget: int | str = "2GiB",
) -> Curvature:
    """Compute u^T H u, each weight's share of it, and the slope u^T g that comes with it.

    Args:
        model: a causal LM, or a peft model.
        batch: `input_ids`, `attention_mask`, `labels` (examples, tokens), -100 outside the answer.
        direction: base name -> tensor of the parameter's shape, such as a displacement or the last update; any weights,
            frozen ones too; those that it leaves out have u = 0.
        reduction: the set's loss, see `Reduction`.
        batch_size: examples in a sub-batch (default: what fits into the budget).
        memory_budget: bytes for activations, such as "2GiB"; one example is always taken.

    Returns:
        The curvature; inner products are summed in float64.
    """
    with hessian_of(model, batch, [*direction], reduction, batch_size, memory_budget) as hessian:
        names = hessian.checked(direction)
        shares, slopes = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
        for part in hessian.products(direction, names):
            for name in names:
                shares[name] += inner(direction[name], part.products[name])
                slopes[name] += inner(direction[name], part.gradients[name])
        squared = math.fsum(inner(direction[name], direction[name]) for name in names)
        value, slope = math.fsum(shares.values()), math.fsum(slopes.values())
        return Curvature(value, shares, slope, slopes, squared, hessian.route, hessian.reason)
