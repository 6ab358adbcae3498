"""Tables of landscapes: curves, bands, planes, paths, edges, widths, margins, VISAGE, and what width foretells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from geomsafe.analyses.basins import FEWEST_DIRECTIONS, Array, Edge, band, bounded, curves, foretells
from geomsafe.analyses.visage import visage, visage_draws
from geomsafe.landscape_record import PathPoint
from geomsafe.reports.basin_edges import LineEdges, against_random, told_apart
from geomsafe.reports.landscapes import Terrain
from geomsafe.reports.runs import RunData

LANDSCAPES = ["landscape", "status", "cause", "shape", "points", "unresolved", "prompts", "clusters", "scored", "path"]
LINES = [
    "landscape", "line", "way", "way_kind", "run", "coordinate", "lengths", "quantity", "average", "low", "high", "n",
]  # fmt: skip
BANDS = ["landscape", "coordinate", "quantity", "average", "low", "high", "band_n"]
PLANE = ["landscape", "coordinate", "coordinate_y", "quantity", "average"]
PATHS = ["landscape", "run", "weights", "step", "line", "coordinate", "coordinate_y", "relative_distance", "residual"]
EDGES = [
    "landscape", "way", "way_kind", "run", "side", "edge", "edge_at", "edge_low", "edge_high", "lengths", "looked",
    "censored", "crossings", "steepness", "first_edge",
]  # fmt: skip
WIDTHS = [
    "landscape", "way", "way_kind", "run", "edge", "half_width", "low", "high", "lengths", "over_random",
    "over_random_low", "over_random_high",
]  # fmt: skip
VISAGES = ["landscape", "way", "way_kind", "visage", "low", "high", "from_at", "to_at", "band_n"]
MARGINS = [
    "landscape", "run", "end", "edge_at", "margin_to_edge", "low", "high", "asr_end", "slope", "curvature", "predicted",
    "actual",
]  # fmt: skip
PREDICTIONS = ["landscape", "predictor", "outcome", "runs_n", "spearman", "low", "high", "p", "said"]

MOST_BAND_POINTS = 41


def landscape_rows(terrains: Sequence[Terrain], left_out: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row a landscape, also for those that are left out."""
    rows = []
    for terrain in terrains:
        group = next(iter(terrain.record.prompts.values()))
        rows.append({
            "landscape": terrain.name,
            "status": "finished",
            "shape": terrain.record.shape,
            "points": len(terrain.points) + terrain.unresolved,
            "unresolved": terrain.unresolved,
            "prompts": len(group.ids),
            "clusters": len(set(group.clusters)),
            "scored": ", ".join(terrain.record.scores),
        })
    return [*rows, *left_out]


def line_rows(terrains: Sequence[Terrain]) -> list[dict[str, Any]]:
    """Return every measured quantity at every point of every line, with its interval over prompts."""
    rows = []
    for terrain in terrains:
        for line in terrain.lines:
            direction, points = terrain.record.directions[line], terrain.of_line(line)
            for one in terrain.record.measured:
                values = terrain.values(one.name, points)
                drawn = curves(values, terrain.weights(one.group))
                for index, point in enumerate(points):
                    found = bounded(drawn[:, index])
                    rows.append({
                        "landscape": terrain.name,
                        "line": line,
                        "way": direction.name,
                        "way_kind": direction.kind,
                        "run": direction.run,
                        "coordinate": terrain.points[point].at[0],
                        "lengths": terrain.points[point].at[0] / direction.length,
                        "quantity": one.name,
                        "average": found.value,
                        "low": found.low,
                        "high": found.high,
                        "n": int(np.count_nonzero(~np.isnan(values[index]))),
                    })  # fmt: skip
    return rows


def band_rows(terrains: Sequence[Terrain]) -> list[dict[str, Any]]:
    """Return median and 5th to 95th percentile over the random directions, at evenly spaced coordinates."""
    rows = []
    for terrain in terrains:
        drawn = [line for line in terrain.lines if terrain.record.directions[line].kind == "random"]
        if len(drawn) < FEWEST_DIRECTIONS:
            continue
        for one in terrain.record.measured:
            lines = [_mean_line(terrain, line, one.name) for line in drawn]
            reach = max(abs(x).max() for x, _ in lines)
            places = np.linspace(-reach, reach, MOST_BAND_POINTS)
            for place, (middle, low, high, count) in zip(places, band(places, lines), strict=True):
                if count >= FEWEST_DIRECTIONS:
                    rows.append({
                        "landscape": terrain.name, "coordinate": float(place), "quantity": one.name, "average": middle,
                        "low": low, "high": high, "band_n": int(count),
                    })  # fmt: skip
    return rows


def _mean_line(terrain: Terrain, line: int, name: str) -> tuple[Array, Array]:
    points = terrain.of_line(line)
    x = np.array([terrain.points[index].at[0] for index in points])
    weights = np.ones((1, len(terrain.record.prompts[terrain.group_of(name)].ids)))
    return x, curves(terrain.values(name, points), weights)[0]


