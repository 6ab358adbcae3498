"""PCGrad against a refusal (Yu et al., "Gradient surgery", arXiv 2001.06782; the projection of SafeGrad).

    if <g_u, g_a> < 0:    g_u <- g_u - (<g_u, g_a> / ||g_a||^2) g_a        over all weights at once

g_a is the gradient of the anchor's negative log-likelihood at the current weights. One direction of the
whole parameter space is removed, where SPF removes k x columns of each weight. In PCGrad each task is
projected and all are added; here only the task's gradient is projected and g_a is not added.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from geomsafe.config import Settings
from geomsafe.methods.anchored import (
    Anchored,
    AnchorOptions,
    anchor_loss,
    norm,
    products,
    safety_factors,
    token_mean,
    trained_tensors,
    wide,
    with_cosine,
)


class PcGradOptions(AnchorOptions):
    """Options of `pcgrad`."""


class PcGrad(Anchored):
    """Remove from the task's gradient its component against one direction."""

    name: ClassVar[str] = "pcgrad"
    Options: ClassVar[type[Settings]] = PcGradOptions
    options: AnchorOptions

    def __init__(self, options: Settings | None = None, *, anchor: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(options, anchor=anchor)
        self._alignment: dict[str, Tensor] = {}
        self._size = 0.0

    @torch.no_grad()
    def on_gradient(self, model: nn.Module, step: int) -> dict[str, float]:
        """Project in conflict.

        Args:
            model: the model, its gradients accumulated.
            step: not used.

        Returns:
            `anchor_loss` (nats), `cosine` of both gradients, `fired` (1 or 0), and `removed`, the share of the
            gradient's squared norm that is gone.
        """
        tensors = trained_tensors(model)
        self._alignment, loss = self._aligned(model)
        self._remember({name: tensors[name] for name in self._alignment})
        given = {name: wide(t.grad) for name, t in tensors.items() if t.grad is not None and name in self._alignment}
        each, whole = products(given, self._alignment)
        dot = sum(each.values())
        self._size = size = norm(self._alignment)
        fired = dot < 0 and size > 0
        factor = self._step_along(dot, size, fired=fired)
        for name in given if factor else ():
            own: Any = tensors[name].grad
            own.copy_(given[name] + factor * self._alignment[name])
        log = {"anchor_loss": loss, "fired": float(fired), "removed": (dot / (size * whole)) ** 2 if fired else 0.0}
        return log | with_cosine("cosine", dot, whole, size)

    def after_step(self, model: nn.Module, step: int) -> dict[str, float]:
        """Measure the update against the direction.

        Args:
            model: the model after the optimizer step.
            step: not used.

        Returns:
            `update_dot` = <update, g_a> in nats, positive where the step raised the anchor's loss, and
            `update_cosine`.
        """
        log = self._effect(self._update(model), self._alignment, self._size)
        self._alignment = {}
        return log

    def _aligned(self, model: nn.Module) -> tuple[dict[str, Tensor], float]:
        """Return g_a by name and the loss that it is the gradient of."""
        anchor: Any = self.anchor
        factors = safety_factors(model, anchor)
        return token_mean(factors), anchor_loss(factors)

    def _step_along(self, dot: float, size: float, *, fired: bool) -> float:
        """Return how much of g_a is added to the task's gradient."""
        return -dot / size**2 if fired else 0.0
