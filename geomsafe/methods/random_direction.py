"""The directional control: theta_0 moved as far as training moved it, in a random direction.

    theta = theta_0 + R,    R Gaussian,

scaled so that ||R_l|| = ||theta_l - theta_0,l|| in each tensor l (`norm=tensor`, the default: the profile over
layers is kept and only the direction inside each is lost) or in all together (`norm=global`: the isotropic
direction, most of it in the largest tensors). `to` takes the norms of another weight set of the run.

The draw depends on the seed and each tensor's name, not on their order, the device or the global random state.
With LoRA, R has the shape of delta W and full rank. In bfloat16 a small R is rounded away in part: the record
has the distance that was reached.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from geomsafe.config import Settings
from geomsafe.methods.base import Method
from geomsafe.methods.endpoint import LAST, EndPoint
from geomsafe.methods.origin import wide
from geomsafe.models import l2_norm


class RandomOptions(Settings):
    """Options of `random`."""

    seed: int = Field(0, ge=0, description="seed of the direction")
    norm: Literal["tensor", "global"] = Field("tensor", description="equal norm tensor by tensor, or in all")
    to: str = Field(LAST, description="weight set whose norms are taken")


class RandomDirection(EndPoint):
    """Offer theta_0 plus a random displacement of equal norm."""

    name: ClassVar[str] = "random"
    Options: ClassVar[type[Settings]] = RandomOptions
    options: RandomOptions

    def meet(self, methods: Sequence[Method]) -> None:
        """Find the weight set that gives the norms."""
        super().meet(methods)
        self.require_set(self.options.to)

    def moved(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Yield the scaled draw."""
        norms = self.norms_of(self.options.to, model)
        shared = self._shared_scale(model, norms) if self.options.norm == "global" else None
        for name, change in self.origin.displacement(model):
            draw = seeded_draw(self.options.seed, name, change)
            yield name, draw * (norms[name] / l2_norm(draw) if shared is None else shared)

    def _shared_scale(self, model: nn.Module, norms: dict[str, float]) -> float:
        drawn = math.fsum(
            l2_norm(seeded_draw(self.options.seed, name, change)) ** 2
            for name, change in self.origin.displacement(model)
        )
        return math.sqrt(math.fsum(norm**2 for norm in norms.values()) / drawn)


def seeded_draw(seed: int, name: str, like: Tensor) -> Tensor:
    """Draw standard normal numbers that follow from a seed and a tensor's name, on the CPU in float32.

    Args:
        seed: of the direction.
        name: of the tensor.
        like: gives shape and device.

    Returns:
        Fresh tensor, float64 (float32 on MPS).
    """
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    return wide(torch.randn(like.shape, generator=generator).to(like.device))
