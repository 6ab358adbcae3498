"""Rates by category: each is the rate of its own prompts, and none is lost."""

from __future__ import annotations

import numpy as np
import pytest

from geomsafe.analyses import rates
from geomsafe.analyses.categories import SMALL, UNCATEGORISED, by_category
from geomsafe.errors import RecordError
from tests import reference

RNG = np.random.default_rng(0)
NAMES = ["homonyms", "definitions", "figurative_language", None, ""]
CATEGORIES = [NAMES[i] for i in RNG.choice(5, size=120, p=[0.4, 0.3, 0.1, 0.1, 0.1])]
CLUSTERS = [f"c{i // 2}" for i in range(120)]
HITS = [bool(x) for x in RNG.random(120) < 0.4]


def test_every_category_is_the_rate_of_its_own_prompts() -> None:
    found = by_category(HITS, CLUSTERS, CATEGORIES)
    assert [one.category for one in found] == ["definitions", "figurative_language", "homonyms", UNCATEGORISED]
    for one in found:
        rows = [i for i, name in enumerate(CATEGORIES) if (name or UNCATEGORISED) == one.category]
        hits, clusters = [HITS[i] for i in rows], [CLUSTERS[i] for i in rows]
        assert one.rate == rates.rate(hits, clusters)
        assert one.rate.rate == pytest.approx(sum(hits) / len(hits), abs=1e-12)
        assert one.small == (len(set(clusters)) < SMALL)
        if one.rate.interval == "cluster bootstrap":
            expected = reference.seeded_cluster_bootstrap(hits, clusters, rates.RESAMPLES, 0)
            assert (one.rate.low, one.rate.high) == pytest.approx(expected, abs=1e-12)
    assert sum(one.rate.n for one in found) == 120 and sum(one.rate.count for one in found) == sum(HITS)


def test_the_order_of_the_prompts_changes_nothing() -> None:
    order = np.random.default_rng(1).permutation(120)
    shuffled = by_category([HITS[i] for i in order], [CLUSTERS[i] for i in order], [CATEGORIES[i] for i in order])
    assert shuffled == by_category(HITS, CLUSTERS, CATEGORIES)


def test_small_categories_are_flagged_by_clusters_not_by_prompts() -> None:
    (wordings,) = by_category([True] * 50, [f"c{i % (SMALL - 1)}" for i in range(50)], ["x"] * 50)
    (enough,) = by_category([True] * 50, [f"c{i % SMALL}" for i in range(50)], ["x"] * 50)
    assert wordings.small and not enough.small
    assert rates.wilson(5, SMALL)[1:] == pytest.approx((0.24, 0.76), abs=0.005)


def test_categories_of_nothing_are_refused() -> None:
    with pytest.raises(RecordError, match="got 0 outcomes"):
        by_category([], [], [])
    with pytest.raises(RecordError, match="2 outcomes, 2 clusters and 1 categories"):
        by_category([True, False], ["a", "b"], ["x"])
