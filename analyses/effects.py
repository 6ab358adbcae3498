"""Main effects of tuned settings on a rate: one setting at a time, all others as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from geomsafe.errors import RecordError

RESAMPLES = 2000


class Level(NamedTuple):
    """Mean outcome of the points at one level, with a 95 % bootstrap interval over points; none from one point."""

    level: str
    n: int
    mean: float
    low: float | None
    high: float | None


class MainEffect(NamedTuple):
    """Levels of a setting and eta^2, the share of the outcome's variance between them in [0, 1].

    `share` is None where the outcome does not vary or there is one level only: nothing to explain, or nothing
    to explain it with.
    """

    levels: list[Level]
    share: float | None


def main_effect(levels: Sequence[str], outcomes: Sequence[float], confidence: float = 0.95) -> MainEffect:
    """Mean outcome a level, and the setting's own share of variance.

    eta^2 = sum over levels of n_l (mean_l - mean)^2 / sum over points of (y - mean)^2. Where settings are not
    crossed with equal counts, the shares of several settings overlap and do not add up.

    Args:
        levels: (points,) value of the setting, as text.
        outcomes: (points,) what is explained, such as attack success.
        confidence: level of the intervals.

    Returns:
        The effect, levels in the order of their first point.

    Raises:
        RecordError: no points, or not one outcome a level.
    """
    if not levels or len(levels) != len(outcomes):
        raise RecordError(f"a main effect over {len(levels)} levels and {len(outcomes)} outcomes is not defined")
    groups: dict[str, list[float]] = {}
    for level, outcome in zip(levels, outcomes, strict=True):
        groups.setdefault(level, []).append(outcome)
    values = np.asarray(outcomes, dtype=np.float64)
    total = float(np.sum((values - values.mean()) ** 2))
    between = sum(len(group) * (float(np.mean(group)) - float(values.mean())) ** 2 for group in groups.values())
    # Rounding leaves about 1e-33 where all outcomes are equal.
    share = between / total if len(groups) > 1 and total > 1e-20 * len(values) else None
    return MainEffect([_level(level, np.asarray(group), confidence) for level, group in groups.items()], share)


def _level(level: str, values: NDArray[np.float64], confidence: float) -> Level:
    mean = float(values.mean())
    if len(values) < 2:
        return Level(level, len(values), mean, None, None)
    found = stats.bootstrap(
        (values,),
        np.mean,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Level(level, len(values), mean, float(found.low), float(found.high))
