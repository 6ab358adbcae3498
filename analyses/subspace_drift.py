"""Does a left space turn while the model trains?

phi(U_t, U_0) falls below 1 by noise alone where the two come from different examples, so a
turn is called drift only below the same-step ceiling: with halves A and B of one set,

    cross   = (phi(A_t, B_0) + phi(B_t, A_0)) / 2
    ceiling = min(phi(A_t, B_t), phi(A_0, B_0))

all of N / 2 examples on either side, and never of the same ones. phi(U_t, U_0) of the
whole set shares its examples and with them its noise; it is shown and not judged.

The mean gradients themselves are compared between steps and runs by sketches; a sketch of
dimension m estimates <a, b> without bias; for rank-1 (Khatri-Rao) maps and for TensorSketch
its variance is at most 8 |a|^2 |b|^2 / m.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomsafe.analyses.subspaces import left_overlap_curve
from geomsafe.errors import RecordError


class Drift(NamedTuple):
    """phi over k = 1 ... most between a step and the start, and the two ceilings; arrays are (most,).

    `drifted` (most,): whether the cross overlap lies below both same-step ceilings.
    """

    cross: NDArray[np.float64]
    ceiling: NDArray[np.float64]
    baseline: NDArray[np.float64]
    drifted: NDArray[np.bool_]


class SketchCosine(NamedTuple):
    """Cosine of two sketched gradients, a bound on its standard deviation, and whether |cosine| is above twice that."""

    cosine: float
    deviation: float
    told_from_zero: bool


def subspace_drift(
    now: tuple[NDArray[np.floating], NDArray[np.floating]],
    start: tuple[NDArray[np.floating], NDArray[np.floating]],
    *,
    examples: tuple[int, int],
    most: int = 32,
) -> Drift:
    """Compare the left spaces of the halves A and B of one set at two steps.

    Args:
        now: bases (d_out, rank) of A and B at step t.
        start: bases of the same halves at step 0.
        examples: examples in A and in B.
        most: largest k.

    Returns:
        The overlap between steps beside the ceiling within a step.

    Raises:
        RecordError: the halves differ in size.
    """
    if examples[0] != examples[1]:
        raise RecordError(
            f"halves of {examples[0]} and {examples[1]} examples give no ceiling: overlaps compare at equal N"
        )
    across = [left_overlap_curve(now[0], start[1], most), left_overlap_curve(now[1], start[0], most)]
    cross = (across[0].phi + across[1].phi) / 2
    ceiling = np.minimum(left_overlap_curve(now[0], now[1], most).phi, left_overlap_curve(start[0], start[1], most).phi)
    # Rounding is not drift.
    return Drift(cross, ceiling, across[0].baseline, cross < ceiling - 1e-9)


def sketch_cosine(first: NDArray[np.floating], second: NDArray[np.floating]) -> SketchCosine | None:
    """Cosine of two gradients from their sketches, which must share map, seed and dimension.

    Args:
        first: (params, dim) sketches of one set's gradient by parameter.
        second: (params, dim) of the other's, same parameters, same maps.

    Returns:
        The cosine over all parameters; None where a gradient is zero. `deviation` is the
        square root of 8 / dim times the sum over parameters of |a_p|^2 |b_p|^2, over |a| |b|:
        an upper bound, since parameters are sketched independently.

    Raises:
        RecordError: the sketches have different shapes.
    """
    if first.shape != second.shape or first.ndim != 2:
        raise RecordError(f"sketches of shape {first.shape} and {second.shape} cannot be compared: dim and seed differ")
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    energy_a, energy_b = (a**2).sum(axis=1), (b**2).sum(axis=1)
    norm = math.sqrt(float(energy_a.sum()) * float(energy_b.sum()))
    if norm == 0:
        return None
    cosine = float((a * b).sum()) / norm
    # Sketches of different parameters are independent: their variances add.
    deviation = math.sqrt(8 / a.shape[1] * float(np.sum(energy_a * energy_b))) / norm
    return SketchCosine(cosine, deviation, abs(cosine) > 2 * deviation)
