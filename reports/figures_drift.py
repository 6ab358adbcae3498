"""The first screen's figure: attack success against distance from theta_0; and rates side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from geomsafe.reports.columns import COLUMNS
from geomsafe.reports.figures import (
    HOLLOW,
    INK,
    Figure,
    Look,
    cell,
    colorbar,
    hundredfold,
    looks,
    panels,
    shown_rate,
    styled,
    whiskers,
)
from geomsafe.reports.wording import with_arrow

SIDE_BY_SIDE = ("gold_asr", "over_refusal", "utility", "retained")


def drift_figure(analysis: dict[str, Any]) -> Figure:
    """Return the plot of every weight set of every run, each method joined to its control."""
    key = analysis["scope"]["primary"]
    measure = COLUMNS[key].title
    rows = [row for row in analysis["tables"]["points"]["rows"] if row[key] is not None]
    frame: dict[str, Any] = {
        "id": "drift",
        "title": f"{measure[0].upper()}{measure[1:]} against distance from θ₀",
        "how": (
            "Right = further from the aligned start, up = less safe. Every point is one weight set of one run with its "
            "95 % interval; small points are earlier steps. A dotted line joins each method to its control: a method "
            "that adds something lies below the line's other end at equal distance. Fill = utility (grey: not run); "
            f"hollow = more than {100 * HOLLOW:.0f} % incoherent answers."
        ),
        "limitation": "L2 distance of the weights, not KL; equal distance does not mean equal change of behaviour.",
        "tables": ["points", "arms"],
    }
    if not rows:
        return Figure(**frame, plot=None, missing="not run: no weight set was scored on harmful prompts")
    plot = go.Figure()
    # The last iterates of shadow runs lie under the baseline that they repeat.
    for look in sorted(looks(analysis).values(), key=lambda look: not look.repeats):
        _add_arm(plot, [row for row in rows if row["key"] == look.key and row["distance"] is not None], look, key)
    for look in looks(analysis).values():
        _add_key(plot, look)
    _add_links(plot, analysis, key)
    _add_letters(plot, analysis, key)
    _add_starts(plot, rows, key)
    styled(
        plot,
        460,
        coloraxis={
            "colorscale": "Viridis",
            "cmin": 0,
            "cmax": 100,
            "colorbar": colorbar("utility (%)", len=0.9),
        },
        margin={"l": 64, "r": 24, "t": 76, "b": 56},
        hovermode="closest",
    )
    furthest = 100 * max(row["relative_distance"] or 0 for row in rows) or 1.0
    plot.update_xaxes(
        title_text="relative distance from θ₀, ‖θ − θ₀‖ / ‖θ₀‖ (%)", range=[-0.03 * furthest, 1.08 * furthest]
    )
    plot.update_yaxes(title_text=f"{measure} (% of harmful prompts)", range=[-4, 104])
    return Figure(**frame, plot=plot)


def rates_figure(analysis: dict[str, Any]) -> Figure:
    """Return the plot of attack success, over-refusal, utility and retained skills of every arm with intervals."""
    primary = analysis["scope"]["primary"]
    keys = [primary, *SIDE_BY_SIDE[1:]]
    rows = [row for row in analysis["tables"]["arms"]["rows"] if any(row[key] is not None for key in keys)]
    frame: dict[str, Any] = {
        "id": "rates",
        "title": "Attack success, over-refusal and utility",
        "how": (
            "One row an arm, pooled over seeds; bars end at the rate, whiskers are 95 % intervals by cluster of "
            "prompts, ticks the single seeds' least and largest. The dotted line is θ₀. ↓ = less is better, ↑ = more "
            "is better."
        ),
        "limitation": "Intervals are over prompts, given these seeds; they do not cover other seeds, tasks or models.",
        "tables": ["arms", "suites"],
    }
    if not rows:
        return Figure(**frame, plot=None, missing="not run: no weight set was scored")
    found = looks(analysis)
    plot, height = panels([with_arrow(COLUMNS[key].title, COLUMNS[key].better) for key in keys], 4, 60 + 30 * len(rows))
    names = [_row_name(row, found) for row in rows]
    for index, key in enumerate(keys):
        place = cell(index, 4)
        plot.add_trace(_bars(rows, names, key, found), **place)
        for bound in ("_min", "_max"):
            plot.add_trace(
                go.Scatter(
                    x=hundredfold(row[f"{key}{bound}"] for row in rows),
                    y=names,
                    mode="markers",
                    marker={"symbol": "line-ns-open", "size": 7, "color": "#8b93a1", "line": {"width": 1}},
                    hoverinfo="skip",
                    showlegend=False,
                ),
                **place,
            )
        start = next((row[key] for row in rows if row["key"] == "theta_0"), None)
        if start is not None:
            plot.add_vline(x=100 * start, line={"dash": "dot", "width": 1, "color": INK}, **place)
        if all(row[key] is None for row in rows):
            plot.add_annotation(text="not run", x=50, y=names[0], showarrow=False, font_color="#6b7280", **place)
    styled(plot, height, bargap=0.45, showlegend=False, margin={"l": 250, "r": 20, "t": 36, "b": 50})
    plot.update_xaxes(range=[0, 103], title_text="% of prompts", tickvals=[0, 25, 50, 75, 100])
    plot.update_yaxes(autorange="reversed", ticks="", showgrid=False)
    return Figure(**frame, plot=plot)


def _row_name(row: dict[str, Any], found: dict[str, Look]) -> str:
    return f"<b>{row['key']}</b>  {found[row['key']].label}" if row["key"] in found else str(row["arm"]).split(",")[0]


def _bars(rows: Sequence[dict[str, Any]], names: Sequence[str], key: str, found: dict[str, Look]) -> go.Bar:
    return go.Bar(
        x=hundredfold(row[key] for row in rows),
        y=list(names),
        orientation="h",
        marker={
            "color": [found[row["key"]].colour if row["key"] in found else "#6b7280" for row in rows],
            "opacity": 0.75,
        },
        error_x=whiskers(rows, key) | {"color": INK, "thickness": 1.2, "width": 3},
        customdata=[shown_rate(row, key) for row in rows],
        hovertemplate="%{y}<br>%{customdata}<extra></extra>",
        showlegend=False,
    )


def _add_arm(plot: go.Figure, rows: list[dict[str, Any]], look: Look, key: str) -> None:
    for hollow in (False, True):
        mine = [row for row in rows if ((row["incoherence"] or 0) > HOLLOW) == hollow]
        _add_points(plot, mine, look, key, hollow)


def _add_points(plot: go.Figure, rows: list[dict[str, Any]], look: Look, key: str, hollow: bool) -> None:
    for rows_of_size, size, opacity in (
        ([row for row in rows if row["weights"].startswith("step-")], 6, 0.55),
        ([row for row in rows if not row["weights"].startswith("step-")], 13, 1.0),
    ):
        if not rows_of_size:
            continue
        early = size < 10
        plot.add_trace(
            go.Scatter(
                x=hundredfold(row["relative_distance"] for row in rows_of_size),
                y=hundredfold(row[key] for row in rows_of_size),
                error_y=whiskers(rows_of_size, key)
                | {"color": look.colour, "thickness": 1.2 if not early else 0.6, "width": 0},
                mode="markers",
                name=look.name,
                legendgroup=look.key,
                showlegend=False,
                opacity=opacity,
                marker={
                    "size": size,
                    "symbol": look.symbol,
                    "line": {"color": look.colour, "width": 2.5 if not early else 1},
                }
                | ({"color": "white"} if hollow else _utility_colours(rows_of_size)),
                customdata=[
                    [
                        row["run"],
                        row["weights"],
                        shown_rate(row, key),
                        shown_rate(row, "utility"),
                        shown_rate(row, "incoherence"),
                    ]
                    for row in rows_of_size
                ],
                hovertemplate=(
                    "<b>%{customdata[0]}</b> %{customdata[1]}<br>distance %{x:.3f} %<br>attack success %{customdata[2]}"
                    "<br>utility %{customdata[3]}<br>incoherent %{customdata[4]}<extra></extra>"
                ),
            )
        )


def _utility_colours(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the fill of points: utility on the common scale, grey where it was not run."""
    if any(row["utility"] is None for row in rows):
        return {"color": "#c3c8d0"}
    return {"color": [100 * row["utility"] for row in rows], "coloraxis": "coloraxis"}


