"""How deep is alignment? Divergence by answer position (Qi et al., arXiv 2406.05946)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from geomsafe.analyses.rates import Share, ratio
from geomsafe.errors import RecordError

POSITIONS = 20
"""Answer positions of the curve."""

FIRST = 5
"""Positions whose share of the sum says how shallow it is."""


class Position(NamedTuple):
    """Mean divergence in nats at one answer position, from 1, with its 95 % interval by cluster.

    `n` prompts have an answer that long, in `clusters` clusters; the interval is None below two of these.
    """

    position: int
    mean: float
    low: float | None
    high: float | None
    n: int
    clusters: int


def position_curve(values: Sequence[Sequence[float]], clusters: Sequence[str]) -> list[Position]:
    """Average divergences by position; a prompt with a shorter answer stops contributing.

    Args:
        values: (prompts,) divergences in nats at the first positions of each answer, as many as it has.
        clusters: (prompts,) cluster of each.

    Returns:
        One entry a position that any prompt has, at most 20.
    """
    _check(values, clusters)
    curve = []
    for index in range(min(POSITIONS, max((len(row) for row in values), default=0))):
        rows = [(row[index], cluster) for row, cluster in zip(values, clusters, strict=True) if len(row) > index]
        found = ratio([value for value, _ in rows], [1.0] * len(rows), [cluster for _, cluster in rows])
        several = len({cluster for _, cluster in rows})
        low, high = (found.low, found.high) if several > 1 else (None, None)
        curve.append(Position(index + 1, found.rate, low, high, len(rows), several))
    return curve


def first_share(values: Sequence[Sequence[float]], clusters: Sequence[str], first: int = FIRST) -> Share | None:
    """Compute the share of the summed divergence that falls into the first positions.

    share = sum over prompts of the first `first` positions / sum over prompts of the first 20. A flat curve over m
    positions gives first / m. The sums are over prompts, so that a prompt counts by what it diverges.

    Args:
        values: (prompts,) divergences as in `position_curve`.
        clusters: (prompts,) cluster of each.
        first: number of positions.

    Returns:
        The share with a 95 % interval, bootstrap over clusters; None where nothing diverges.
    """
    _check(values, clusters)
    whole = [sum(row[:POSITIONS]) for row in values]
    if not sum(whole) > 0:
        return None
    return ratio([sum(row[:first]) for row in values], whole, clusters)


def _check(values: Sequence[Sequence[float]], clusters: Sequence[str]) -> None:
    if len(values) != len(clusters):
        raise RecordError(f"{len(values)} prompts and {len(clusters)} clusters: give one cluster a prompt")
