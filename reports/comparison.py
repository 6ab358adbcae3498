"""Two arms compared over pairs of equal seed and prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from geomsafe.analyses.rates import Difference, paired_difference
from geomsafe.reports.scores import Outcome


class Comparison(NamedTuple):
    """The difference over all pairs, None where nothing was paired, and the mean difference of each paired seed."""

    difference: Difference | None
    each: list[float]


def compare(ours: Mapping[int, Sequence[Outcome]], theirs: Mapping[int, Sequence[Outcome]]) -> Comparison:
    """Compare two arms.

    Args:
        ours: seed -> outcomes of the arm.
        theirs: seed -> outcomes of its control.

    Returns:
        Mean of arm minus control over equal seeds and prompts; clusters are those of the arm's prompts.
    """
    a: list[float] = []
    b: list[float] = []
    clusters: list[str] = []
    each = []
    for seed in sorted(set(ours) & set(theirs)):
        other = {one.prompt: one.hit for one in theirs[seed]}
        common = {one.prompt: one for one in ours[seed] if one.prompt in other}
        if common:
            a += [float(one.hit) for one in common.values()]
            b += [float(other[prompt]) for prompt in common]
            clusters += [one.cluster for one in common.values()]
            each.append(sum(one.hit - other[prompt] for prompt, one in common.items()) / len(common))
    return Comparison(paired_difference(a, b, clusters) if a else None, each)
