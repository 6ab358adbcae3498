"""Edges of every line of every landscape, computed once: what tables of edges, widths, margins and runs read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from geomsafe.analyses.basins import Bounded, Edge, half_width, kept_edge, nearer, over_median, rate_edge, which_first
from geomsafe.reports.landscapes import Side, Terrain

KINDS = ("safety", "capability", "either", "sham", "margin")
SHAM = 0.5
MARGIN = 0.5


class LineEdges(NamedTuple):
    """What is known of one line: sign -> kind -> edge."""

    terrain: Terrain
    line: int
    edges: dict[str, dict[str, Edge]]

    @property
    def kinds(self) -> list[str]:
        """The kinds of edges that could be read."""
        return [kind for kind in KINDS if any(kind in one for one in self.edges.values())]

    def draws(self, kind: str) -> tuple[Bounded, np.ndarray]:
        """Return the half-width of one kind and its draws."""
        return half_width(*(self.edges.get(sign, {}).get(kind) for sign in "+-"))

    @property
    def random(self) -> bool:
        """Whether the direction was drawn."""
        return self.terrain.record.directions[self.line].kind == "random"


def edges_of(terrains: Sequence[Terrain]) -> list[LineEdges]:
    """Find the edges of all lines.

    Args:
        terrains: the landscapes; planes have none.

    Returns:
        One entry a line.
    """
    return [
        LineEdges(terrain, line, {side.sign: _of_side(terrain, side) for side in terrain.sides(line)})
        for terrain in terrains
        for line in terrain.lines
    ]


def _of_side(terrain: Terrain, side: Side) -> dict[str, Edge]:
    thresholds: dict[str, float] = terrain.record.settings["edges"]
    found: dict[str, Edge] = {}
    primary = terrain.record.primary
    if primary is not None:
        found["safety"] = _rate(terrain, side, primary, thresholds["unsafe"])
    capability = _capability(terrain, side, thresholds)
    if capability is not None:
        found["capability"] = capability
        if "safety" in found:
            found["either"] = nearer(found["safety"], capability)
    if terrain.has("sham_loss"):
        found["sham"] = _rate(terrain, side, "sham_loss", SHAM)
    if terrain.has("refusal_margin"):
        margins = terrain.values("refusal_margin", side.points)
        below = np.where(np.isnan(margins), np.nan, (margins < 0).astype(float))
        found["margin"] = rate_edge(side.x, below, terrain.weights("harmful"), MARGIN)
    return found


def _rate(terrain: Terrain, side: Side, name: str, threshold: float) -> Edge:
    weights = terrain.weights(terrain.group_of(name))
    return rate_edge(side.x, terrain.values(name, side.points), weights, threshold)


def _capability(terrain: Terrain, side: Side, thresholds: dict[str, float]) -> Edge | None:
    """Return where old skills go or incoherence begins, whichever is first; None where neither was measured."""
    kept = next((name for name in ("retained", "utility") if terrain.has(name)), None)
    found = None
    if kept is not None:
        values = terrain.values(kept, side.points)
        weights = terrain.weights(terrain.group_of(kept))
        # A task that theta_0 has not learnt yet cannot be lost.
        if np.nansum(values[0]) > 0:
            found = kept_edge(side.x, values, weights, values[0], thresholds["retained"])
    if terrain.has("incoherent"):
        # "More than": the next number above the threshold.
        limit = math.nextafter(thresholds["incoherent"], 1.0)
        found = nearer(_rate(terrain, side, "incoherent", limit), found)
    return found


def told_apart(edges: dict[str, Edge]) -> str | None:
    """Return which of safety and capability goes first on one side, in words; None where one was not measured."""
    if "safety" not in edges or "capability" not in edges:
        return None
    said = which_first(edges["safety"], edges["capability"])
    return {"first": "safety", "second": "capability"}.get(said, said)


def against_random(one: LineEdges, kind: str, lines: Sequence[LineEdges]) -> Bounded:
    """Return a half-width over the median one of the random directions of the same landscape."""
    others = [other.draws(kind)[1] for other in lines if other.terrain is one.terrain and other.random]
    own = one.draws(kind)[1]
    usable = [draws for draws in others if len(draws) == len(own)]
    return over_median(own, usable) if not one.random else Bounded(None, None, None)
