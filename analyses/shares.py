"""How much of a displacement (or of the last update) lies in a left space?

Share of D in the space of the k leading columns of U: ||U_k^T D||_F^2 / ||D||_F^2, D the
weight's displacement theta - theta_0 or its last update. A random k-dimensional space holds
k / d_out of it. Displacements are far from random, so that baseline is easily passed by any
gradient's space: the controls that count are the spaces of benign and of sham gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomsafe.errors import RecordError


class ShareCurve(NamedTuple):
    """Share over k = 1 ... most, with the mean of a random space of k dimensions; both (most,)."""

    share: NDArray[np.float64]
    random: NDArray[np.float64]


def share_curve(by_column: NDArray[np.floating], norm: float, d_out: int, most: int = 32) -> ShareCurve | None:
    """Share of one weight's displacement inside the k leading directions.

    Args:
        by_column: (rank,) squared norms ||u_j^T D||^2, strongest column first.
        norm: ||D||_F.
        d_out: output dimension of the weight, rows of U.
        most: largest k; from the rank on the share stays.

    Returns:
        The curve, or None where the weight did not move.

    Raises:
        RecordError: more of the displacement inside the space than there is.
    """  # noqa: DOC502 - pooled_share_curve raises it
    return pooled_share_curve([by_column], [norm], [d_out], most)


def pooled_share_curve(
    by_column: Sequence[NDArray[np.floating]], norms: Sequence[float], d_outs: Sequence[int], most: int = 32
) -> ShareCurve | None:
    """Share of the displacement of several weights together, each in its own k leading directions.

    Energies add: sum_w ||U_w^T D_w||^2 / sum_w ||D_w||^2. The random baseline weighs each
    weight's k / d_out by its energy.

    Args:
        by_column: (rank,) squared norms of each weight.
        norms: ||D_w||_F of each weight.
        d_outs: output dimension of each weight.
        most: largest k.

    Returns:
        The curve, or None where no weight moved.

    Raises:
        RecordError: more of a displacement inside a space than there is.
    """
    total = float(np.sum(np.square(np.asarray(norms, dtype=np.float64))))
    if total <= 0:
        return None
    inside, random = np.zeros(most), np.zeros(most)
    k = np.arange(1, most + 1)
    for columns, norm, d_out in zip(by_column, norms, d_outs, strict=True):
        energy = np.cumsum(np.asarray(columns, dtype=np.float64))
        # Norms and columns are stored in float32 at times; a thousandth is not rounding.
        if len(energy) and energy[-1] > 1.001 * norm**2 + 1e-300:
            raise RecordError(
                f"a displacement of squared norm {norm**2:.6g} has {energy[-1]:.6g} of it in a subspace: "
                "the capture's norms and projections do not belong together"
            )
        inside += energy[np.minimum(k, len(energy)) - 1] if len(energy) else 0.0
        random += norm**2 * np.minimum(k, len(columns)) / d_out
    return ShareCurve(np.minimum(inside / total, 1.0), random / total)
