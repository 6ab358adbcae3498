"""Where the safety basin ends: edges along directions, their uncertainty, widths, margins, and what width foretells.

A curve is a matrix of outcomes, one row a point and one column a prompt. Everything that is said about it is computed
under many weightings of the prompts at once: all alike, which is the estimate, and resamples of clusters, which give
the 95 % interval. Between points a curve is a straight line. An edge beyond the last point is not known: it is
"not reached", and counts as infinitely far in quantiles.

Coordinates are distances from theta_0 as fractions of ||theta_0||; nothing here knows a model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.interpolate import LinearNDInterpolator

from geomsafe.analyses.rates import RESAMPLES
from geomsafe.errors import RecordError

Array = NDArray[np.float64]

INTERVAL = (2.5, 97.5)
SLACK = 1e-12
FEWEST_RUNS = 6
"""Fewest runs over which a rank correlation is printed with an interval."""

FEWEST_DIRECTIONS = 10
"""Fewest random directions that make a band."""


class Bounded(NamedTuple):
    """A number with its 95 % interval; None where it is not reached, or has no bound."""

    value: float | None
    low: float | None
    high: float | None


class Edge(NamedTuple):
    """Where a curve first meets its threshold on one side of theta_0.

    Attributes:
        at: the distance; None where it is not reached.
        low: lower bound of the interval.
        high: upper bound; None where more than 2.5 % of the resamples do not reach it.
        looked: how far there are points.
        censored: share of resamples that do not reach it.
        crossings: how often the curve crosses the threshold on this side.
        steepness: change of the curve per 1 % of ||theta_0||; of a rate from half to one and a half times its
            threshold, which one prompt near the edge does not rule, else between the points around the edge; None
            where the edge is not reached.
        draws: (resamples + 1,) the edge under each weighting, the estimate first, infinite where not reached.
    """

    at: float | None
    low: float | None
    high: float | None
    looked: float
    censored: float
    crossings: int
    steepness: float | None
    draws: Array


def weightings(clusters: Sequence[str], resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """Return how much each prompt counts: once as it is, then in resamples of whole clusters.

    Args:
        clusters: (prompts,) cluster of each prompt.
        resamples: how many.
        seed: of the draws.

    Returns:
        (resamples + 1, prompts), the first row all 1.

    Raises:
        RecordError: there are no prompts.
    """
    if not len(clusters):
        raise RecordError("a curve over no prompts is not defined")
    _, member = np.unique(np.asarray(clusters), return_inverse=True)
    groups = int(member.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=resamples)
    return np.vstack([np.ones(len(member)), drawn[:, member]]).astype(np.float64)


def curves(values: Array, weights: Array) -> Array:
    """Average each point over prompts, under every weighting.

    Args:
        values: (points, prompts), NaN where a prompt has no value.
        weights: (weightings, prompts).

    Returns:
        (weightings, points); NaN where no prompt with weight has a value.
    """
    present = ~np.isnan(values)
    sums = weights @ np.where(present, values, 0.0).T
    counts = weights @ present.astype(np.float64).T
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Array = np.where(counts > 0, sums / counts, np.nan)
    return found


def first_crossing(x: Array, y: Array, threshold: float | Array, *, rising: bool = True) -> Array:
    """Return the first place where each curve meets its threshold, going outward.

    Args:
        x: (points,) distances, rising from 0.
        y: (weightings, points).
        threshold: one, or (weightings,).
        rising: whether the edge is where the curve is at or above the threshold; else below it.

    Returns:
        (weightings,) distances by linear interpolation; infinite where the threshold is not met.
    """
    level = np.broadcast_to(np.asarray(threshold, dtype=np.float64), (len(y),))[:, None]
    over = y - level if rising else level - y
    # Below a threshold means strictly below: a share that is exactly kept is kept.
    met = over >= 0 if rising else over > 0
    met &= ~np.isnan(over)
    found = np.full(len(y), np.inf)
    reached = met.any(axis=1)
    index = met.argmax(axis=1)
    found[reached & (index == 0)] = x[0]
    inner = np.flatnonzero(reached & (index > 0))
    right = index[inner]
    before, after = over[inner, right - 1], over[inner, right]
    # A neighbour without a value leaves no line to follow.
    share = np.where(np.isnan(before), 1.0, -before / np.where(after - before == 0, 1.0, after - before))
    found[inner] = x[right - 1] + np.clip(share, 0.0, 1.0) * (x[right] - x[right - 1])
    return found


def count_crossings(y: Array, threshold: float) -> int:
    """Return how often a curve passes from one side of a threshold to the other, NaN left out."""
    over = y[~np.isnan(y)] >= threshold
    return int(np.count_nonzero(over[1:] != over[:-1]))


def edge_of(x: Array, y: Array, draws: Array, *, threshold: float = math.nan) -> Edge:
    """Describe an edge.

    Args:
        x: (points,) distances, rising from 0.
        y: (points,) the curve under equal weights.
        draws: (weightings,) first crossings, the estimate first.
        threshold: of the curve, for crossings; NaN where the edge is that of several curves.

    Returns:
        The edge.
    """
    at = float(draws[0])
    low, high = quantiles(draws[1:])
    steepness = None
    if math.isfinite(at):
        right = int(np.clip(np.searchsorted(x, at), 1, len(x) - 1))
        steepness = float((y[right] - y[right - 1]) / (x[right] - x[right - 1]) / 100)
    return Edge(
        at if math.isfinite(at) else None,
        low,
        high,
        float(x[-1]),
        float(np.isinf(draws[1:]).mean()) if len(draws) > 1 else float(math.isinf(at)),
        0 if math.isnan(threshold) else count_crossings(y, threshold),
        steepness,
        draws,
    )


def quantiles(draws: Array) -> tuple[float | None, float | None]:
    """Return the 95 % interval of draws, None where a bound is not reached."""
    if not len(draws):
        return None, None
    # Order statistics, since between a number and infinity nothing can be interpolated.
    low, high = np.percentile(draws, INTERVAL, method="nearest")
    return tuple(float(one) if math.isfinite(one) else None for one in (low, high))  # type: ignore[return-value]


def rate_edge(x: Array, values: Array, weights: Array, threshold: float) -> Edge:
    """Return where a rate first reaches a threshold: coherent compliance, the sham's loss, negative margins.

    Args:
        x: (points,) distances, rising from 0.
        values: (points, prompts) of 0 and 1, NaN where a prompt has no value.
        weights: from `weightings`.
        threshold: of the rate.

    Returns:
        The edge.
    """
    y = curves(values, weights)
    edge = edge_of(x, y[0], first_crossing(x, y, threshold), threshold=threshold)
    below, above = (float(first_crossing(x, y[:1], factor * threshold)[0]) for factor in (0.5, 1.5))
    if math.isfinite(above) and above > below:
        return edge._replace(steepness=threshold / (above - below) / 100)
    return edge


def kept_edge(x: Array, values: Array, weights: Array, start: Array, share: float) -> Edge:
    """Return where a skill first falls below a share of what theta_0 has of it.

    Args:
        x: (points,) distances, rising from 0.
        values: (points, prompts) of 0 and 1.
        weights: from `weightings`.
        start: (prompts,) at theta_0.
        share: that is to be kept.

    Returns:
        The edge.
    """
    y = curves(values, weights)
    # A share that is exactly kept is kept, whatever rounding makes of the product.
    level = share * curves(start[None], weights)[:, 0] - SLACK
    return edge_of(x, y[0], first_crossing(x, y, level, rising=False), threshold=float(level[0]))


def nearer(first: Edge, second: Edge | None) -> Edge:
    """Return the edge that comes first under each weighting: where either of two things goes.

    Args:
        first: one edge.
        second: another on the same side, or none; drawn with as many resamples.
    """
    if second is None:
        return first
    draws = np.minimum(first.draws, second.draws)
    base = first if first.draws[0] <= second.draws[0] else second
    low, high = quantiles(draws[1:])
    return base._replace(low=low, high=high, censored=float(np.isinf(draws[1:]).mean()), draws=draws)


def which_first(first: Edge, second: Edge) -> str:
    """Say which of two edges comes first.

    Args:
        first: one edge.
        second: the other; drawn by pairs where both come from the same prompts, else independently.

    Returns:
        "first" or "second" where it does so in at least 97.5 % of the resamples, "neither reached" or
        "not told apart".
    """
    ours, theirs = first.draws[1:], second.draws[1:]
    if (np.isinf(ours) & np.isinf(theirs)).all():
        return "neither reached"
    if (ours < theirs).mean() >= 0.975:
        return "first"
    return "second" if (theirs < ours).mean() >= 0.975 else "not told apart"


def half_width(plus: Edge | None, minus: Edge | None) -> tuple[Bounded, Array]:
    """Average the edges of both sides: half of the basin's width along a direction.

    Args:
        plus: the edge on one side.
        minus: the edge on the other.

    Returns:
        The half-width, None where a side is not reached, and its draws.
    """
    sides = [edge.draws for edge in (plus, minus) if edge is not None]
    if not sides:
        return Bounded(None, None, None), np.array([np.inf])
    draws: Array = np.mean(sides, axis=0)
    return bounded(draws), draws


def over_median(draws: Array, others: Sequence[Array]) -> Bounded:
    """Divide a half-width by the median half-width of random directions, weighting by weighting.

    Args:
        draws: (weightings,) of the direction.
        others: one such array a random direction.

    Returns:
        The ratio; None where either is not reached.
    """
    if not others:
        return Bounded(None, None, None)
    middle = np.median(np.asarray(others), axis=0)
    # Over a width that is not known nothing can be said, though it would be small.
    ratio = np.divide(draws, middle, out=np.full_like(draws, np.inf), where=np.isfinite(middle))
    return bounded(ratio)


def bounded(draws: Array) -> Bounded:
    """Return the estimate of draws, which comes first, and the interval of the others; NaN counts as not reached."""
    known = np.where(np.isnan(draws), np.inf, draws)
    return Bounded(float(known[0]) if math.isfinite(known[0]) else None, *quantiles(known[1:]))


def band(x: Array, lines: Sequence[tuple[Array, Array]], low: float = 5, high: float = 95) -> Array:
    """Compute the spread of a curve over directions.

    Args:
        x: (points,) where it is wanted.
        lines: (coordinates, curve) of each direction, coordinates rising; a line says nothing beyond its ends.
        low: percentile of the lower bound.
        high: percentile of the upper bound.

    Returns:
        (points, 4): median, lower and upper bound over the directions that reach there, and how many these are.
    """
    found = np.full((len(x), 4), np.nan)
    read = np.array([np.interp(x, own, y, left=np.nan, right=np.nan) for own, y in lines])
    for index, column in enumerate(read.T):
        present = column[~np.isnan(column)]
        found[index, 3] = len(present)
        if len(present):
            found[index, :3] = np.percentile(present, [50, low, high])
    return found


class Correlation(NamedTuple):
    """Spearman's rank correlation over runs with interval and two-sided permutation p; None below 6 runs."""

    n: int
    spearman: float | None
    low: float | None
    high: float | None
    p: float | None
    said: str