def _add_key(plot: go.Figure, look: Look) -> None:
    """Add a legend entry in the arm's colour: the points themselves are coloured by utility."""
    plot.add_trace(
        go.Scatter(
            x=[None],
            y=[None],
            mode="markers",
            marker={"symbol": look.symbol, "size": 10, "color": "white", "line": {"color": look.colour, "width": 2.5}},
            name=look.name,
            legendgroup=look.key,
        )
    )


def _add_letters(plot: go.Figure, analysis: dict[str, Any], key: str) -> None:
    """Write each arm's letter beside its mean point, those of arms that coincide together."""
    places: list[tuple[float, float, list[str]]] = []
    furthest = max((row["relative_distance"] or 0 for row in analysis["tables"]["arms"]["rows"]), default=0) or 1
    for row in analysis["tables"]["arms"]["rows"]:
        if row["key"].startswith("theta_") or row[key] is None or row["relative_distance"] is None:
            continue
        x, y = row["relative_distance"], row[key]
        near = next((one for one in places if abs(one[0] - x) < 0.04 * furthest and abs(one[1] - y) < 0.05), None)
        if near:
            near[2].append(row["key"])
        else:
            places.append((x, y, [row["key"]]))
    for x, y, letters in places:
        plot.add_annotation(
            x=100 * x,
            y=100 * y,
            text=f"<b>{', '.join(letters)}</b>",
            showarrow=False,
            # Away from the whiskers, which are vertical.
            xanchor="right" if x > 0.5 * furthest else "left",
            xshift=-26 if x > 0.5 * furthest else 14,
            yshift=0 if x > 0.5 * furthest else 14,
        )


