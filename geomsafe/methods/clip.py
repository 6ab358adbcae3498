"""Clipping as a method: a bound on the gradient's norm, beside the run's own and with a log of what it did.

    G <- G min(1, limit / ||G||)        over all weights, or one weight at a time

The run's `clip` acts after all methods; this one acts where it stands among them. Under Adam a common
factor cancels but for its history, so a clipped step is not a step at a smaller learning rate.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from geomsafe.config import Settings
from geomsafe.methods.base import Method


class ClipOptions(Settings):
    """Options of `clip`."""

    limit: float = Field(1.0, gt=0, description="largest norm")
    over: Literal["global", "parameter"] = Field("global", description="norm of the whole gradient or of each weight's")


class Clip(Method):
    """Shrink gradients that are longer than a limit."""

    name: ClassVar[str] = "clip"
    Options: ClassVar[type[Settings]] = ClipOptions
    options: ClipOptions
    acts_on_gradient: ClassVar[bool] = True

    @torch.no_grad()
    def on_gradient(self, model: nn.Module, step: int) -> dict[str, float]:
        """Clip.

        Args:
            model: the model, its gradients accumulated.
            step: not used.

        Returns:
            `kept`, the norm after as a share of the norm before, and `clipped`, the share of weights that were
            shrunk; both 1 and 0 where nothing was, and the gradient is then bitwise what it was.
        """
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        groups: list[Any] = [gradients] if self.options.over == "global" else [[gradient] for gradient in gradients]
        before = after = 0.0
        shrunk = 0
        for group in groups:
            norm = float(torch.nn.utils.get_total_norm(group))
            # Not finite: left alone, the loop stops there and says where.
            factor = self.options.limit / norm if self.options.limit < norm < float("inf") else 1.0
            if factor < 1:
                torch._foreach_mul_(group, factor)
                shrunk += len(group)
            before += norm**2
            after += (norm * factor) ** 2
        return {"kept": (after / before) ** 0.5 if before else 1.0, "clipped": shrunk / max(1, len(gradients))}
