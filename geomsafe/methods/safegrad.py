"""SafeGrad (arXiv 2508.07172): PCGrad with the gradient of a divergence from theta_0, which is also added.

    g_a = gradient of mean over the anchor's target positions of KL(p_theta || p_theta_0), full vocabulary
    if <g_u, g_a> < 0:    g_u <- g_u - (<g_u, g_a> / ||g_a||^2) g_a
    g_u <- g_u + rho g_a

The paper was known to us only through another implementation's account of it; which answers the positions
are taken from (here the anchor's) and the default rho = 1 are ours. At theta_0 the divergence and its
gradient are zero: the first step is a plain one. theta_0's distributions over the anchor are kept,
tokens x vocabulary numbers, and saved for resume.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from geomsafe.config import Settings
from geomsafe.errors import TrainingError
from geomsafe.gradients import target_log_probs, undisturbed
from geomsafe.methods.anchored import AnchorOptions, trained_tensors, wide
from geomsafe.methods.base import Schedule
from geomsafe.methods.pcgrad import PcGrad


class SafeGradOptions(AnchorOptions):
    """Options of `safegrad`."""

    rho: float = Field(1.0, ge=0, description="how much of the divergence's gradient is added; 0 = none")


class SafeGrad(PcGrad):
    """Remove what goes against staying near theta_0 on the anchor, and add a pull towards it."""

    name: ClassVar[str] = "safegrad"
    Options: ClassVar[type[Settings]] = SafeGradOptions
    options: SafeGradOptions

    def __init__(self, options: Settings | None = None, *, anchor: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(options, anchor=anchor)
        self._reference = torch.zeros(0)

    def start(self, model: nn.Module, optimizer: torch.optim.Optimizer | None, schedule: Schedule) -> None:
        """Keep theta_0's distributions over the anchor.

        Args:
            model: the model at theta_0; on resume the distributions are read back afterwards.
            optimizer: not used.
            schedule: not used.
        """
        super().start(model, optimizer, schedule)
        anchor: Any = self.anchor
        with undisturbed(model), torch.no_grad():
            self._reference = target_log_probs(model, anchor)

    def state_dict(self) -> dict[str, Tensor]:
        """Return theta_0's distributions."""
        return {"reference": self._reference}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Continue with saved distributions.

        Args:
            tensors: what `state_dict` returned.

        Raises:
            TrainingError: they are of another anchor or vocabulary.
        """
        saved = tensors.get("reference")
        if saved is None or saved.shape != self._reference.shape:
            raise TrainingError(f"method {self.label}: the checkpoint was written with another anchor")
        self._reference.copy_(saved)

    def _aligned(self, model: nn.Module) -> tuple[dict[str, Tensor], float]:
        anchor: Any = self.anchor
        tensors = trained_tensors(model)
        with undisturbed(model), torch.enable_grad():
            found = target_log_probs(model, anchor)
            divergence = (found.exp() * (found - self._reference)).sum(dim=1).mean()
            if not float(divergence.detach()):  # at theta_0; what autograd gives there is rounding
                return {}, 0.0
            gradients = torch.autograd.grad(divergence, list(tensors.values()), allow_unused=True)
        pairs = zip(tensors, gradients, strict=True)
        return {name: wide(g) for name, g in pairs if g is not None}, float(divergence.detach())

    def _step_along(self, dot: float, size: float, *, fired: bool) -> float:
        return super()._step_along(dot, size, fired=fired) + self.options.rho
