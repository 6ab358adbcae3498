"""Curves read at the same place: what would the comparator's outcomes be, had it moved as far as the arm?

A curve is a list of checkpoints with a place on an axis (L2, KL, utility loss) and a row of numbers each: the
outcomes of every prompt, or places on other axes. Between two neighbouring checkpoints the row is interpolated
linearly; outside the curve's support nothing is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Tolerance(NamedTuple):
    """How far apart two values may lie and still be matched: a share of the comparator's, or an amount."""

    limit: float
    relative: bool


TOLERANCES = {
    "l2": Tolerance(0.02, True),
    "kl": Tolerance(0.05, True),
    "utility_loss": Tolerance(0.02, False),
}


def read_curve(
    x: float, places: Sequence[float], rows: Sequence[Sequence[float]] | NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Read every column of a curve at `x` by linear interpolation between the bracketing checkpoints.

    Args:
        x: where to read.
        places: (checkpoints,) places on the axis, any order; rows of equal places are averaged.
        rows: (checkpoints, columns) numbers at each checkpoint.

    Returns:
        (columns,) the row at `x`; None outside the support: not comparable. One place is its own support.
    """
    at = np.asarray(places, dtype=np.float64)
    support = np.unique(at)
    if not len(support) or not support[0] <= x <= support[-1]:
        return None
    values = np.asarray(rows, dtype=np.float64)  # (checkpoints, columns)
    right = min(int(np.searchsorted(support, x, side="left")), len(support) - 1)
    left = max(right - 1, 0)
    share = (x - support[left]) / (support[right] - support[left]) if right > left else 0.0
    before, after = (values[at == support[place]].mean(axis=0) for place in (left, right))
    return np.asarray((1 - share) * before + share * after, dtype=np.float64)


def support_place(axis: str, x: float, places: Sequence[float]) -> float | None:
    """Return where on a curve an arm's place is read: itself, or the curve's end where it is matched with that.

    Two runs that end equally far out end apart by rounding; what lies beyond an end by no more than the tolerance of
    the axis is matched with the end.

    Args:
        axis: "l2", "kl" or "utility_loss".
        x: the arm's place.
        places: (checkpoints,) of the comparator.

    Returns:
        A place within the support, or None: no common support.
    """
    if not places:
        return None
    end = min(max(x, min(places)), max(places))
    return end if within_tolerance(axis, x - end, end) else None


def within_tolerance(axis: str, apart: float, reference: float) -> bool:
    """Return whether an arm lies close enough to its comparator on an axis.

    Args:
        axis: "l2", "kl" or "utility_loss".
        apart: the arm's value minus the comparator's.
        reference: the comparator's value.

    Returns:
        |apart| <= 2 % (l2), 5 % (kl) of the comparator's, or <= .02 nats (utility loss).
    """
    limit, relative = TOLERANCES[axis]
    # Rounding must not part two equal places.
    return abs(apart) <= limit * (abs(reference) if relative else 1.0) + 1e-12
