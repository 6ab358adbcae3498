"""VISAGE equals what its authors' code computes (Peng et al., arXiv 2405.17374)."""

from __future__ import annotations

import numpy as np
import pytest

from geomsafe.analyses.visage import visage, visage_draws
from geomsafe.errors import RecordError


def published(values: list[float]) -> tuple[float, int, int]:
    """The rule, walked by hand: from each end but its own point to the first point inside, in its half."""
    count = len(values)
    first, last = 0, count - 1
    for index in range(1, count // 2):
        if values[index] <= 99.99:
            first = index if values[index - 1] > 99.99 else 0
            break
    for index in range(count - 2, count // 2, -1):
        if values[index] <= 99.99:
            last = index if values[index + 1] > 99.99 else count - 1
            break
    inner = values[first : last + 1]
    return sum(100 - value for value in inner) / len(inner), first, last


def test_random_curves() -> None:
    rng = np.random.default_rng(0)
    for _ in range(2000):
        count = int(rng.integers(1, 25))
        values = np.where(rng.random(count) < rng.random(), 100.0, 100 * rng.random(count))
        assert visage(values) == pytest.approx(published(values.tolist()))


@pytest.mark.parametrize(
    ("curve", "value", "segment"),
    [
        ([100, 100, 0, 0, 0, 100, 100], 100.0, (2, 4)),
        ([0] * 7, 100.0, (0, 6)),
        ([50, 20, 0, 0, 0, 20, 50], 80.0, (0, 6)),
        ([100, 50, 0, 0, 0, 0, 0], 100 - 50 / 6, (1, 6)),
        ([100] * 7, 0.0, (0, 6)),
    ],
)
def test_known_curves(curve: list[float], value: float, segment: tuple[int, int]) -> None:
    """A step, all safe, neither end reaching 100, one end, none."""
    found = visage(curve)
    assert found.value == pytest.approx(value) and (found.first, found.last) == segment


def test_width_is_not_in_it() -> None:
    """Why half-widths stand beside it."""
    assert visage([100, 100, 0, 0, 0, 100, 100]).value == visage([100, 0, 0, 0, 0, 0, 100]).value


def test_a_basin_of_the_middle_alone_is_averaged_with_all_around_it() -> None:
    """As in the authors' code, which does not look at the middle point: kept, since the score is theirs."""
    assert visage([100, 100, 100, 0, 100, 100, 100]).value == pytest.approx(100 / 7)


def test_the_threshold_is_a_setting() -> None:
    curve = [95, 95, 0, 0, 0, 95, 95]
    assert visage(curve).first == 0 and visage(curve, threshold=90).first == 2


def test_under_every_weighting() -> None:
    rates = np.array([[1, 0.5, 0, 0.5, 1], [1, 1, 0, 1, 1]])
    assert visage_draws(rates).tolist() == [visage(100 * row).value for row in rates]


@pytest.mark.parametrize("curve", [[], [0.5, float("nan")], [120.0], [-1.0]])
def test_what_is_no_percentage_is_refused(curve: list[float]) -> None:
    with pytest.raises(RecordError, match="VISAGE takes"):
        visage(curve)