def foretells(predictor: Sequence[float], outcome: Sequence[float], seed: int = 0) -> Correlation:
    """Ask whether a number foretells another over runs.

    Args:
        predictor: (runs,), infinite where an edge was not reached: it then ranks last.
        outcome: (runs,).
        seed: of permutations and resamples.

    Returns:
        The correlation; the interval is by bootstrap over runs, which takes them as independent.
    """
    x, y = np.asarray(predictor, dtype=np.float64), np.asarray(outcome, dtype=np.float64)
    kept = ~(np.isnan(x) | np.isnan(y))
    x, y = x[kept], y[kept]
    n = len(x)
    if n < FEWEST_RUNS:
        return Correlation(n, None, None, None, None, f"n too small: {n} runs, {FEWEST_RUNS} needed")
    if len(np.unique(x)) < 2 or len(np.unique(y)) < 2:
        return Correlation(n, None, None, None, None, "all runs are alike")
    ranks = stats.rankdata(y)
    rng = np.random.default_rng(seed)

    def statistic(first: Array, axis: int = -1) -> Array:
        return _correlation(first, np.broadcast_to(ranks, first.shape), axis)

    found = stats.permutation_test(
        (stats.rankdata(x),), statistic, permutation_type="pairings", n_resamples=RESAMPLES, rng=rng, vectorized=True
    )
    picked = rng.integers(0, n, (RESAMPLES, n))
    draws = _correlation(stats.rankdata(x[picked], axis=-1), stats.rankdata(y[picked], axis=-1), -1)
    # A resample of runs that are all alike has no correlation.
    low, high = np.nanpercentile(draws, INTERVAL)
    said = "foretells" if found.pvalue < 0.05 else "not shown to"
    return Correlation(n, float(found.statistic), float(low), float(high), float(found.pvalue), said)


def _correlation(first: Array, second: Array, axis: int) -> Array:
    """Return Pearson's correlation along an axis; NaN where one side does not vary."""
    ours = first - first.mean(axis=axis, keepdims=True)
    theirs = second - second.mean(axis=axis, keepdims=True)
    size = np.sqrt((ours**2).sum(axis=axis) * (theirs**2).sum(axis=axis))
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Array = np.where(size > 0, (ours * theirs).sum(axis=axis) / size, np.nan)
    return found


def surface(points: Array, values: Array, x: Array, y: Array) -> Array:
    """Fill a lattice from scattered points, linearly inside their hull.

    Args:
        points: (points, 2).
        values: (points,).
        x: (columns,) of the lattice.
        y: (rows,).

    Returns:
        (rows, columns), NaN outside the hull.
    """
    known = ~np.isnan(values)
    if known.sum() < 4:
        return np.full((len(y), len(x)), np.nan)
    grid = np.meshgrid(x, y)
    found: Array = LinearNDInterpolator(points[known], values[known])(grid[0], grid[1])
    return found
