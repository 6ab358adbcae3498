"""Curves of several sets side by side: one panel for theta_0 and one for each arm's last step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from geomsafe.reports.figures import INK, MOST_PANELS, Figure, cell, looks, panels, styled

Rows = Sequence[dict[str, Any]]

# One colour a set in every figure; nulls and random directions are never as loud as what is measured.
SET_COLOURS = {
    "safety": "#D55E00",
    "utility": "#0072B2",
    "sham": "#009E73",
    "benign": "#CC79A7",
    "random-tokens": "#8C8C8C",
    "untrained": "#B8860B",
    "benign-length": "#6A51A3",
    "loss-matched": "#56B4E9",
}
RANDOM = "#9aa1ad"


class Series(NamedTuple):
    """One curve a panel: its name in the legend, colour and dash, and the rows it is drawn from."""

    name: str
    colour: str
    dash: str
    rows: Rows
    y: str
    note: Callable[[dict[str, Any]], str] = lambda _: ""


class Place(NamedTuple):
    """A panel: theta_0, or an arm."""

    title: str
    belongs: Callable[[dict[str, Any]], bool]


def places(analysis: dict[str, Any], rows: Rows, *, start: bool = True, last: bool = True) -> tuple[list[Place], int]:
    """Choose the panels.

    Args:
        analysis: analysis.json.
        rows: what is to be drawn; arms without rows get no panel.
        start: give theta_0 a panel, where there is step 0.
        last: arms show their last step only, else all.

    Returns:
        The panels, and how many arms are left out.
    """
    keyed = [row for row in rows if row["key"] is not None]
    arms = [look for look in looks(analysis).values() if any(row["key"] == look.key for row in keyed)]
    arms = [look for look in arms if not look.repeats] or arms
    found: list[Place] = []
    if start and any(row["step"] == 0 for row in rows):
        found.append(Place("θ₀, step 0", lambda row: row["step"] == 0))
    room = MOST_PANELS - len(found)
    for look in arms[:room]:
        steps = {row["step"] for row in keyed if row["key"] == look.key}
        if last and steps == {0}:
            continue
        end = max(steps)

        def belongs(row: dict[str, Any], key: str = look.key, end: int = end) -> bool:
            return bool(row["key"] == key and (row["step"] == end or not last))

        found.append(Place(f"{look.name}, step {end}" if last else look.name, belongs))
    return found, max(0, len(arms) - room)


def series_figure(
    frame: dict[str, Any],
    chosen: tuple[list[Place], int],
    series: Sequence[Series],
    *,
    x: str,
    x_title: str,
    y_title: str,
    scale: float = 1.0,
    height: int = 270,
    zero: bool = False,
    **axes: Mapping[str, Any],
) -> Figure:
    """Draw every series in every panel, as the mean over seeds.

    Args:
        frame: id, title, how, limitation and tables of the figure.
        chosen: what `places` returned.
        series: the curves, the most important last so that it lies on top.
        x: column of the horizontal axis.
        x_title: its title.
        y_title: title of the vertical axis.
        scale: factor of the values, 100 for per cent.
        height: of a row of panels.
        zero: draw a line at zero.
        axes: `xaxis` and `yaxis`, more of plotly's settings.

    Returns:
        The figure.
    """
    found, left_out = chosen
    columns = len(found) if len(found) <= 4 else 3
    plot, full = panels([place.title for place in found], columns, height)
    named: set[str] = set()
    for index, place in enumerate(found):
        for one in series:
            points = _means([row for row in one.rows if place.belongs(row) and row[one.y] is not None], x, one.y)
            if not points:
                continue
            plot.add_trace(
                go.Scatter(
                    x=[at for at, _, _ in points],
                    y=[scale * value for _, value, _ in points],
                    mode="lines+markers",
                    marker={"size": 4},
                    line={"color": one.colour, "dash": one.dash, "width": 1.2 if one.colour == RANDOM else 2},
                    name=one.name,
                    legendgroup=one.name,
                    showlegend=one.name not in named,
                    customdata=[one.note(row) for _, _, row in points],
                    hovertemplate=f"{one.name}<br>{x_title} %{{x}}: %{{y:.3g}}<br>%{{customdata}}<extra></extra>",
                ),
                **cell(index, columns),
            )
            named.add(one.name)
        if zero:
            plot.add_hline(y=0, line={"width": 1, "color": INK}, **cell(index, columns))
    # Legends of more than about eight entries take two lines.
    top = 64 + 20 * (1 + len(named) // 7)
    styled(plot, full + top - 60, margin={"l": 64, "r": 24, "t": top, "b": 56})
    plot.update_layout(legend_y=1 + 26 / (full - 116))
    plot.update_xaxes(**axes.get("xaxis", {}))
    plot.update_yaxes(**axes.get("yaxis", {}))
    for index in range(len(found)):
        if index + columns >= len(found):
            plot.update_xaxes(title_text=x_title, **cell(index, columns))
        if index % columns == 0:
            plot.update_yaxes(title_text=y_title, **cell(index, columns))
    if left_out:
        frame = frame | {"limitation": f"{frame['limitation']} {left_out} more arms are in the CSV."}
    return Figure(**frame, plot=plot)


def _means(rows: Rows, x: str, y: str) -> list[tuple[Any, float, dict[str, Any]]]:
    by_x: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        by_x.setdefault(row[x], []).append(row)
    return [(at, sum(row[y] for row in by_x[at]) / len(by_x[at]), by_x[at][0]) for at in sorted(by_x)]
