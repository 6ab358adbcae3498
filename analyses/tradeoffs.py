"""Which settings to choose: the Pareto front, and what choosing by validation gives at a budget of n trials."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

from geomsafe.errors import RecordError


def pareto_front(costs: Sequence[float], gains: Sequence[float]) -> list[bool]:
    """Mark the points that no other point beats: lower or equal cost, higher or equal gain, one of them strictly.

    Args:
        costs: (points,) what should be low, such as attack success.
        gains: (points,) what should be high, such as utility.

    Returns:
        (points,) whether each is on the front; equal points are on it together.
    """
    pairs = list(zip(costs, gains, strict=True))
    return [
        not any(
            other_cost <= cost and other_gain >= gain and (other_cost < cost or other_gain > gain)
            for other_cost, other_gain in pairs
        )
        for cost, gain in pairs
    ]


def choice_order(scores: Sequence[float], tie_losses: Sequence[float | None]) -> list[int]:
    """Order trials as a careful user would choose them: best score first, ties by loss, then as they were given.

    Args:
        scores: (trials,) validation score, higher is better.
        tie_losses: (trials,) validation loss, lower is better; None ranks behind every number.

    Returns:
        (trials,) indices, the first choice first.
    """

    def rank(index: int) -> tuple[float, bool, float]:
        loss = tie_losses[index]
        return (-scores[index], loss is None, 0.0 if loss is None else loss)

    return sorted(range(len(scores)), key=rank)


def choice_chances(trials: int, budget: int) -> list[float]:
    """Chance of each rank to be the best of `budget` trials drawn without replacement.

    The trial of rank r (from 0) is chosen where it is drawn and all others come from the worse ones:
    C(trials - 1 - r, budget - 1) / C(trials, budget).

    Args:
        trials: how many there are.
        budget: how many of them are tried, 1 to `trials`.

    Returns:
        (trials,) chances by rank, summing to 1.

    Raises:
        RecordError: the budget is not within 1 and the number of trials.
    """
    if not 1 <= budget <= trials:
        raise RecordError(f"a budget of {budget} out of {trials} trials is not defined: it takes 1 to {trials}")
    return [comb(trials - 1 - rank, budget - 1) / comb(trials, budget) for rank in range(trials)]


def expected_choice(outcomes: Sequence[float], order: Sequence[int], budget: int) -> float:
    """Expected outcome of the trial chosen out of `budget` random ones, exact.

    The mean over all C(trials, budget) subsets of the outcome of the first trial in `order` that is in the subset.

    Args:
        outcomes: (trials,) what is reported of each, never what it is chosen by.
        order: (trials,) indices as `choice_order` gives them.
        budget: trials drawn without replacement.

    Returns:
        The expectation, in the units of the outcomes.
    """
    chances = choice_chances(len(order), budget)
    return sum(chance * outcomes[index] for chance, index in zip(chances, order, strict=True))
