"""Rates by category: which kinds of prompts a model answers or refuses.

A category is whatever tag the prompts carry: XSTest's `type`, JailbreakBench's `Category`, a kind of harm of the
organism. Each category is a rate of its own, with the interval of `analyses.rates`; nothing is compared or adjusted
here, so that the largest of many categories is a description and no finding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from geomsafe.analyses.rates import Rate, rate
from geomsafe.errors import RecordError

SMALL = 10
"""Clusters below which a category is called small: at 10, the Wilson interval of a rate of one half is .24 to .76."""

UNCATEGORISED = "uncategorised"
"""Where prompts without the tag are counted."""


@dataclass(frozen=True)
class CategoryRate:
    """One category of prompts.

    Attributes:
        category: the tag's value.
        rate: share of its prompts that hit, in [0, 1], with interval, prompts and clusters.
        small: fewer than `SMALL` clusters: too few to say more than that it was looked at.
    """

    category: str
    rate: Rate
    small: bool


def by_category(
    hits: Sequence[bool], clusters: Sequence[str], categories: Sequence[str | None], level: float = 0.95
) -> list[CategoryRate]:
    """Compute the rate of every category.

    Args:
        hits: (prompts,) outcome of each.
        clusters: (prompts,) cluster of each; those of a category are resampled together.
        categories: (prompts,) tag of each; None or empty where it has none.
        level: of the intervals.

    Returns:
        One entry a category, by name, the prompts without one last. Counts add up to the prompts.

    Raises:
        RecordError: there are no prompts, or not one cluster and one category a prompt.
    """
    if not hits or len({len(hits), len(clusters), len(categories)}) != 1:
        raise RecordError(
            f"rates by category need one cluster and one category a prompt, got {len(hits)} outcomes, "
            f"{len(clusters)} clusters and {len(categories)} categories"
        )
    members: dict[str, list[int]] = {}
    for index, category in enumerate(categories):
        members.setdefault(category or UNCATEGORISED, []).append(index)
    return [
        _category(name, [hits[i] for i in members[name]], [clusters[i] for i in members[name]], level)
        for name in sorted(members, key=lambda name: (name == UNCATEGORISED, name))
    ]


def _category(name: str, hits: Sequence[bool], clusters: Sequence[str], level: float) -> CategoryRate:
    found = rate(hits, clusters, level)
    return CategoryRate(name, found, found.clusters < SMALL)