def plane_rows(terrains: Sequence[Terrain]) -> list[dict[str, Any]]:
    """Return the mean of every quantity at every point of every plane."""
    rows = []
    for terrain in terrains:
        if terrain.record.shape != "plane":
            continue
        points = terrain.of_line(None)
        for one in terrain.record.measured:
            weights = np.ones((1, len(terrain.record.prompts[one.group].ids)))
            for index, value in zip(points, curves(terrain.values(one.name, points), weights)[0], strict=True):
                x, y = terrain.points[index].at
                rows.append({
                    "landscape": terrain.name, "coordinate": x, "coordinate_y": y, "quantity": one.name,
                    "average": float(value),
                })  # fmt: skip
    return rows


def path_rows(terrains: Sequence[Terrain]) -> list[dict[str, Any]]:
    """Return where every saved weight set lies in the planes, and on its run's own line."""
    rows = []
    for terrain in terrains:
        plane = terrain.record.shape == "plane"
        for one in terrain.record.paths:
            for line in [0] if plane else _own_lines(terrain, one):
                rows.append({
                    "landscape": terrain.name,
                    "run": one.run,
                    "weights": one.weights,
                    "step": one.step,
                    "line": None if plane else line,
                    "coordinate": one.coordinates[line],
                    "coordinate_y": one.coordinates[1] if plane else None,
                    "relative_distance": one.distance,
                    "residual": one.residual[line],
                })  # fmt: skip
    return rows


def _own_lines(terrain: Terrain, one: PathPoint) -> list[int]:
    return [line for line in terrain.lines if terrain.record.directions[line].run == one.run]


def edge_rows(lines: Sequence[LineEdges]) -> list[dict[str, Any]]:
    """Return every edge on every side of every line."""
    rows = []
    for one in lines:
        for sign, edges in one.edges.items():
            for kind, edge in edges.items():
                rows.append({
                    **_named(one),
                    "side": sign,
                    "edge": kind,
                    "edge_at": edge.at,
                    "edge_low": edge.low,
                    "edge_high": edge.high,
                    "lengths": None if edge.at is None else edge.at / one.terrain.record.directions[one.line].length,
                    "looked": edge.looked,
                    "censored": edge.censored,
                    "crossings": edge.crossings,
                    "steepness": edge.steepness,
                    "first_edge": told_apart(edges) if kind in {"safety", "capability"} else None,
                })  # fmt: skip
    return rows


def width_rows(lines: Sequence[LineEdges]) -> list[dict[str, Any]]:
    """Return half-widths, in own lengths too, and over the median of the random directions."""
    rows = []
    for one in lines:
        for kind in one.kinds:
            width, _ = one.draws(kind)
            ratio = against_random(one, kind, lines)
            length = one.terrain.record.directions[one.line].length
            rows.append({
                **_named(one),
                "edge": kind,
                "half_width": width.value,
                "low": width.low,
                "high": width.high,
                "lengths": None if width.value is None else width.value / length,
                "over_random": ratio.value,
                "over_random_low": ratio.low,
                "over_random_high": ratio.high,
            })  # fmt: skip
    return rows


def _named(one: LineEdges) -> dict[str, Any]:
    direction = one.terrain.record.directions[one.line]
    return {"landscape": one.terrain.name, "way": direction.name, "way_kind": direction.kind, "run": direction.run}


def visage_rows(terrains: Sequence[Terrain]) -> list[dict[str, Any]]:
    """Return VISAGE of every line of landscapes at its authors' settings, and over all their directions."""
    rows = []
    for terrain in terrains:
        if not terrain.record.settings.get("visage") or not terrain.has("asr"):
            continue
        weights, drawn = terrain.weights("harmful"), []
        for line in terrain.lines:
            points, direction = terrain.of_line(line), terrain.record.directions[line]
            rates = curves(terrain.values("asr", points), weights)
            drawn.append(visage_draws(rates))
            found, interval = visage(100 * rates[0]), bounded(drawn[-1])
            at = [terrain.points[index].at[0] for index in points]
            rows.append({
                "landscape": terrain.name, "way": direction.name, "way_kind": direction.kind, "visage": found.value,
                "low": interval.low, "high": interval.high, "from_at": at[found.first], "to_at": at[found.last],
                "band_n": 1,
            })  # fmt: skip
        if len(drawn) > 1:
            rows.append({
                "landscape": terrain.name, "way": "all directions", "way_kind": "random", **_pooled(np.array(drawn)),
                "band_n": len(drawn),
            })  # fmt: skip
    return rows


def _pooled(drawn: Array) -> dict[str, Any]:
    """Return the mean over directions; its interval is over directions and prompts, both drawn anew."""
    rng = np.random.default_rng(0)
    directions, count = drawn.shape
    picked = rng.integers(0, directions, (count - 1, directions))
    means = drawn[picked, np.arange(1, count)[:, None]].mean(axis=1)
    found = bounded(np.concatenate([[drawn[:, 0].mean()], means]))
    return {"visage": found.value, "low": found.low, "high": found.high}


