"""Landscapes as they lie in run directories: read once, as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomsafe.analyses.basins import Array, weightings
from geomsafe.errors import RecordError
from geomsafe.landscape_record import Landscape, Point, landscapes_of, read_landscape, read_points
from geomsafe.reports.sources import shown_path


class Side(NamedTuple):
    """One side of a line: distances from theta_0, rising from 0, and which points these are."""

    sign: str
    x: Array
    points: NDArray[np.int64]


@dataclass
class Terrain:
    """A finished landscape with its points.

    Attributes:
        name: unique in the report.
        record: its record.
        points: those that rounding left apart from theta_0; `unresolved` counts the others.
    """

    name: str
    record: Landscape
    points: list[Point]
    unresolved: int
    _weights: dict[str, Array] = field(default_factory=dict, repr=False)

    @property
    def lines(self) -> list[int]:
        """The lines, none in a plane."""
        return list(range(len(self.record.directions))) if self.record.shape == "lines" else []

    def of_line(self, line: int | None) -> list[int]:
        """Return the points of a line by coordinate, or all of a plane."""
        chosen = [index for index, point in enumerate(self.points) if point.line == line]
        return sorted(chosen, key=lambda index: self.points[index].at)

    def sides(self, line: int) -> Iterator[Side]:
        """Yield both sides of a line, each with theta_0 itself."""
        mine = self.of_line(line)
        for sign, factor in (("+", 1), ("-", -1)):
            chosen = sorted(
                (index for index in mine if factor * self.points[index].at[0] >= 0),
                key=lambda index: factor * self.points[index].at[0],
            )
            x = np.array([abs(self.points[index].at[0]) for index in chosen])
            if len(x) > 1 and x[0] == 0:
                yield Side(sign, x, np.array(chosen))

    def values(self, name: str, points: Sequence[int] | NDArray[np.int64]) -> Array:
        """Return what was measured, NaN where a prompt has no value.

        Args:
            name: of the quantity.
            points: which points.

        Returns:
            (points, prompts).
        """
        rows = [self.points[int(index)].values[name] for index in points]
        return np.array([[np.nan if value is None else value for value in row] for row in rows], dtype=np.float64)

    def has(self, name: str) -> bool:
        """Return whether a quantity was measured."""
        return any(one.name == name for one in self.record.measured)

    def group_of(self, name: str) -> str:
        """Return the prompts that a quantity was measured on."""
        return next(one.group for one in self.record.measured if one.name == name)

    def weights(self, group: str) -> Array:
        """Return the weightings of a group's prompts; kept, since every edge is drawn from the same ones."""
        if group not in self._weights:
            self._weights[group] = weightings(self.record.prompts[group].clusters)
        return self._weights[group]


def read_terrains(runs: Mapping[str, Path]) -> tuple[list[Terrain], list[dict[str, Any]]]:
    """Read every landscape of the runs.

    Args:
        runs: name in the report -> run directory.

    Returns:
        The finished ones; and rows on the others, with the cause.
    """
    found: list[Terrain] = []
    left_out: list[dict[str, Any]] = []
    folders = {folder.resolve(): name for name, run in runs.items() for folder in landscapes_of(run)}
    names = [folder.name for folder in folders]
    for folder, run in folders.items():
        name = folder.name if names.count(folder.name) == 1 else f"{run}/{folder.name}"
        try:
            terrain = read_terrain(folder, name)
            cause = None if terrain.record.status == "finished" else "not finished: give the same command again"
        except RecordError as error:
            cause = str(error)
        if cause is not None:
            left_out.append({"landscape": name, "status": "left out", "cause": cause, "path": shown_path(folder)})
            continue
        found.append(terrain)
    return found, left_out


def read_terrain(folder: Path, name: str) -> Terrain:
    """Read one landscape, finished or not.

    Args:
        folder: its folder.
        name: its name in the report.

    Returns:
        The landscape, its unresolved points left out and counted.
    """
    record, points = read_landscape(folder), list(read_points(folder))
    resolved = [point for point in points if point.resolved]
    return Terrain(name, record, resolved, len(points) - len(resolved))
