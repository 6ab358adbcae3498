"""The directions of a landscape, scaled to theta_0's length and, in a plane, exactly orthogonal.

Kept are coefficients, not tensors: unit direction u_i = sum_j C_ij raw_j, so that a displacement is put together one
weight at a time from directions that are made when asked for. Inner products are summed in float64 over all weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from geomsafe.errors import ConfigError
from geomsafe.landscape.directions import RawDirection, Start, start_of
from geomsafe.landscape_record import Direction
from geomsafe.methods.origin import wide
from geomsafe.models import l2_norm

EXACT = 1e-12
"""Largest inner product of the two unit directions of a plane."""

NEARLY_PARALLEL = 1e-4
"""Sine of the angle below which two directions span no plane that could be read."""

Shape = Literal["lines", "plane"]


class Frame:
    """Directions from theta_0.

    Attributes:
        shape: "lines" or "plane".
        start: theta_0 by weight.
        norm: ||theta_0||_2 over all weights.
        directions: as they are recorded.
        gram: cosines of the unit directions, float64.
    """

    def __init__(self, model: Any, raws: Sequence[RawDirection], shape: Shape) -> None:
        """Measure and scale the directions.

        Args:
            model: at theta_0.
            raws: the directions; two in a plane.
            shape: "lines" or "plane".

        Raises:
            ConfigError: a direction is zero, or two of a plane are parallel.
        """
        self.shape, self.start = shape, start_of(model)
        self.norm = math.sqrt(math.fsum(l2_norm(weight) ** 2 for weight in self.start.values()))
        self._raws = list(raws)
        gram = raw_gram(self.start, self._raws)
        for raw, square in zip(self._raws, gram.diagonal(), strict=True):
            if not square > 0:
                raise ConfigError(f"direction '{raw.name}' is zero: there is nowhere to go")
        self._coefficients = np.diag(1 / np.sqrt(gram.diagonal()))
        lengths = np.sqrt(gram.diagonal())
        if shape == "plane":
            lengths[1] = self._make_orthogonal(gram)
            found = raw_gram(self.start, [*map(self._unit, range(2))])
            if abs(found[0, 1]) > EXACT or abs(found[1, 1] - 1) > EXACT:
                # Of two long nearly parallel vectors the first pass leaves what rounding leaves of their products.
                size = math.sqrt(found[1, 1] - found[0, 1] ** 2)
                self._coefficients[1] = (self._coefficients[1] - found[0, 1] * self._coefficients[0]) / size
                lengths[1] *= size
                found = raw_gram(self.start, [*map(self._unit, range(2))])
            if abs(found[0, 1]) > EXACT:
                self._refuse(found[0, 1])
            self.gram = found.tolist()
        else:
            self.gram = (self._coefficients @ gram @ self._coefficients.T).tolist()
        self.directions = [
            Direction(
                name=raw.name,
                kind=raw.kind,
                options=raw.options,
                run=raw.run,
                length=float(length) / self.norm,
                facts=raw.facts,
            )
            for raw, length in zip(self._raws, lengths, strict=True)
        ]

    def _make_orthogonal(self, gram: NDArray[np.float64]) -> float:
        """Return the length of the second direction's part across the first."""
        along = gram[0, 1] / gram[0, 0]
        across = math.sqrt(max(0.0, gram[1, 1] - along * gram[0, 1]))
        if across < NEARLY_PARALLEL * math.sqrt(gram[1, 1]):
            self._refuse(gram[0, 1] / math.sqrt(gram[0, 0] * gram[1, 1]))
        self._coefficients[1] = [-along / across, 1 / across]
        return across

    def _refuse(self, cosine: float) -> None:
        """Refuse the plane.

        Raises:
            ConfigError: always.
        """
        first, second = (raw.name for raw in self._raws)
        raise ConfigError(
            f"directions '{first}' and '{second}' are nearly parallel (cosine {cosine:.8f}): they span no plane, "
            "take another second axis"
        )

    def _unit(self, index: int) -> _Unit:
        return _Unit(self._raws, self._coefficients[index])

    def displacement(self, line: int | None, at: Sequence[float]) -> Iterator[tuple[str, Tensor]]:
        """Yield a displacement weight by weight.

        Args:
            line: index of the direction; None in a plane.
            at: one coordinate on a line, two in a plane, as fractions of ||theta_0||.

        Yields:
            (weight, float64 tensor) for the weights that it has a part in.
        """
        steps = [self.norm * value for value in at]
        chosen = [line] if line is not None else [0, 1]
        weights = sum(step * self._coefficients[index] for step, index in zip(steps, chosen, strict=True))
        unit = _Unit(self._raws, np.asarray(weights))
        for name in self.start:
            part = unit.tensor(name)
            if part is not None:
                yield name, part

    def seen(self, change: Callable[[str], Tensor | None]) -> tuple[list[float], list[float], float]:
        """Say where a displacement lies as seen from the directions.

        Args:
            change: weight -> tensor, None for no change.

        Returns:
            Coordinates; shares of its squared length outside the plane (one number) or outside each line; its length.
            All as fractions of ||theta_0||; a displacement of zero has no share outside.
        """
        dots, square = np.zeros(len(self._raws)), 0.0
        for name in self.start:
            moved = change(name)
            if moved is None:
                continue
            square += float(moved.square().sum())
            for index, raw in enumerate(self._raws):
                part = raw.tensor(name)
                if part is not None:
                    dots[index] += float((part * moved).sum())
        coordinates = self._coefficients @ dots / self.norm
        length = math.sqrt(square) / self.norm
        held = [float(np.sum(coordinates**2))] if self.shape == "plane" else [float(value**2) for value in coordinates]
        outside = [max(0.0, 1 - part / length**2) if length else 0.0 for part in held]
        return coordinates.tolist(), outside, length


class _Unit:
    """A weighted sum of raw directions."""

    def __init__(self, raws: Sequence[RawDirection], weights: NDArray[np.float64]) -> None:
        self._parts = [(raw, float(weight)) for raw, weight in zip(raws, weights, strict=True) if weight]

    def tensor(self, name: str) -> Tensor | None:
        total: Tensor | None = None
        for raw, weight in self._parts:
            one = raw.tensor(name)
            if one is not None:
                total = weight * one if total is None else total.add_(one, alpha=weight)
        return total


def raw_gram(start: Start, directions: Sequence[RawDirection] | Sequence[_Unit]) -> NDArray[np.float64]:
    """Compute inner products of directions, one weight in memory at a time.

    Args:
        start: theta_0, for the names.
        directions: the directions.

    Returns:
        (directions, directions) float64.
    """
    gram = np.zeros((len(directions), len(directions)))
    for name in start:
        parts = [None if (part := one.tensor(name)) is None else wide(part) for one in directions]
        for row, first in enumerate(parts):
            for column, second in enumerate(parts[: row + 1]):
                if first is not None and second is not None:
                    gram[row, column] += float((first * second).sum())
    return gram + np.tril(gram, -1).T
