"""Attack success against utility: one mark an arm, and the front of those that no other arm beats on both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from geomsafe.reports.figures import HOLLOW, INK, Figure, cell, hundredfold, panels, shown_rate, styled, whiskers
from geomsafe.reports.figures_sweep import (
    SweepLook,
    of_condition,
    panelled_conditions,
    primary_of,
    shortened,
    side_legend,
    sweep_looks,
)


def pareto_figure(analysis: dict[str, Any]) -> Figure:
    """Return the plot of every arm's attack success and utility, one panel a condition."""
    key, measure = primary_of(analysis)
    names, left_out = panelled_conditions(analysis)
    frame: dict[str, Any] = {
        "id": "pareto",
        "short": "front",
        "title": f"Which arms are both safe and useful? {measure[0].upper()}{measure[1:]} against utility",
        "how": (
            "Left = safer, up = more useful: the upper left corner is best. One mark an arm, pooled over seeds, with "
            "95 % intervals; colour = family, grey = the reference's. The line is the front, its arms numbered as in "
            f"the table: no other arm is at least as good on both. Hollow = more than {100 * HOLLOW:.0f} % incoherent "
            "answers, never on the front. "
            "Black diamond: θ₀. Click a name to hide it, double-click to see it alone."
        ),
        "limitation": (
            f"The front is that of these trials and means over seeds, without regard to intervals.{left_out}"
        ),
        "tables": ["sweep"],
    }
    rows = [row for row in analysis["tables"]["sweep"]["rows"] if row[key] is not None and row["utility"] is not None]
    if not rows:
        return Figure(**frame, plot=None, missing="not run: no arm has both attack success and utility")
    columns = 1 if len(names) == 1 else 2
    plot, height = panels([shortened(name, 60) for name in names], columns, 430)
    named: set[str] = set()
    start = next((row for row in analysis["tables"]["arms"]["rows"] if row["key"] == "theta_0"), None)
    for index, condition in enumerate(names):
        place = cell(index, columns)
        mine = of_condition(rows, condition)
        _add_front(plot, [row for row in mine if row["pareto"]], key, place)
        for arm, look in sweep_looks(analysis).items():
            found = [row for row in mine if row["arm"] == arm]
            if found:
                plot.add_trace(_mark(found, look, key, measure, arm not in named), **place)
                named.add(arm)
        if start is not None and start[key] is not None and start["utility"] is not None:
            plot.add_trace(_start(start, key), **place)
    styled(plot, height, legend=side_legend(), margin={"l": 64, "r": 210, "t": 40, "b": 56}, hovermode="closest")
    plot.update_xaxes(title_text=f"{measure} (% of harmful prompts), ← safer")
    plot.update_yaxes(title_text="utility (%), ↑ better", col=1)
    return Figure(**frame, plot=plot)


def _mark(rows: Sequence[dict[str, Any]], look: SweepLook, key: str, measure: str, legend: bool) -> go.Scatter:
    hollow = [(row["incoherence"] or 0) > HOLLOW for row in rows]
    thin = {"color": look.colour, "thickness": 0.8, "width": 0}
    return go.Scatter(
        x=hundredfold(row[key] for row in rows),
        y=hundredfold(row["utility"] for row in rows),
        error_x=whiskers(rows, key) | thin,
        error_y=whiskers(rows, "utility") | thin,
        mode="markers",
        name=look.name,
        legendgroup=look.arm,
        showlegend=legend,
        marker={
            "size": 11,
            "symbol": look.symbol,
            "color": ["white" if one else look.colour for one in hollow],
            "line": {"color": look.colour, "width": 2},
        },
        customdata=[
            [row["arm"], row["key"], shown_rate(row, key), shown_rate(row, "utility"), shown_rate(row, "incoherence")]
            for row in rows
        ],
        hovertemplate=(
            f"<b>%{{customdata[1]}} %{{customdata[0]}}</b><br>{measure} %{{customdata[2]}}"
            "<br>utility %{customdata[3]}<br>incoherent %{customdata[4]}<extra></extra>"
        ),
    )


def _add_front(plot: go.Figure, rows: Sequence[dict[str, Any]], key: str, place: dict[str, int]) -> None:
    """Draw the front as stairs, its arms named: between two of them nothing better than the worse was reached."""
    ordered = sorted(rows, key=lambda row: (row[key], row["utility"]))
    if not ordered:
        return
    plot.add_trace(
        go.Scatter(
            x=hundredfold(row[key] for row in ordered),
            y=hundredfold(row["utility"] for row in ordered),
            mode="lines",
            line={"color": INK, "width": 1.5, "shape": "hv"},
            name="front",
            legendgroup="front",
            showlegend=place == {"row": 1, "col": 1},
            hoverinfo="skip",
        ),
        **place,
    )
    width = max(row[key] for row in ordered) or 1.0
    for index, row in enumerate(ordered):
        before = ordered[index - 1] if index else None
        # Two labels on one spot are not read: the second goes to the other side of its mark.
        near = (
            before is not None and row[key] - before[key] < 0.06 * width and row["utility"] - before["utility"] < 0.05
        )
        plot.add_annotation(
            x=100 * row[key],
            y=100 * row["utility"],
            text=f"<b>{row['key']}</b>",
            showarrow=False,
            xanchor="left" if near else "right",
            yanchor="top" if near else "bottom",
            xshift=5 if near else -5,
            yshift=-4 if near else 4,
            **place,
        )


def _start(row: dict[str, Any], key: str) -> go.Scatter:
    return go.Scatter(
        x=hundredfold([row[key]]),
        y=hundredfold([row["utility"]]),
        mode="markers+text",
        text=["θ₀"],
        textposition="middle right",
        textfont={"size": 14},
        marker={"symbol": "diamond", "size": 12, "color": INK},
        name="θ₀, the aligned start",
        showlegend=False,
        hovertemplate=(
            f"θ₀<br>attack success {shown_rate(row, key)}<br>utility {shown_rate(row, 'utility')}<extra></extra>"
        ),
    )
