"""Sweeps in numbers: choice, main effects, matched curves and collapse, each against its definition."""

from __future__ import annotations

import itertools
import math
from statistics import mean

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from geomsafe.analyses.collapse import left_out_r2, smoothed_logit
from geomsafe.analyses.drift import curve_at
from geomsafe.analyses.effects import main_effect
from geomsafe.analyses.matching import read_curve, support_place, within_tolerance
from geomsafe.analyses.rates import paired_difference
from geomsafe.analyses.tradeoffs import choice_chances, choice_order, expected_choice, pareto_front
from geomsafe.errors import RecordError


def test_the_front_is_what_no_other_point_beats() -> None:
    costs, gains = [0.1, 0.2, 0.3, 0.1, 0.2], [0.5, 0.9, 0.9, 0.5, 0.4]
    assert pareto_front(costs, gains) == [True, True, False, True, False]
    rng = np.random.default_rng(0)
    costs, gains = list(rng.integers(0, 5, 30) / 5), list(rng.integers(0, 5, 30) / 5)
    # Slow: a point is on the front if no direction-consistent rival is better in one and as good in the other.
    slow = []
    for a in range(30):
        beaten = False
        for b in range(30):
            better = costs[b] < costs[a] or gains[b] > gains[a]
            worse = costs[b] > costs[a] or gains[b] < gains[a]
            beaten |= better and not worse
        slow.append(not beaten)
    assert pareto_front(costs, gains) == slow
    assert pareto_front(gains, costs) != slow, "cost and gain are not exchangeable"


@pytest.mark.parametrize("budget", [1, 2, 3, 6])
def test_expected_choice_is_the_mean_over_all_subsets(budget: int) -> None:
    scores, losses = [0.9, 0.7, 0.9, 0.9, 0.2, 0.7], [0.5, 0.1, 0.4, None, 0.0, 0.1]
    outcomes = [0.31, 0.07, 0.22, 0.55, 0.9, 0.13]
    order = choice_order(scores, losses)
    assert order == [2, 0, 3, 1, 5, 4]
    chosen = []
    for subset in itertools.combinations(range(6), budget):
        best = max(scores[index] for index in subset)
        tied = [index for index in subset if scores[index] == best]
        least = min((losses[index] if losses[index] is not None else math.inf) for index in tied)
        chosen.append(
            next(index for index in tied if (losses[index] if losses[index] is not None else math.inf) == least)
        )
    expected = mean(outcomes[index] for index in chosen)
    assert expected_choice(outcomes, order, budget) == pytest.approx(expected, abs=1e-15)
    # With replacement, the usual shortcut, a budget of several gives another number.
    replaced = mean(outcomes[min(subset, key=order.index)] for subset in itertools.product(range(6), repeat=budget))
    assert (replaced == pytest.approx(expected, abs=1e-9)) == (budget == 1)
    assert sum(choice_chances(6, budget)) == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize("budget", [0, 7])
def test_budgets_outside_the_trials_are_refused(budget: int) -> None:
    with pytest.raises(RecordError, match=f"budget of {budget}"):
        choice_chances(6, budget)


def test_eta_squared_is_its_definition() -> None:
    rng = np.random.default_rng(1)
    levels = [str(rng.integers(0, 3)) for _ in range(25)]
    outcomes = [0.2 * int(level) + 0.1 * rng.normal() for level in levels]
    found = main_effect(levels, outcomes)
    overall, between, total = mean(outcomes), 0.0, 0.0
    for level, outcome in zip(levels, outcomes, strict=True):
        group = [other for name, other in zip(levels, outcomes, strict=True) if name == level]
        between += (mean(group) - overall) ** 2
        total += (outcome - overall) ** 2
    assert found.share == pytest.approx(between / total, rel=1e-12)
    for one in found.levels:
        group = [outcome for level, outcome in zip(levels, outcomes, strict=True) if level == one.level]
        assert (one.n, one.mean) == (len(group), pytest.approx(mean(group)))
        assert one.low is not None and one.high is not None and one.low < one.mean < one.high
    shuffled = main_effect(list(rng.permutation(levels)), outcomes).share
    assert shuffled is not None and found.share is not None and shuffled < 0.5 * found.share


def test_effects_of_nothing_are_undefined() -> None:
    assert main_effect(["a", "b"], [0.3, 0.3]).share is None
    assert main_effect(["a", "a"], [0.3, 0.4]).share is None
    assert main_effect(["a"], [0.3]).levels[0].low is None
    with pytest.raises(RecordError, match="not defined"):
        main_effect([], [])


