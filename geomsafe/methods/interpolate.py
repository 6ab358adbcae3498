"""Interpolation with theta_0: WiSE-FT, and task arithmetic on the fine-tuning vector.

    theta_alpha = theta_0 + alpha (theta - theta_0)

alpha 0 is theta_0, 1 the last iterate; between them it is WiSE-FT (Wortsman et al., arXiv 2109.01903, who
recommend .5 where nothing is known), with other values task arithmetic (Ilharco et al., arXiv 2212.04089):
the fine-tuning vector scaled, subtracted (alpha < 0) or exaggerated (alpha > 1). Applied once at the end; with
alpha = eta it is one step of an average that began at theta_0.

With LoRA delta W is scaled, which neither factor alone says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from geomsafe.config import Settings
from geomsafe.methods.endpoint import EndPoint


class InterpolateOptions(Settings):
    """Options of `interpolate`."""

    alpha: float = Field(0.5, allow_inf_nan=False, description="weight of the last iterate (WiSE-FT: 0.5)")


class Interpolate(EndPoint):
    """Offer the point at alpha on the line from theta_0 through the last iterate."""

    name: ClassVar[str] = "interpolate"
    Options: ClassVar[type[Settings]] = InterpolateOptions
    options: InterpolateOptions

    def moved(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Yield alpha (theta - theta_0)."""
        for name, change in self.origin.displacement(model):
            yield name, self.options.alpha * change
