"""What the tuned settings do: grids of learning rate and batch, and main effects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from geomsafe.reports.columns import COLUMNS
from geomsafe.reports.figures import MOST_PANELS, Figure, cell, colorbar, hundredfold, panels, styled, whiskers
from geomsafe.reports.figures_sweep import condition_switch, of_condition, panelled_conditions, primary_of
from geomsafe.reports.heatmaps import Cells, Rows, add_grid
from geomsafe.reports.wording import number, percent

# Light enough at the far end for dark numbers.
ASR_SCALE = ((0.0, "#fff7ee"), (0.5, "#fdc692"), (1.0, "#f08b46"))
UTILITY_SCALE = ((0.0, "#f5f9fd"), (0.5, "#b9d5ea"), (1.0, "#6fabd3"))
UTILITY_COLOUR = "#8fb4d4"
ASR_COLOUR = "#D55E00"


def grid_figure(analysis: dict[str, Any]) -> Figure:
    """Return the heatmaps of learning rate and effective batch, one row of panels an accumulation."""
    key, measure = primary_of(analysis)
    names, left_out = panelled_conditions(analysis)
    rows = [
        row
        for row in analysis["tables"]["grid"]["rows"]
        if (row["condition"] or "") in names and None not in (row["lr"], row["effective_batch"], row["accumulation"])
    ]
    accumulations = sorted({row["accumulation"] for row in rows})
    frame: dict[str, Any] = {
        "id": "settings",
        "short": "settings",
        "title": "Learning rate, effective batch and accumulation",
        "how": (
            f"Plain baselines only. Left {measure} (darker = less safe), right utility (darker = more useful), in per "
            "cent, means over seeds; rows of panels are steps of gradient accumulation, so equal cells of two rows "
            "differ in accumulation alone. Buttons choose the condition."
        ),
        "limitation": f"A larger batch takes fewer steps over the same examples. Cells have no intervals.{left_out}",
        "tables": ["grid"],
    }
    if not rows:
        return Figure(**frame, plot=None, missing="not run: no plain baselines of several settings")
    shown = accumulations[: MOST_PANELS // 2]
    across = [number(one) for one in sorted({row["lr"] for row in rows})]
    upwards = [str(one) for one in sorted({row["effective_batch"] for row in rows})]
    sides = ((key, measure, "coloraxis"), ("utility", "utility", "coloraxis2"))
    titles = [f"{title}, accumulation {one}" for one in shown for _, title, _ in sides]
    plot, height = panels(titles, 2, 110 + 34 * len(upwards), shared=False)
    belongs: list[str] = []
    for condition in names:
        for index, accumulation in enumerate(shown):
            mine = [row for row in of_condition(rows, condition) if row["accumulation"] == accumulation]
            for side, (column, _, scale) in enumerate(sides):
                _add_cells(plot, (2 * index + side, 2), across, upwards, mine, column, scale, condition == names[0])
                belongs += [condition] * 2
    styled(plot, height, margin={"l": 64, "r": 24, "t": 84, "b": 56}, showlegend=False)
    half = {"orientation": "v", "thickness": 10, "len": 0.9}
    plot.update_layout(
        coloraxis={"colorscale": ASR_SCALE, "cmin": 0, "cmax": 100, "colorbar": colorbar("%", x=0.455, **half)},
        coloraxis2={"colorscale": UTILITY_SCALE, "cmin": 0, "cmax": 100, "colorbar": colorbar("%", x=1.0, **half)},
        updatemenus=condition_switch(names, belongs, 36 / (height - 140)),
    )
    plot.update_xaxes(ticks="", showgrid=False)
    plot.update_xaxes(title_text="learning rate", row=len(shown))
    plot.update_yaxes(ticks="", showgrid=False)
    plot.update_yaxes(title_text="effective batch", col=1)
    for index in range(len(titles)):
        # Room for the colour scale of the left side.
        low, high = (0.0, 0.445) if index % 2 == 0 else (0.55, 0.99)
        plot.update_xaxes(domain=[low, high], **cell(index, 2))
        plot.layout.annotations[index].x = (low + high) / 2
    if len(accumulations) > len(shown):
        frame["limitation"] += f" {len(accumulations) - len(shown)} more accumulations are in the CSV."
    return Figure(**frame, plot=plot)


def _add_cells(
    plot: go.Figure,
    panel: tuple[int, int],
    across: Sequence[str],
    upwards: Sequence[str],
    rows: Sequence[dict[str, Any]],
    column: str,
    scale: str,
    visible: bool,
) -> None:
    """Draw one grid and say "not run" in its empty cells: two traces."""
    cells: Cells = {}
    for row in rows:
        if row[column] is not None:
            cells.setdefault((str(row["effective_batch"]), number(row["lr"])), []).append(row)

    def mean(found: Rows) -> float:
        return 100 * float(sum(row[column] for row in found)) / len(found)

    def hover(found: Rows) -> str:
        batches = ", ".join(str(row["batch_size"]) for row in found)
        seeds = sum(row["seeds"] or 0 for row in found)
        return f"{COLUMNS[column].title} {percent(mean(found) / 100)}<br>batch size {batches}, {seeds} runs"

    add_grid(plot, panel, across, upwards, cells, mean, hover, lambda found: f"{mean(found):.0f}", "lr ", scale)
    empty = [(x, y) for y, up in enumerate(upwards) for x, at in enumerate(across) if (up, at) not in cells]
    plot.add_trace(
        go.Scatter(
            x=[x for x, _ in empty],
            y=[y for _, y in empty],
            mode="text",
            text=["not run"] * len(empty),
            textfont={"size": 11, "color": "#9097a3"},
            hoverinfo="skip",
        ),
        **cell(*panel),
    )
    for trace in plot.data[-2:]:
        trace.visible = visible


def effects_figure(analysis: dict[str, Any]) -> Figure:
    """Return the plot of mean attack success by level of each setting, the most important setting first."""
    _, measure = primary_of(analysis)
    rows = [row for row in analysis["tables"]["effects"]["rows"] if row["mean"] is not None]
    settings: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        settings.setdefault(row["setting"], []).append(row)
    order = sorted(settings, key=lambda name: -(settings[name][0]["share_of_variance"] or 0))
    frame: dict[str, Any] = {
        "id": "effects",
        "short": "main effects",
        "title": "Which settings matter: main effects",
        "how": (
            f"One panel a tuned setting, the one with the largest share of the variance of {measure} first. Orange: "
            "mean attack success at each level with its 95 % interval, over all points at that level whatever their "
            "other settings; light blue: mean utility. A flat orange line = the setting alone changes nothing."
        ),
        "limitation": (
            "Main effects average over the other settings and hide interactions; shares of variance belong to the "
            "levels that were tried."
        ),
        "tables": ["effects"],
    }
    if not rows:
        return Figure(**frame, plot=None, missing="not run: no setting has two levels")
    shown = order[: 2 * MOST_PANELS]
    columns = min(4, len(shown))
    titles = [f"{name}: {percent(settings[name][0]['share_of_variance'], 'undefined')} of variance" for name in shown]
    plot, height = panels(titles, columns, 230)
    for index, name in enumerate(shown):
        levels = sorted(settings[name], key=_level)
        _add_levels(plot, levels, cell(index, columns), index == 0, measure)
        plot.update_xaxes(type="category", range=[-0.4, len(levels) - 0.6], **cell(index, columns))
    styled(plot, height + 20, margin={"l": 64, "r": 24, "t": 84, "b": 50})
    plot.update_layout(legend_y=1 + 34 / (height - 114))
    plot.update_yaxes(range=[0, 103])
    for index in range(0, len(shown), columns):
        plot.update_yaxes(title_text="% of prompts", **cell(index, columns))
    if len(order) > len(shown):
        frame["limitation"] += f" {len(order) - len(shown)} more settings are in the CSV."
    return Figure(**frame, plot=plot)


def _level(row: dict[str, Any]) -> tuple[float, str]:
    """Return what orders levels: as numbers where they are numbers."""
    try:
        return float(str(row["level"]).replace("−", "-")), ""
    except ValueError:
        return float("inf"), str(row["level"])


def _add_levels(
    plot: go.Figure, rows: Sequence[dict[str, Any]], place: dict[str, int], legend: bool, measure: str
) -> None:
    levels = [row["level"] for row in rows]
    for name, key, colour, width in (
        ("utility", "utility_mean", UTILITY_COLOUR, 1.2),
        (measure, "mean", ASR_COLOUR, 2.2),
    ):
        bars = {"error_y": whiskers(rows, "mean", "low", "high") | {"color": colour, "thickness": 1.2, "width": 3}}
        plot.add_trace(
            go.Scatter(
                x=levels,
                y=hundredfold(row[key] for row in rows),
                mode="lines+markers",
                name=name,
                legendgroup=key,
                showlegend=legend,
                line={"color": colour, "width": width},
                marker={"size": 7 if key == "mean" else 5},
                customdata=[row["n"] for row in rows],
                hovertemplate=f"%{{x}}: {name} %{{y:.1f}} %, %{{customdata}} points<extra></extra>",
                **(bars if key == "mean" else {}),
            ),
            **place,
        )
