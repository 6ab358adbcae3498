"""Which measure of drift collapses all runs onto one curve of attack success?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats
from sklearn.isotonic import IsotonicRegression


def smoothed_logit(rate: float, n: int) -> float:
    """Log odds of a rate with half a hit and half a miss added, finite at 0 and 1 (Haldane 1956; Anscombe 1956).

    Args:
        rate: share in [0, 1].
        n: prompts behind it, at least 1.

    Returns:
        log((rate n + 1/2) / (n - rate n + 1/2)).
    """
    return math.log((rate * n + 0.5) / (n - rate * n + 0.5))


def left_out_r2(x: Sequence[float], y: Sequence[float], families: Sequence[str]) -> float | None:
    """R^2 of predictions of each family from a monotone fit to all others.

    1 - sum (y - prediction)^2 / sum (y - mean y)^2 over all points. The fit is isotonic regression (scikit-learn),
    rising or falling as the other families have it, and constant beyond their range. Below 0 the curve of the
    others predicts a family worse than the overall mean does.

    Args:
        x: (points,) the measure of drift.
        y: (points,) outcome, such as logit attack success.
        families: (points,) method of each point; each is left out once.

    Returns:
        R^2, at most 1; None below two families, or where an outcome or a measure does not vary.
    """
    names = list(dict.fromkeys(families))
    places, values, groups = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64), np.asarray(families)
    if len(names) < 2 or len(np.unique(values)) < 2 or len(np.unique(places)) < 2:
        return None
    predicted = np.empty_like(values)
    for name in names:
        left = groups == name
        if len(np.unique(places[~left])) < 2:
            # One place has no curve: its mean is all that it foretells.
            predicted[left] = values[~left].mean()
            continue
        # scikit-learn's own choice of direction warns where the outcome is constant; there either will do.
        ranks = stats.rankdata(places[~left]), stats.rankdata(values[~left])
        rising = bool(np.cov(*ranks)[0, 1] >= 0)
        fit = IsotonicRegression(increasing=rising, out_of_bounds="clip")
        predicted[left] = fit.fit(places[~left], values[~left]).predict(places[left])
    residual, total = np.sum((values - predicted) ** 2), np.sum((values - values.mean()) ** 2)
    return float(1 - residual / total)
