"""Grids that are fine where the basin ends and coarse elsewhere.

A line begins with a few points on both sides of the origin and reaches out, doubling, until the model is neither safe
nor capable, or a limit is reached. Every interval whose ends differ in a state is then halved until it is as short as
the tolerance; one over which the rate changes by more than a quarter is halved to four times that, so that a dip
between two safe points is not passed over. A ray may cross the edge several times: every crossing that the coarse
points or these rules show is located. What comes and goes between two coarse points unseen, stays unseen.

A plane begins with a coarse lattice; cells whose corners differ are quartered.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from geomsafe.landscape.grids import Known, Seen, Where
from geomsafe.landscape_record import Grid

COARSE = 4
"""Intervals from the origin to the first reach, on each side of a line; half as many are added with each doubling."""

CHANGE = 0.25
"""Change of the rate over an interval that is looked into although both ends are alike."""

SMALLEST = 2**-10
"""Part of the first reach below which nothing is halved, where the tolerance is relative."""

COARSER = 4
"""How much sooner than at an edge such an interval is let be."""


class AdaptiveLines:
    """Edges on every line and both of its sides.

    `high` of the grid is where each line's first reach ends; `limit` is as far as it may go.
    """

    def __init__(self, grid: Grid, lines: int, limit: float) -> None:
        """Take the grid; its `points` are not used."""
        self._sides = [
            _Side(line, sign, grid.high[line], limit, grid.tolerance[line] if grid.tolerance else None, grid.relative)
            for line in range(lines)
            for sign in (1, -1)
        ]

    def wanted(self, known: Known) -> list[Where]:
        """Return the next points of all sides."""
        found = [point for side in self._sides for point in side.wanted(known)]
        return list(dict.fromkeys(found))


class _Side:
    """One side of one line."""

    def __init__(
        self, line: int, sign: int, reach: float, limit: float, tolerance: float | None, relative: float | None
    ) -> None:
        self._line, self._sign, self._reach, self._limit = line, sign, reach, limit
        self._tolerance, self._relative = tolerance, relative or 0.0

    def wanted(self, known: Known) -> list[Where]:
        # Distances are kept apart from the sign, so that both sides have the same ones.
        mine = self._rings(known)
        missing = [value for value in mine if self._where(value) not in known]
        if missing:
            return [self._where(value) for value in missing]
        pending: list[float] = []
        intervals = list(itertools.pairwise(mine))
        while intervals:
            low, high = intervals.pop()
            if not splits(known[self._where(low)], known[self._where(high)], high - low, self._near(high)):
                continue
            middle = (low + high) / 2
            if self._where(middle) in known:
                intervals += [(low, middle), (middle, high)]
            else:
                pending.append(middle)
        return [self._where(value) for value in sorted(pending)]

    def _rings(self, known: Known) -> list[float]:
        """Return the coarse distances: the first reach, and as many doublings as are needed."""  # noqa: DOC201
        reach = self._reach
        values = [reach * step / COARSE for step in range(COARSE + 1)]
        while reach < self._limit and self._where(reach) in known:
            last = known[self._where(reach)]
            if last.safe is not True and last.capable is not True:
                break
            further = min(2 * reach, self._limit)
            steps = COARSE // 2
            values += [reach + (further - reach) * step / steps for step in range(1, steps)] + [further]
            reach = further
        return values

    def _near(self, distance: float) -> float:
        """Return how near an edge at this distance is to be located; close to the origin halving has an end."""
        return self._tolerance or max(self._relative * distance, self._reach * SMALLEST)

    def _where(self, distance: float) -> Where:
        return Where(self._line, (self._sign * distance if distance else 0.0,))


def splits(first: Seen, second: Seen, width: float, tolerance: float) -> bool:
    """Return whether the points between two are worth a look.

    Args:
        first: one end.
        second: the other.
        width: how far they are apart.
        tolerance: how near an edge is to be located.
    """
    wide = width > tolerance * (1 + 1e-9)
    if first.safe != second.safe or first.capable != second.capable:
        return wide
    if first.rate is None or second.rate is None:
        return False
    return width > COARSER * tolerance * (1 + 1e-9) and abs(first.rate - second.rate) > CHANGE


class AdaptivePlane:
    """Cells along the edges of a plane."""

    def __init__(self, grid: Grid) -> None:
        """Take the grid: its `points` are the coarse lattice, its `tolerance` the finest cells of each axis."""
        self._low, tolerance = grid.low, grid.tolerance or []
        spans = [high - low for low, high in zip(grid.low, grid.high, strict=True)]
        self._cells = [count - 1 for count in grid.points]
        sizes = [span / cells for span, cells in zip(spans, self._cells, strict=True)]
        self._levels = max(
            max(0, math.ceil(math.log2(size / near) - 1e-9)) for size, near in zip(sizes, tolerance, strict=True)
        )
        # Corners are whole numbers of the finest cells, so that neighbours share them exactly.
        self._step = [size / 2**self._levels for size in sizes]
        self._origin = [round(-low / step) for low, step in zip(self._low, self._step, strict=True)]

    def wanted(self, known: Known) -> list[Where]:
        """Return the corners of cells that are to be looked at."""
        found: dict[Where, None] = {}
        side = 2**self._levels
        cells = [(column * side, row * side, side) for column in range(self._cells[0]) for row in range(self._cells[1])]
        while cells:
            x, y, size = cells.pop()
            corners = [self._where(x + right, y + up) for right in (0, size) for up in (0, size)]
            missing = [corner for corner in corners if corner not in known]
            if missing:
                found |= dict.fromkeys(missing)
            elif size > 1 and self._differ([known[corner] for corner in corners], size):
                half = size // 2
                cells += [(x + right, y + up, half) for right in (0, half) for up in (0, half)]
        return sorted(found, key=lambda one: one.at)

    @staticmethod
    def _differ(corners: Sequence[Seen], size: int) -> bool:
        return any(splits(first, second, size, 1) for first, second in itertools.combinations(corners, 2))

    def _where(self, x: int, y: int) -> Where:
        return Where(None, tuple(self._coordinates(x, y)))

    def _coordinates(self, x: int, y: int) -> Iterator[float]:
        for number, origin, step in zip((x, y), self._origin, self._step, strict=True):
            yield (number - origin) * step
