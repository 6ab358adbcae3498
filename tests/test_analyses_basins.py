"""Edges, widths and what they foretell, on curves whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from geomsafe.analyses.basins import (
    band,
    bounded,
    count_crossings,
    curves,
    edge_of,
    first_crossing,
    foretells,
    half_width,
    kept_edge,
    nearer,
    over_median,
    rate_edge,
    surface,
    weightings,
    which_first,
)
from geomsafe.errors import RecordError

X = np.linspace(0, 1, 21)
CLUSTERS = [f"c{index // 2}" for index in range(40)]


def outcomes(edges: np.ndarray) -> np.ndarray:
    """(points, prompts): each prompt turns at its own distance."""
    return (X[:, None] >= edges[None]).astype(float)


def slow_edge(x: np.ndarray, values: np.ndarray, weights: np.ndarray, threshold: float) -> float:
    """Walk outward point by point, with weights written out."""
    before = None
    for place, row in zip(x, values, strict=True):
        mean = sum(w * v for w, v in zip(weights, row, strict=True)) / sum(weights)
        if mean >= threshold:
            if before is None:
                return float(place)
            at, low = before
            return float(at + (threshold - low) / (mean - low) * (place - at))
        before = (place, mean)
    return float("inf")


def test_the_edge_under_every_weighting_equals_a_walk() -> None:
    values, weights = outcomes(np.random.default_rng(0).normal(0.5, 0.2, 40)), weightings(CLUSTERS, 50)
    edge = rate_edge(X, values, weights, 0.5)
    assert edge.draws == pytest.approx([slow_edge(X, values, row, 0.5) for row in weights])
    assert edge.at == pytest.approx(slow_edge(X, values, np.ones(40), 0.5))
    assert edge.low is not None and edge.high is not None and edge.low < edge.at < edge.high
    assert edge.crossings == 1 and edge.looked == 1.0


def test_weightings_draw_whole_clusters() -> None:
    weights = weightings(CLUSTERS, 200)
    assert np.array_equal(weights[0], np.ones(40))
    assert np.array_equal(weights[:, ::2], weights[:, 1::2]), "prompts of a cluster are drawn together"
    assert set(weights[1:, ::2].sum(axis=1)) == {20.0}
    assert np.array_equal(weights, weightings(CLUSTERS, 200)) and not np.array_equal(
        weights, weightings(CLUSTERS, 200, 1)
    )
    with pytest.raises(RecordError):
        weightings([])


def test_intervals_of_clusters_are_wider_than_of_prompts() -> None:
    """The negative control: taking prompts of a cluster as independent makes the interval too short."""
    edges = np.repeat(np.random.default_rng(1).normal(0.5, 0.2, 10), 4)
    by_cluster = rate_edge(X, outcomes(edges), weightings([f"c{i // 4}" for i in range(40)]), 0.5)
    by_prompt = rate_edge(X, outcomes(edges), weightings([str(i) for i in range(40)]), 0.5)
    assert by_cluster.high - by_cluster.low > 1.3 * (by_prompt.high - by_prompt.low)


def test_the_interval_covers_the_true_edge() -> None:
    """95 % of the intervals hold the median of the population that prompts come from."""
    rng, held = np.random.default_rng(2), 0
    for _ in range(200):
        edge = rate_edge(X, outcomes(rng.normal(0.5, 0.2, 60)), weightings([str(i) for i in range(60)], 300), 0.5)
        held += edge.low is not None and edge.high is not None and edge.low <= 0.5 <= edge.high
    assert 0.88 <= held / 200 <= 1.0


def test_an_edge_that_is_not_reached_is_said_to_be_none() -> None:
    edge = rate_edge(X, outcomes(np.full(40, 2.0)), weightings(CLUSTERS, 20), 0.5)
    assert (edge.at, edge.low, edge.high, edge.censored, edge.steepness) == (None, None, None, 1.0, None)
    near = outcomes(np.where(np.arange(40) < 21, 0.3, 2.0))
    edge = rate_edge(X, near, weightings(CLUSTERS, 400), 0.5)
    assert edge.at is not None and edge.high is None and 0.2 < edge.censored < 0.7


def test_a_ray_may_cross_several_times_and_the_first_one_counts() -> None:
    y = np.array([0, 0, 1, 1, 0, 0, 1.0])
    assert count_crossings(y, 0.5) == 3
    assert first_crossing(np.arange(7.0), y[None], 0.5)[0] == 1.5
    assert first_crossing(np.arange(7.0), y[None], 2.0)[0] == np.inf
    assert first_crossing(np.arange(7.0), np.ones((1, 7)), 0.5)[0] == 0.0
    assert first_crossing(np.arange(3.0), np.array([[1.0, 0.9, 0.0]]), 0.9, rising=False)[0] == pytest.approx(1.0)
    # What is lost within a gap is found at its far end.
    assert first_crossing(np.arange(3.0), np.array([[0.0, np.nan, 1.0]]), 0.5)[0] == 2.0


def test_steepness_is_that_of_a_slope() -> None:
    y = np.clip(2 * (X - 0.25), 0, 1)
    edge = edge_of(X, y, np.full(3, 0.5), threshold=0.5)
    assert edge.steepness == pytest.approx(2 / 100)
    # Of a rate it is taken from 25 to 75 %: one prompt that turns right at the edge does not make a cliff.
    turning = np.append(np.linspace(0.2, 0.8, 36), np.full(4, 0.5))
    x = np.sort(np.append(X, [0.4999, 0.5001]))
    values = (x[:, None] >= turning[None]).astype(float)
    found = rate_edge(x, values, weightings([str(i) for i in range(40)], 10), 0.5)
    places = [float(first_crossing(x, values.mean(axis=1)[None], level)[0]) for level in (0.25, 0.75)]
    assert found.steepness == pytest.approx(0.5 / (places[1] - places[0]) / 100)
    local = edge_of(x, values.mean(axis=1), found.draws, threshold=0.5)
    assert local.steepness is not None and local.steepness > 5 * found.steepness


def test_a_skill_is_lost_against_what_theta_0_had() -> None:
    start = np.array([1.0] * 32 + [0.0] * 8)
    values = start[None] * (X[:, None] < np.linspace(0.2, 1.2, 40)[None])
    weights = weightings(CLUSTERS, 100)
    edge = kept_edge(X, values, weights, start, 0.9)
    y = values.mean(axis=1)
    index = int(np.argmax(y < 0.9 * y[0]))
    assert edge.at == pytest.approx(X[index - 1] + (y[index - 1] - 0.9 * y[0]) / (y[index - 1] - y[index]) * 0.05)
    assert kept_edge(X, np.tile(start, (21, 1)), weights, start, 0.9).at is None


def test_which_comes_first_is_said_only_where_it_is_sure() -> None:
    weights = weightings(CLUSTERS, 500)
    near = rate_edge(X, outcomes(np.full(40, 0.2)), weights, 0.5)
    far = rate_edge(X, outcomes(np.full(40, 0.8)), weights, 0.5)
    never = rate_edge(X, outcomes(np.full(40, 3.0)), weights, 0.5)
    noisy = rate_edge(X, outcomes(np.random.default_rng(0).normal(0.25, 0.3, 40)), weights, 0.5)
    assert which_first(near, far) == "first" and which_first(far, near) == "second"
    assert which_first(near, never) == "first" and which_first(never, never) == "neither reached"
    assert which_first(near, noisy) == "not told apart"
    assert nearer(far, near).at == near.at and nearer(near, never).at == near.at and nearer(near, None) is near


def test_half_widths_and_their_ratio_to_random_ones() -> None:
    weights = weightings(CLUSTERS, 200)
    first, second = (rate_edge(X, outcomes(np.full(40, at)), weights, 0.5) for at in (0.2, 0.4))
    never = rate_edge(X, outcomes(np.full(40, 3.0)), weights, 0.5)
    width, draws = half_width(first, second)
    assert width.value == pytest.approx((first.at + second.at) / 2)
    assert half_width(first, never)[0].value is None and half_width(None, None)[0].value is None
    assert over_median(draws, [2 * draws, 4 * draws, 8 * draws]).value == pytest.approx(0.25)
    assert over_median(draws, []).value is None
    assert over_median(draws, [np.full_like(draws, np.inf)]).value is None
    assert bounded(np.array([np.nan, 1.0, 2.0])).value is None


def test_a_band_is_over_the_directions_that_reach_there() -> None:
    lines = [
        (np.array([-1.0, 0, reach]), np.array([0, 0, height])) for reach, height in [(1.0, 1.0), (1.0, 3.0), (0.5, 1.0)]
    ]
    found = band(np.array([0.0, 0.5, 1.0]), lines)
    assert found[0].tolist() == [0, 0, 0, 3]
    assert found[1][0] == pytest.approx(1.0) and found[1][3] == 3
    assert found[2][:3] == pytest.approx(np.percentile([1, 3], [50, 5, 95])) and found[2][3] == 2


def test_what_foretells_is_spearmans_with_a_permutation() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=14)
    y = x + 0.3 * rng.normal(size=14)
    found = foretells(x, y)
    reference = stats.spearmanr(x, y)
    assert found.spearman == pytest.approx(reference.statistic)
    assert found.p is not None and found.p < 0.01 and found.said == "foretells"
    assert found.low is not None and found.high is not None and found.low < found.spearman < found.high
    nothing = foretells(x, rng.permutation(y))
    assert nothing.p is not None and nothing.p > 0.05 and nothing.said == "not shown to"
    ranked = foretells([*x[:-1], np.inf], y)
    assert ranked.spearman == pytest.approx(stats.spearmanr([*x[:-1], 1e9], y).statistic)


def test_few_runs_say_nothing() -> None:
    assert foretells([1, 2, 3], [1, 2, 3]).said == "n too small: 3 runs, 6 needed"
    assert foretells([1] * 8, list(range(8))).said == "all runs are alike"


def test_scattered_points_fill_a_lattice_inside_their_hull() -> None:
    points = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [0.5, 0.5]])
    z = surface(points, 2 * points[:, 0] + points[:, 1], np.array([0, 0.25, 1.0, 2.0]), np.array([0, 0.5]))
    assert z[:, :3] == pytest.approx(np.array([[0, 0.5, 2], [0.5, 1, 2.5]]))
    assert np.isnan(z[:, 3]).all()
    assert np.isnan(surface(points[:3], np.ones(3), points[:, 0], points[:, 1])).all()


def test_curves_leave_out_prompts_without_a_value() -> None:
    values = np.array([[1.0, np.nan], [np.nan, np.nan]])
    assert curves(values, np.ones((1, 2)))[0, 0] == 1.0 and np.isnan(curves(values, np.ones((1, 2)))[0, 1])