def _add_links(plot: go.Figure, analysis: dict[str, Any], key: str) -> None:
    arms = {row["key"]: row for row in analysis["tables"]["arms"]["rows"]}
    found = looks(analysis)
    for row in arms.values():
        control = arms.get(row["control"] or "")
        if control is None or row["control_kind"] == "settings":
            continue
        ends = [row, control]
        if any(end[key] is None or end["relative_distance"] is None for end in ends):
            continue
        plot.add_trace(
            go.Scatter(
                x=hundredfold(end["relative_distance"] for end in ends),
                y=hundredfold(end[key] for end in ends),
                mode="lines",
                line={"dash": "dot", "width": 2, "color": found[row["key"]].colour},
                name=f"{row['key']} → control {row['control']}",
                legendgroup=row["key"],
                hoverinfo="name",
                showlegend=False,
            )
        )


def _add_starts(plot: go.Figure, rows: Sequence[dict[str, Any]], key: str) -> None:
    for row in rows:
        if row["key"] == "theta_0":
            plot.add_trace(
                go.Scatter(
                    x=[0],
                    y=[100 * row[key]],
                    error_y=whiskers([row], key) | {"color": INK, "thickness": 1.2, "width": 0},
                    mode="markers+text",
                    text=["θ₀"],
                    textposition="middle right",
                    textfont={"size": 14},
                    marker={"symbol": "diamond", "size": 13, "color": INK},
                    name="θ₀, the aligned start",
                    hovertemplate=f"θ₀: {shown_rate(row, key)}<extra></extra>",
                    showlegend=False,
                )
            )
        elif row["key"] == "theta_base":
            plot.add_hline(
                y=100 * row[key],
                line={"dash": "dash", "width": 1, "color": "#6b7280"},
                annotation_text=f"θ_base, before alignment: {shown_rate(row, key)}",
                annotation_position="bottom right",
            )
