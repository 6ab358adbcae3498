"""The radial control: the last iterate, moved along its ray to a given distance from theta_0.

    theta_c = theta_0 + c (theta - theta_0),    c = distance / ||theta - theta_0||_2

The distance is absolute, relative to ||theta_0||_2, or that of another weight set of the run: `shrink:to=ema`
is the control of an EMA at equal norm, made of nothing but the last iterate. Norms are global, over the
effective weights (LoRA: delta W). A distance beyond the last iterate's gives c > 1. Where training has not
moved there is no ray and the set is theta_0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

from pydantic import Field, model_validator
from torch import Tensor, nn

from geomsafe.config import Settings
from geomsafe.methods.base import Method
from geomsafe.methods.endpoint import LAST, EndPoint


class ShrinkOptions(Settings):
    """Options of `shrink`: exactly one of the three."""

    distance: float | None = Field(default=None, ge=0, allow_inf_nan=False, description="L2 distance from theta_0")
    relative: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="distance as a share of ||theta_0||"
    )
    to: str | None = Field(default=None, description="weight set whose distance is taken, such as ema")

    @model_validator(mode="after")
    def _exactly_one(self) -> ShrinkOptions:
        given = [name for name in ("distance", "relative", "to") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of distance=, relative= and to=, not {' and '.join(given) or 'none'}")
        return self


class Shrink(EndPoint):
    """Offer the last iterate's direction at another distance."""

    name: ClassVar[str] = "shrink"
    Options: ClassVar[type[Settings]] = ShrinkOptions
    options: ShrinkOptions

    def meet(self, methods: Sequence[Method]) -> None:
        """Find the weight set that gives the distance."""
        super().meet(methods)
        self.require_set(self.options.to or LAST)

    def moved(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Yield c (theta - theta_0)."""
        own = _total(self.norms_of(LAST, model))
        factor = self._target(model) / own if own else 0.0
        for name, change in self.origin.displacement(model):
            yield name, factor * change

    def _target(self, model: nn.Module) -> float:
        if self.options.to is not None:
            return _total(self.norms_of(self.options.to, model))
        if self.options.relative is not None:
            return self.options.relative * self.origin.norm(model)
        return self.options.distance or 0.0


def _total(norms: dict[str, float]) -> float:
    return math.sqrt(math.fsum(norm**2 for norm in norms.values()))
