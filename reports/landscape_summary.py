"""One landscape in a few lines for the terminal."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from geomsafe.analyses.basins import FEWEST_DIRECTIONS
from geomsafe.reports.basin_edges import edges_of
from geomsafe.reports.landscape_tables import edge_rows, visage_rows
from geomsafe.reports.landscapes import Terrain, read_terrain
from geomsafe.reports.wording import plural


class Summary(NamedTuple):
    """Sentences, and a table: one mapping of column to text a row."""

    lines: list[str]
    rows: list[dict[str, str]]


def edge_summary(folder: Path) -> Summary:
    """Say what was scored and where the basin ends.

    Args:
        folder: of a landscape.

    Returns:
        What to print.
    """
    terrain = read_terrain(folder, folder.name)
    record = terrain.record
    lines = [f"{plural(len(terrain.points) + terrain.unresolved, 'point')}, {', '.join(record.scores)}"]
    if terrain.unresolved:
        lines.append(
            f"{plural(terrain.unresolved, 'point')} below one unit in the last place of {record.theta_0['dtype']}"
        )
    lines += [f"not run: {what}: {why}" for what, why in record.not_run.items()]
    edges = [row for row in edge_rows(edges_of([terrain])) if row["edge"] in _shown(terrain)]
    drawn = [row for row in edges if row["way_kind"] == "random"]
    summed = len({row["way"] for row in drawn}) >= FEWEST_DIRECTIONS
    rows = [_edge(row) for row in edges if not summed or row["way_kind"] != "random"]
    rows += _summed(drawn) if summed else []
    if record.settings.get("visage"):
        rows = [_visage(row) for row in visage_rows([terrain])]
    return Summary(lines, rows)


def _shown(terrain: Terrain) -> tuple[str, ...]:
    return ("safety", "capability") if terrain.record.primary is not None else ("margin", "capability")


def _edge(row: dict[str, Any]) -> dict[str, str]:
    return {
        "direction": row["way"],
        "side": row["side"],
        "edge": row["edge"],
        "at": _number(row["edge_at"]) or f"beyond {row['looked']:.3g}",
        "95 % interval": f"[{_number(row['edge_low']) or '-'}, {_number(row['edge_high']) or '-'}]",
        "own lengths": _number(row["lengths"]),
        "first": row["first_edge"] or "",
    }


def _summed(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Return one row a side and kind of edge: how many directions reach it, and the middle of those that do."""
    found = []
    for side, edge in dict.fromkeys((row["side"], row["edge"]) for row in rows):
        mine = [row for row in rows if (row["side"], row["edge"]) == (side, edge)]
        at = [row["edge_at"] for row in mine if row["edge_at"] is not None]
        middle = f", median {median(at):.3g}" if at else ""
        found.append({
            "direction": f"{len(mine)} random directions",
            "side": side,
            "edge": edge,
            "at": f"reached by {len(at)} of {len(mine)}{middle}",
            "95 % interval": f"{min(at):.3g} to {max(at):.3g}" if at else "",
            "own lengths": "",
            "first": "",
        })  # fmt: skip
    return found


def _visage(row: dict[str, Any]) -> dict[str, str]:
    return {
        "direction": row["way"],
        "VISAGE": f"{row['visage']:.1f}",
        "95 % interval": f"[{row['low']:.1f}, {row['high']:.1f}]",
        "basin": f"{row['from_at']:.3g} to {row['to_at']:.3g}" if row.get("from_at") is not None else "",
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
