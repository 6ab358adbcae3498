"""Rates, differences of rates and their uncertainty.

Prompts made from one template are not independent: where several share a cluster, rates
are bootstrapped by cluster and differences permuted by cluster; Wilson intervals are for
independent prompts only (Miller 2411.00640). A resample of clusters that all agree has no
spread; there the interval is Wilson's over clusters, and `interval` says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from geomsafe.errors import RecordError

RESAMPLES = 2000


class Share(NamedTuple):
    """A binomial share in [0, 1] with its interval."""

    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class Rate:
    """A share of prompts: `count` of `n` in `clusters` clusters, in [0, 1], with a 95 % interval."""

    rate: float
    low: float
    high: float
    count: int
    n: int
    clusters: int
    interval: str


class Difference(NamedTuple):
    """Mean of paired differences a - b in [-1, 1] with a 95 % interval.

    `p_value`: two-sided permutation of a and b within clusters. `detectable`: smallest true
    difference that n pairs like these find at level .05 with power .8; None where the pairs
    do not differ at all and so say nothing about their spread.
    """

    difference: float
    low: float
    high: float
    p_value: float
    detectable: float | None
    n: int
    clusters: int
    interval: str


class SeedTest(NamedTuple):
    """Exact sign-flip test over paired seeds; `smallest_p` is what n seeds can reach at best."""

    mean: float
    p_value: float
    smallest_p: float
    n: int


def wilson(count: int, n: int, level: float = 0.95) -> Share:
    """Wilson score interval of a binomial share.

    Args:
        count: successes.
        n: independent trials, at least 1.
        level: of the interval.

    Returns:
        The share with its bounds in [0, 1].

    Raises:
        RecordError: there are no trials.
    """
    if n < 1:
        raise RecordError(f"a share of {n} trials is not defined")
    interval = stats.binomtest(count, n).proportion_ci(confidence_level=level, method="wilson")
    return Share(count / n, float(interval.low), float(interval.high))


def rate(hits: Sequence[bool], clusters: Sequence[str], level: float = 0.95) -> Rate:
    """Share of prompts that hit, with an interval that respects clusters.

    Args:
        hits: (prompts,) outcome of each.
        clusters: (prompts,) cluster of each; all different means independent.
        level: of the interval.

    Returns:
        The rate.

    Raises:
        RecordError: there are no prompts, or not one cluster a prompt.
    """
    if not hits or len(hits) != len(clusters):
        raise RecordError(f"a rate over {len(hits)} outcomes and {len(clusters)} clusters is not defined")
    count, n = int(sum(hits)), len(hits)
    sums, sizes = _by_cluster(np.asarray(hits, dtype=np.float64), clusters)
    groups = len(sums)
    if groups == n:
        _, low, high = wilson(count, n, level)
        return Rate(count / n, low, high, count, n, groups, "Wilson")
    low, high = _cluster_interval(sums, sizes, level)
    if high - low > 0:
        return Rate(count / n, low, high, count, n, groups, "cluster bootstrap")
    _, low, high = wilson(round(groups * count / n), groups, level)
    return Rate(count / n, min(low, count / n), max(high, count / n), count, n, groups, "Wilson over clusters")


def ratio(above: Sequence[float], below: Sequence[float], clusters: Sequence[str], level: float = 0.95) -> Share:
    """Ratio of two sums over prompts, with an interval by bootstrap over clusters.

    Args:
        above: (prompts,) what each adds to the numerator.
        below: (prompts,) what each adds to the denominator, whose sum is not 0; all 1 for a mean.
        clusters: (prompts,) cluster of each.
        level: of the interval.

    Returns:
        The ratio; with one cluster the interval is the ratio alone.

    Raises:
        RecordError: there are no prompts, or the three differ in number.
    """
    if not above or len({len(above), len(below), len(clusters)}) != 1:
        raise RecordError(
            f"a ratio over {len(above)} and {len(below)} prompts and {len(clusters)} clusters is not defined"
        )
    tops, _ = _by_cluster(np.asarray(above, dtype=np.float64), clusters)
    bottoms, _ = _by_cluster(np.asarray(below, dtype=np.float64), clusters)
    value = float(tops.sum() / bottoms.sum())
    low, high = _cluster_interval(tops, bottoms, level) if len(tops) > 1 else (value, value)
    return Share(value, low, high)


def paired_difference(
    a: Sequence[float], b: Sequence[float], clusters: Sequence[str], level: float = 0.95
) -> Difference:
    """Mean of a - b over pairs, bootstrapped and permuted by cluster.

    Args:
        a: (pairs,) outcomes in [0, 1] of one arm.
        b: (pairs,) outcomes of the other on the same seed and prompt.
        clusters: (pairs,) cluster of each prompt.
        level: of the interval.

    Returns:
        The difference.

    Raises:
        RecordError: the arms are empty or of different length.
    """
    if not a or len({len(a), len(b), len(clusters)}) != 1:
        raise RecordError(
            f"paired arms need equal lengths above 0, got {len(a)}, {len(b)} and {len(clusters)} clusters"
        )
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    sums, sizes = _by_cluster(differences, clusters)
    mean, n, groups = float(differences.mean()), len(differences), len(sums)
    if groups < 2 or not np.any(sums):
        reach = wilson(0, groups, level).high
        name = "Wilson over clusters" if groups > 1 else "one cluster: no interval"
        low, high = (max(mean - reach, -1.0), min(mean + reach, 1.0)) if groups > 1 else (-1.0, 1.0)
        return Difference(mean, low, high, 1.0, None, n, groups, name)
    low, high = _cluster_interval(sums, sizes, level)
    test = stats.permutation_test(
        (sums,),
        np.sum,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        alternative="two-sided",
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    # Delta method for a ratio of cluster sums; the bootstrap's own spread, without its noise.
    error = math.sqrt(groups / (groups - 1) * float(np.sum((sums - mean * sizes) ** 2))) / n
    return Difference(
        mean, low, high, float(test.pvalue), detectable_difference(error, groups - 1), n, groups, "cluster bootstrap"
    )


def seed_test(differences: Sequence[float]) -> SeedTest | None:
    """Exact two-sided sign-flip test of paired per-seed differences.

    Args:
        differences: (seeds,) one difference a seed.

    Returns:
        The test, or None below two seeds.
    """
    n = len(differences)
    if n < 2:
        return None
    values = np.asarray(differences, dtype=np.float64)
    test = stats.permutation_test(
        (values,),
        np.mean,
        permutation_type="samples",
        n_resamples=max(2**n, RESAMPLES),
        alternative="two-sided",
        rng=np.random.default_rng(0),
    )
    return SeedTest(float(values.mean()), float(test.pvalue), 2.0 ** (1 - n), n)


def detectable_difference(standard_error: float, freedom: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """Minimum detectable difference (t_{1 - alpha/2} + t_{power}) * standard error.

    Args:
        standard_error: of the difference.
        freedom: degrees of freedom behind it, at least 1.
        alpha: two-sided level.
        power: chance to find it.

    Returns:
        The difference, in the units of the standard error.
    """
    return float(stats.t.ppf(1 - alpha / 2, freedom) + stats.t.ppf(power, freedom)) * standard_error


def planned_difference(
    n: int,
    clusters: int,
    discordant: float,
    correlation: float = 1.0,
    alpha: float = 0.05,
    power: float = 0.8,
) -> float:
    """Minimum detectable difference of two arms on n common prompts, before anything has been run.

    standard error = sqrt(discordant (1 + (n / clusters - 1) correlation) / n): the variance of a paired difference of
    outcomes 0 and 1 without true difference, times the design effect for clusters of equal size (Kish, Survey
    Sampling, 1965); then `detectable_difference` with clusters - 1 degrees of freedom. After a run,
    `Difference.detectable` says the same from the pairs themselves.

    Args:
        n: prompts that both arms answer.
        clusters: clusters of these prompts, at least 2; n for independent ones.
        discordant: share of prompts on which the arms differ, in (0, 1].
        correlation: of the paired differences within a cluster, in [0, 1]; 1, the cautious default, lets a cluster
            count as one prompt.
        alpha: two-sided level.
        power: chance to find it.

    Returns:
        The difference of rates; above 1 where nothing can be found.

    Raises:
        RecordError: clusters, discordant or correlation are out of range.
    """
    if not 2 <= clusters <= n or not 0 < discordant <= 1 or not 0 <= correlation <= 1:
        raise RecordError(
            f"a comparison planned on {n} prompts in {clusters} clusters, {discordant:g} of them discordant, with "
            f"correlation {correlation:g} is not defined: 2 to n clusters, discordant in (0, 1], correlation in [0, 1]"
        )
    error = math.sqrt(discordant * (1 + (n / clusters - 1) * correlation) / n)
    return detectable_difference(error, clusters - 1, alpha, power)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Holm 1979).

    Args:
        p_values: (tests,) raw p values.

    Returns:
        (tests,) adjusted p values in the order given, at most 1.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for position, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - position) * p_values[index]))
        adjusted[index] = running
    return adjusted


def _by_cluster(
    values: NDArray[np.float64], clusters: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    _, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    sums = np.asarray(np.bincount(index, weights=values), dtype=np.float64)
    return sums, np.asarray(np.bincount(index), dtype=np.float64)


def _cluster_interval(sums: NDArray[np.float64], sizes: NDArray[np.float64], level: float) -> tuple[float, float]:
    if len(sums) < 2:
        return 0.0, 0.0
    # Degenerate resamples make scipy warn for BCa; the percentile interval has no such case.
    result = stats.bootstrap(
        (sums, sizes),
        _ratio,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _ratio(sums: NDArray[np.float64], sizes: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    return np.asarray(sums.sum(axis=axis) / sizes.sum(axis=axis))
