"""What a pass gives back: one tensor a weight, in the model's order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from geomsafe.errors import ModelError

REDUCTIONS = ("mean", "sum")
"""An example's loss: the mean over its own target tokens, or their sum."""


@dataclass(frozen=True)
class PerParameter(Mapping[str, Tensor]):
    """A tensor for every measured weight, in the model's order, and what belongs to all of them."""

    by_name: dict[str, Tensor]
    tokens: Tensor  # (examples,) int64 target tokens
    losses: Tensor  # (examples,) float64 negative log-likelihood summed over an example's targets, nats
    slow: tuple[str, ...]  # weights that took the exact loop, because no rule covers how the model uses them
    reduction: str  # "mean" (over an example's own target tokens) or "sum"

    def __getitem__(self, name: str) -> Tensor:
        """Return one weight's tensor.

        Raises:
            ModelError: the weight was not measured.
        """
        if name not in self.by_name:
            raise ModelError(
                f"'{name}' is not among the {len(self.by_name)} measured weights, e.g. '{[*self.by_name][0]}'"
            )
        return self.by_name[name]

    def __contains__(self, name: object) -> bool:
        """Return whether a weight was measured."""
        return name in self.by_name

    def __iter__(self) -> Iterator[str]:
        """Return an iterator over names in the model's order."""
        return iter(self.by_name)

    def __len__(self) -> int:
        """Return the number of measured weights."""
        return len(self.by_name)

    def total(self) -> Tensor:
        """Return the sum over all measured weights."""
        return torch.stack(list(self.by_name.values())).sum(dim=0)

    def _scales(self, reduction: str) -> Tensor:
        if reduction not in REDUCTIONS:
            raise ModelError(f"reduction '{reduction}' is unknown: choose mean (over an example's tokens) or sum")
        if reduction == self.reduction:
            return torch.ones(len(self.tokens), dtype=torch.float64)
        return self.tokens.double() if reduction == "sum" else 1 / self.tokens.double()


@dataclass(frozen=True)
class GradientGram(PerParameter):
    """K[i, j] = <G_i, G_j> by weight, (examples, examples) float64 on the CPU, symmetric."""

    routes: Mapping[str, str] = field(default_factory=dict)  # name -> pairs, slices, dense or loop

    def with_reduction(self, reduction: str) -> GradientGram:
        """Return the same inner products under the other convention; nothing is measured again."""
        scale = self._scales(reduction)
        values = {name: gram * torch.outer(scale, scale) for name, gram in self.by_name.items()}
        return replace(self, by_name=values, reduction=reduction)


@dataclass(frozen=True)
class GradientDots(PerParameter):
    """<G_i, D> by weight, (examples,) float64 on the CPU."""

    def with_reduction(self, reduction: str) -> GradientDots:
        """Return the same inner products under the other convention."""
        scale = self._scales(reduction)
        return replace(self, by_name={n: dots * scale for n, dots in self.by_name.items()}, reduction=reduction)


@dataclass(frozen=True)
class GradientSketch(PerParameter):
    """S(G_i) by weight, (examples, dim) float64 on the CPU; maps of weights are independent, so totals are sketches."""

    dim: int = 0
    seed: int = 0

    @property
    def standard_deviation(self) -> float:
        """Bound on the standard deviation of <S(G), S(F)> over seeds, in units of ||G|| ||F||."""
        return float((8 / self.dim) ** 0.5)

    def with_reduction(self, reduction: str) -> GradientSketch:
        """Return the same sketches under the other convention."""
        scale = self._scales(reduction)[:, None]
        return replace(self, by_name={n: sketch * scale for n, sketch in self.by_name.items()}, reduction=reduction)