def margin_rows(lines: Sequence[LineEdges]) -> list[dict[str, Any]]:
    """Return how far each run ended from the edge on its own line, beside slope and curvature at theta_0."""
    rows = []
    for one in lines:
        end = _end(one)
        edge = one.edges.get("+", {}).get("safety") or one.edges.get("+", {}).get("margin")
        if end is None or edge is None:
            continue
        left = bounded(edge.draws - end)
        bent = next((row for row in one.terrain.record.curvature if row.direction == one.line), None)
        rows.append({
            "landscape": one.terrain.name,
            "run": one.terrain.record.directions[one.line].run,
            "end": end,
            "edge_at": edge.at,
            "margin_to_edge": left.value,
            "low": left.low,
            "high": left.high,
            "asr_end": _at(one, one.terrain.record.primary, end),
            "slope": bent.slope if bent else None,
            "curvature": bent.curvature if bent else None,
            "predicted": bent.slope * end + bent.curvature * end**2 / 2 if bent else None,
            "actual": _change(one, "refusal_nll", end),
        })  # fmt: skip
    return rows


def _end(one: LineEdges) -> float | None:
    direction = one.terrain.record.directions[one.line]
    return direction.length if direction.kind == "finetune" and direction.options.get("weights") == "final" else None


def _at(one: LineEdges, name: str | None, place: float) -> float | None:
    if name is None or not one.terrain.has(name):
        return None
    x, y = _mean_line(one.terrain, one.line, name)
    return float(np.interp(place, x, y)) if x[0] <= place <= x[-1] else None


def _change(one: LineEdges, name: str, place: float) -> float | None:
    there, start = _at(one, name, place), _at(one, name, 0.0)
    return None if there is None or start is None else there - start


def prediction_rows(lines: Sequence[LineEdges], runs: Mapping[str, RunData]) -> list[dict[str, Any]]:
    """Correlate, over the runs of each landscape, what is known of a run's own line with how unsafe the run ends.

    Args:
        lines: edges of all lines.
        runs: the runs of the report, for their settings.

    Returns:
        One row a landscape and predictor.
    """
    rows = []
    for name in dict.fromkeys(one.terrain.name for one in lines):
        mine = [one for one in lines if one.terrain.name == name and _end(one) is not None]
        outcomes = [_at(one, one.terrain.record.primary, _end(one) or 0.0) for one in mine]
        if len(mine) < 2 or all(value is None for value in outcomes):
            continue
        for predictor, values in _predictors(mine, runs).items():
            pairs = [(x, y) for x, y in zip(values, outcomes, strict=True) if x is not None and y is not None]
            found = foretells([x for x, _ in pairs], [y for _, y in pairs])
            rows.append({
                "landscape": name, "predictor": predictor, "outcome": "coherent compliance at the end",
                "runs_n": found.n, "spearman": found.spearman, "low": found.low, "high": found.high, "p": found.p,
                "said": found.said,
            })  # fmt: skip
    return rows


def _predictors(lines: Sequence[LineEdges], runs: Mapping[str, RunData]) -> dict[str, list[float | None]]:
    def edge(one: LineEdges, kind: str) -> Edge | None:
        return one.edges.get("+", {}).get(kind)

    def own(one: LineEdges) -> float:
        return one.terrain.record.directions[one.line].length

    def outward(kind: str, scaled: bool) -> list[float | None]:
        found = []
        for one in lines:
            there = edge(one, kind)
            at = None if there is None else math.inf if there.at is None else there.at
            found.append(at if at is None or not scaled else at / own(one))
        return found

    bends = {row.direction: row.curvature for one in lines for row in one.terrain.record.curvature}
    rates = [_setting(runs, one, "lr") for one in lines]
    return {
        "safety edge on the own line": outward("safety", False),
        "safety edge, in own lengths": outward("safety", True),
        "sham edge on the own line": outward("sham", False),
        "margin edge on the own line": outward("margin", False),
        "capability edge on the own line": outward("capability", False),
        "distance": [own(one) for one in lines],
        "log lr": [None if rate is None else math.log(rate) for rate in rates],
        "curvature along the own line": [bends.get(one.line) for one in lines],
    }


def _setting(runs: Mapping[str, RunData], one: LineEdges, name: str) -> float | None:
    where = {place.name: place.path for place in one.terrain.record.runs}
    wanted = where.get(one.terrain.record.directions[one.line].run or "")
    for run in runs.values():
        if wanted is not None and str(run.path.resolve()) == wanted:
            return float(run.record.config[name])
    return None


def described(terrains: Iterable[Terrain]) -> list[dict[str, Any]]:
    """Return what figures need of each landscape beside its tables."""
    return [
        {
            "landscape": terrain.name,
            **terrain.record.model_dump(
                include={"shape", "directions", "gram", "grid", "measured", "primary", "not_run", "scores", "cost"}
            ),
            "edges": terrain.record.settings["edges"],
            "visage": bool(terrain.record.settings.get("visage")),
            "runs": [place.name for place in terrain.record.runs],
            "unresolved": terrain.unresolved,
        }
        for terrain in terrains
    ]
