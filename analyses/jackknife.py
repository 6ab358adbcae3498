"""U-statistics of Gram matrices with every unit left out once, for all layers at once.

Nothing is recomputed: without unit i a sum loses its row and column. Two-sample delete-one
jackknife (Arvesen 1969): the variances of the sets add.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

# All 35 halvings of 8 units, 126 of 9; above that this many drawn with a fixed seed.
_MOST_HALVINGS = 200


class Square(NamedTuple):
    """Squared norm of a set's mean gradient, without the noise.

    `products` (layers, units, units); `mean` (layers,) the U-statistic; `without`
    (layers, units) the same with one unit left out; `plain` (layers,) the sum of all products.
    """

    products: NDArray[np.float64]
    mean: NDArray[np.float64]
    without: NDArray[np.float64]
    plain: NDArray[np.float64]

    @classmethod
    def of(cls, products: NDArray[np.float64], weights: NDArray[np.float64]) -> Square:
        """Take U from different units only.

        Args:
            products: (layers, units, units) inner products of summed gradients.
            weights: (units,) what each sum is divided by.

        Returns:
            U and its leave-one-out values.
        """
        diagonal, rows = np.diagonal(products, axis1=1, axis2=2), products.sum(axis=2)
        plain, total = rows.sum(axis=1), weights.sum()
        pairs = total**2 - np.sum(weights**2)
        off = plain - diagonal.sum(axis=1)
        without = (off[:, None] - 2 * (rows - diagonal)) / (pairs - 2 * weights * (total - weights))
        return cls(products, off / pairs, without, plain)

    def interval(self, level: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return lower and upper jackknife bound of U, each (layers,)."""
        units = self.without.shape[1]
        reach = float(stats.t.ppf((1 + level) / 2, units - 1)) * deviation(self.without)
        return self.mean - reach, self.mean + reach


class Cross(NamedTuple):
    """Inner product of two sets' mean gradients: `mean` (layers,), and with a unit of either set left out."""

    mean: NDArray[np.float64]
    without_first: NDArray[np.float64]
    without_second: NDArray[np.float64]
    plain: NDArray[np.float64]

    @classmethod
    def of(cls, products: NDArray[np.float64], first: NDArray[np.float64], second: NDArray[np.float64]) -> Cross:
        """Average all products of the two sets.

        Args:
            products: (layers, units of the first, units of the second).
            first: (units of the first,) weights.
            second: (units of the second,) weights.

        Returns:
            The mean and its leave-one-out values.
        """
        by_first, by_second = products.sum(axis=2), products.sum(axis=1)
        plain = by_first.sum(axis=1)
        a, b = first.sum(), second.sum()
        return cls(
            plain / (a * b),
            (plain[:, None] - by_first) / ((a - first) * b),
            (plain[:, None] - by_second) / (a * (b - second)),
            plain,
        )

    def cosine(
        self, first: Square, second: Square
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Divide by the U-statistics.

        Args:
            first: of the first set.
            second: of the second set.

        Returns:
            The cosine (layers,), and with one unit of the first and of the second set left
            out, (layers, units) each; NaN where a squared norm is not positive.
        """
        return (
            _over_root(self.mean, first.mean * second.mean),
            _over_root(self.without_first, _positive(first.without) * second.mean[:, None]),
            _over_root(self.without_second, first.mean[:, None] * _positive(second.without)),
        )

    def raw(self, first: Square, second: Square) -> NDArray[np.float64]:
        """Return the cosine of the two mean gradients as they are, noise and all, (layers,)."""
        return _over_root(self.plain, first.plain * second.plain)


def deviation(without: NDArray[np.float64]) -> NDArray[np.float64]:
    """Jackknife standard error from leave-one-out values.

    Args:
        without: (layers, units).

    Returns:
        (layers,) sqrt((units - 1) / units * sum of squared deviations); NaN where a value is.
    """
    units = without.shape[1]
    spread = np.sum((without - without.mean(axis=1, keepdims=True)) ** 2, axis=1)
    return np.asarray(np.sqrt((units - 1) / units * spread), dtype=np.float64)


def halves_cosine(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """Split-half reliability: mean cosine between the summed gradients of two halves, over halvings.

    Args:
        products: (layers, units, units).

    Returns:
        (layers,) in [-1, 1]; NaN where a half has no gradient.
    """
    first = _halvings(products.shape[1])
    rows = first @ products
    within = np.einsum("lhi,hi->lh", rows, first)
    cross = rows.sum(axis=2) - within
    others = products.sum(axis=(1, 2))[:, None] - within - 2 * cross
    # The complement's norm comes from a difference, which leaves rounding where it is zero.
    others = np.where(others > 1e-12 * np.abs(within + cross), others, 0.0)
    return np.asarray(_over_root(cross, _positive(within) * others).mean(axis=1), dtype=np.float64)


def _positive(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(values > 0, values, np.nan)


def _over_root(numerator: NDArray[np.float64], squared: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(squared > 0, numerator / np.sqrt(np.where(squared > 0, squared, 1.0)), np.nan)


@cache
def _halvings(units: int) -> NDArray[np.float64]:
    # (halvings, units) ones for the half without unit 0, so that no halving comes twice.
    if units <= 9:
        halves = list(itertools.combinations(range(1, units), units // 2))
    else:
        rng = np.random.default_rng(0)
        halves = [tuple(rng.permutation(np.arange(1, units))[: units // 2]) for _ in range(_MOST_HALVINGS)]
    chosen = np.zeros((len(halves), units))
    for row, half in enumerate(halves):
        chosen[row, list(half)] = 1
    return chosen
