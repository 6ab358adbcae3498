"""Figures of landscapes over a plane: contours with paths and edges, and the same as a surface."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from geomsafe.analyses.basins import Array, surface
from geomsafe.reports.figures import COLOURS, INK, SYMBOLS, Figure, colorbar, styled
from geomsafe.reports.figures_landscape import TITLES, left_out_points, of, scale_of, shown_quantities, slug
from geomsafe.reports.figures_sweep import switch
from geomsafe.reports.wording import percent

LATTICE = 81
"""Points of each axis of the lattice that scattered points are interpolated on."""

SAFE_TO_UNSAFE: list[tuple[float, str]] = [
    (0, "#2b6cb0"),
    (0.25, "#90cdf4"),
    (0.5, "#f7f7f7"),
    (0.75, "#f6ad55"),
    (1, "#c53030"),
]


class _Field(NamedTuple):
    """A quantity over the plane: axes, values (rows, columns), and the points behind it."""

    measured: dict[str, Any]
    x: Array
    y: Array
    z: Array
    points: Array


def plane_figures(analysis: dict[str, Any]) -> list[Figure]:
    """Draw every plane.

    Args:
        analysis: analysis.json.

    Returns:
        Contours and surface of each; none without planes.
    """
    figures = []
    for one in analysis["landscapes"]:
        if one["shape"] != "plane":
            continue
        fields = [field for measured in shown_quantities(one) if (field := _field(analysis, one, measured)) is not None]
        if fields:
            figures += [_contours(analysis, one, fields), _surface(analysis, one, fields)]
    return figures


def _field(analysis: dict[str, Any], one: dict[str, Any], measured: dict[str, Any]) -> _Field | None:
    rows = [row for row in of(analysis, "landscape_plane", one) if row["quantity"] == measured["name"]]
    rows = [row for row in rows if row["average"] is not None]
    if len(rows) < 4:
        return None
    points = np.array([[row["coordinate"], row["coordinate_y"]] for row in rows])
    values = scale_of(measured) * np.array([row["average"] for row in rows])
    x, y = np.unique(points[:, 0]), np.unique(points[:, 1])
    if len(rows) == len(x) * len(y):
        z = np.full((len(y), len(x)), np.nan)
        z[np.searchsorted(y, points[:, 1]), np.searchsorted(x, points[:, 0])] = values
    else:
        x, y = (np.linspace(axis[0], axis[-1], LATTICE) for axis in (x, y))
        z = surface(points, values, x, y)
    return _Field(measured, x, y, z, points)


def _contours(analysis: dict[str, Any], one: dict[str, Any], fields: list[_Field]) -> Figure:
    paths = of(analysis, "landscape_paths", one)
    plot = go.Figure()
    for index, field in enumerate(fields):
        plot.add_trace(
            go.Contour(
                x=field.x,
                y=field.y,
                z=field.z,
                visible=index == 0,
                ncontours=20,
                contours={"showlines": False},
                colorbar=colorbar(TITLES[field.measured["name"]]),
                hovertemplate="%{x:.4f}, %{y:.4f}: %{z:.4g}<extra></extra>",
                **_colours(field),
            )
        )
    others = [*_edge_lines(one, fields), _dots(fields[0]), *_path_traces(paths), _origin()]
    plot.add_traces(others)
    styled(plot, 620, margin={"l": 72, "r": 24, "t": 118, "b": 60})
    plot.update_layout(updatemenus=switch(_buttons(fields, len(others)), 0.13), legend_y=1.01)
    first, second = one["directions"]
    plot.update_xaxes(title_text=f"{first['name']} (of ‖θ₀‖)", showgrid=False)
    plot.update_yaxes(title_text=f"{second['name']} (of ‖θ₀‖)", showgrid=False)
    return Figure(
        id=f"landscape-{slug(one)}-plane",
        title=f"A plane through θ₀: {one['landscape']}",
        how=(
            "Colour is the quantity chosen above the plot. The thick line is where half of the harmful prompts are "
            "answered coherently (without answers: where the mean refusal margin turns negative), the dashed line "
            "where a tenth of the old skills is gone. The cross is θ₀; each path joins the saved weights of a run, its "
            f"end being the large mark. Small dots are the points that were scored.{_off_plane(paths)}"
        ),
        limitation=(
            "Weights of a path are projected: off the plane the model may be another one. Between points values are "
            "interpolated." + left_out_points(one)
        ),
        tables=["landscape_plane", "landscape_paths"],
        plot=plot,
        short=f"{one['landscape']}: plane",
    )


def _buttons(fields: list[_Field], others: int = 0) -> list[dict[str, Any]]:
    """Return one button a quantity, which shows its trace; `others` come after them and stay."""
    return [
        {
            "label": TITLES[field.measured["name"]].partition(" (")[0],
            "method": "restyle",
            "args": [{"visible": [number == index for number in range(len(fields))] + [True] * others}],
        }
        for index, field in enumerate(fields)
    ]


def _colours(field: _Field) -> dict[str, Any]:
    known = field.z[~np.isnan(field.z)]
    if field.measured["kind"] == "rate":
        return {"colorscale": _scale(field), "zmin": 0, "zmax": 100}
    # The model is destroyed far out, where losses are large: colours belong to what lies nearer.
    low, high = np.percentile(known, [5, 95])
    return {"colorscale": _scale(field), "zmin": float(low), "zmax": float(high)}


def _scale(field: _Field) -> list[tuple[float, str]]:
    if field.measured["better"] != "higher":
        return SAFE_TO_UNSAFE
    return [(1 - place, colour) for place, colour in reversed(SAFE_TO_UNSAFE)]


def _edge_lines(one: dict[str, Any], fields: list[_Field]) -> list[Any]:
    by_name = {field.measured["name"]: field for field in fields}
    found = []
    safety = by_name.get("unsafe") or by_name.get("refusal_margin")
    if safety is not None:
        level = 100 * one["edges"]["unsafe"] if safety.measured["name"] == "unsafe" else 0.0
        found.append(_level(safety, level, "safety edge", {"color": INK, "width": 3}))
    kept = by_name.get("retained") or by_name.get("utility")
    if kept is not None:
        start = _at_origin(kept)
        if start:
            line = {"color": INK, "width": 2, "dash": "dash"}
            found.append(_level(kept, one["edges"]["retained"] * start, "capability edge (old skills)", line))
    return found


def _at_origin(field: _Field) -> float | None:
    row, column = np.abs(field.y).argmin(), np.abs(field.x).argmin()
    value = float(field.z[row, column])
    return None if np.isnan(value) else value


def _level(field: _Field, level: float, name: str, line: dict[str, Any]) -> go.Contour:
    return go.Contour(
        x=field.x,
        y=field.y,
        z=field.z,
        contours={"start": level, "end": level, "size": 1, "coloring": "lines"},
        line=line,
        colorscale=[[0, INK], [1, INK]],
        showscale=False,
        name=name,
        showlegend=True,
        hoverinfo="skip",
    )


def _dots(field: _Field) -> go.Scatter:
    return go.Scatter(
        x=field.points[:, 0],
        y=field.points[:, 1],
        mode="markers",
        marker={"size": 3, "color": "rgba(31, 36, 48, .45)"},
        name="scored points",
        hoverinfo="skip",
    )


def _origin() -> go.Scatter:
    return go.Scatter(
        x=[0], y=[0], mode="markers", marker={"symbol": "cross", "size": 13, "color": INK}, name="θ₀",
        hovertemplate="θ₀<extra></extra>",
    )  # fmt: skip


def _path_traces(rows: list[dict[str, Any]]) -> list[go.Scatter]:
    found = []
    for number, run in enumerate(dict.fromkeys(row["run"] for row in rows)):
        mine = [row for row in rows if row["run"] == run]
        path = [row for row in mine if row["weights"] == "final" or row["weights"].startswith("step-")]
        path = sorted(path, key=lambda row: row["step"] or 0)
        colour, symbol = COLOURS[number % len(COLOURS)], SYMBOLS[number % len(SYMBOLS)]
        found.append(
            go.Scatter(
                x=[0, *(row["coordinate"] for row in path)],
                y=[0, *(row["coordinate_y"] for row in path)],
                mode="lines+markers",
                line={"color": colour, "width": 2.5},
                marker={
                    "symbol": symbol,
                    "size": [0, *(13 if row["weights"] == "final" else 6 for row in path)],
                    "color": colour,
                    "line": {"color": "white", "width": 1},
                },
                name=run,
                customdata=["θ₀", *map(_place, path)],
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
        averages = [row for row in mine if row not in path]
        if averages:
            found.append(
                go.Scatter(
                    x=[row["coordinate"] for row in averages],
                    y=[row["coordinate_y"] for row in averages],
                    mode="markers",
                    marker={"symbol": f"{symbol}-open", "size": 15, "color": colour, "line": {"width": 2}},
                    name=f"{run}: {', '.join(row['weights'] for row in averages)}",
                    customdata=[*map(_place, averages)],
                    hovertemplate="%{customdata}<extra></extra>",
                )
            )
    return found


def _place(row: dict[str, Any]) -> str:
    return (
        f"{row['run']} {row['weights']}, step {row['step']}<br>{row['relative_distance']:.4f} of ‖θ₀‖ from θ₀, "
        f"{percent(row['residual'])} of it (squared) off the plane"
    )


def _off_plane(rows: list[dict[str, Any]]) -> str:
    ends = {row["run"]: row["residual"] for row in rows if row["weights"] == "final" and row["residual"] is not None}
    if not ends:
        return ""
    said = ", ".join(f"{run} {percent(value)}" for run, value in ends.items())
    return f" Share of the squared displacement of each end that lies off the plane: {said}."


def _surface(analysis: dict[str, Any], one: dict[str, Any], fields: list[_Field]) -> Figure:
    plot = go.Figure()
    for index, field in enumerate(fields):
        shown = _colours(field)
        plot.add_trace(
            go.Surface(
                x=field.x, y=field.y, z=field.z, visible=index == 0, colorscale=shown["colorscale"],
                cmin=shown["zmin"], cmax=shown["zmax"], showscale=True,
                colorbar=colorbar(TITLES[field.measured["name"]]),
                contours={"z": {"show": True, "color": "rgba(31,36,48,.35)", "width": 1}},
                hovertemplate="%{x:.4f}, %{y:.4f}: %{z:.4g}<extra></extra>",
            )
        )  # fmt: skip
    styled(plot, 560, margin={"l": 10, "r": 10, "t": 60, "b": 10})
    first, second = one["directions"]
    plot.update_layout(
        updatemenus=switch(_buttons(fields), 0.02),
        scene={
            "xaxis": {"title": {"text": first["name"]}},
            "yaxis": {"title": {"text": second["name"]}},
            "zaxis": {"title": {"text": ""}},
            "camera": {"eye": {"x": -1.5, "y": -1.5, "z": 1.0}},
        },
    )
    return Figure(
        id=f"landscape-{slug(one)}-surface",
        title=f"The same plane as a surface: {one['landscape']}",
        how="Height and colour are the quantity chosen above; drag to turn. The basin is the flat floor around θ₀.",
        limitation="A surface shows shape; read numbers off the contours or the CSV." + left_out_points(one),
        tables=["landscape_plane"],
        plot=plot,
        short=f"{one['landscape']}: surface",
    )