def _curve(shift: float = 0.0) -> tuple[list[float], list[list[float]]]:
    # (checkpoints, prompts): every prompt's outcome is linear in the place.
    places = [0.0, 2.0, 1.0, 4.0]
    return places, [[0.1 * place + shift, 0.05 * place + shift] for place in places]


def test_planted_curves_that_coincide_differ_by_nothing_and_shifted_ones_by_the_shift() -> None:
    clusters = ["a", "b"]
    for shift in (0.0, 0.25):
        row = read_curve(3.0, *_curve(shift))
        assert row is not None
        arm = [0.3, 0.15]
        assert paired_difference(arm, list(row), clusters).difference == pytest.approx(-shift, abs=1e-12)
    # The nearest checkpoint in place of the interpolation would find a difference where there is none.
    nearest = _curve()[1][1]
    assert paired_difference([0.3, 0.15], nearest, clusters).difference == pytest.approx(0.075)


def test_a_curve_is_read_on_its_support_and_as_the_curve_of_rates_is() -> None:
    places, rows = _curve()
    for x in (0.0, 0.3, 1.0, 2.5, 4.0):
        row = read_curve(x, places, rows)
        assert row is not None
        assert row[0] == pytest.approx(curve_at(x, places, [values[0] for values in rows]), abs=1e-15)
    assert read_curve(4.1, places, rows) is None and read_curve(-0.1, places, rows) is None
    assert read_curve(1.1, [1.0], [[0.5]]) is None and read_curve(1.0, [], []) is None
    lone = read_curve(1.0, [1.0, 1.0], [[0.5], [0.7]])
    assert lone is not None and lone[0] == pytest.approx(0.6)
    averaged = read_curve(1.0, [0.0, 1.0, 1.0], [[0.0], [0.4], [0.6]])
    assert averaged is not None and averaged[0] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("axis", "apart", "reference", "matched"),
    [
        ("l2", 0.02, 1.0, True),
        ("l2", -0.021, 1.0, False),
        ("kl", 0.05, 1.0, True),
        ("kl", 0.051, 1.0, False),
        ("utility_loss", -0.02, 3.0, True),
        ("utility_loss", 0.021, 3.0, False),
        ("l2", 0.0, 0.0, True),
    ],
)
def test_tolerances_are_those_of_matching(axis: str, apart: float, reference: float, matched: bool) -> None:
    assert within_tolerance(axis, apart, reference) == matched


def test_ends_that_differ_by_rounding_or_within_tolerance_are_one_place() -> None:
    assert support_place("l2", 1.0, [0.0, 2.0]) == 1.0
    assert support_place("l2", 2.04, [0.0, 2.0]) == 2.0 and support_place("l2", 2.05, [0.0, 2.0]) is None
    assert support_place("utility_loss", 0.49, [0.5, 2.0]) == 0.5
    assert support_place("utility_loss", 0.47, [0.5, 2.0]) is None
    assert support_place("kl", 0.3, []) is None


def test_a_family_is_foretold_by_the_curve_of_the_others_only() -> None:
    rng = np.random.default_rng(2)
    x = list(rng.uniform(0, 4, 60))
    families = [("a", "b", "c")[index % 3] for index in range(60)]
    lawful = [3 / (1 + math.exp(-2 * (place - 2))) + 0.05 * rng.normal() for place in x]
    found = left_out_r2(x, lawful, families)
    predicted = [0.0] * 60
    for name in "abc":
        kept = [index for index in range(60) if families[index] != name]
        fit = IsotonicRegression(out_of_bounds="clip").fit([x[i] for i in kept], [lawful[i] for i in kept])
        for index in range(60):
            if families[index] == name:
                predicted[index] = float(fit.predict([x[index]])[0])
    residual = sum((lawful[i] - predicted[i]) ** 2 for i in range(60))
    total = sum((value - mean(lawful)) ** 2 for value in lawful)
    assert found == pytest.approx(1 - residual / total, abs=1e-12) and found is not None and found > 0.95
    # A family with a law of its own is not explained by the others, however well it would fit itself.
    own = [value + (3 if family == "c" else 0) for value, family in zip(lawful, families, strict=True)]
    lawless = left_out_r2(x, own, families)
    assert lawless is not None and lawless < 0.5
    falling = left_out_r2([-place for place in x], lawful, families)
    assert falling == pytest.approx(found, abs=1e-12), "a margin that falls foretells as well as a distance that rises"
    assert left_out_r2(x, lawful, ["a"] * 60) is None and left_out_r2(x, [1.0] * 60, families) is None


def test_the_logit_is_finite_at_both_ends() -> None:
    assert smoothed_logit(0.5, 10) == 0.0
    assert smoothed_logit(1.0, 10) == -smoothed_logit(0.0, 10) == pytest.approx(math.log(10.5 / 0.5))
