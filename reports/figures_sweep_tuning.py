"""What a user gets who tunes each family with equally many trials and chooses by validation utility."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from geomsafe.reports.figures import Figure, hundredfold, styled
from geomsafe.reports.figures_sweep import (
    SweepLook,
    of_condition,
    panelled_conditions,
    primary_of,
    shortened,
    side_legend,
    sweep_looks,
)

MOST_COLUMNS = 3


def tuning_figure(analysis: dict[str, Any]) -> Figure:
    """Return the plot of expected attack success and utility of the chosen trial over the number of trials."""
    _, measure = primary_of(analysis)
    names, left_out = panelled_conditions(analysis, MOST_COLUMNS)
    rows = [row for row in analysis["tables"]["tuning"]["rows"] if row["asr"] is not None]
    frame: dict[str, Any] = {
        "id": "tuning",
        "short": "tuning budgets",
        "title": "Equal tuning budgets",
        "how": (
            "One line a family. At n trials, drawn without replacement from all that were run, the one with the best "
            "validation utility is kept; attack success plays no part in the choice. Upper panels: its expected "
            f"{measure} (lower = safer), the band from least to largest seed. Lower panels: its expected utility. "
            "Compare families at equal n only."
        ),
        "limitation": f"Exact over the trials that were run; other ranges of settings give other lines.{left_out}",
        "tables": ["tuning"],
    }
    if not rows:
        return Figure(**frame, plot=None, missing="not run: no family has trials with validation utility")
    plot = make_subplots(
        rows=2,
        cols=len(names),
        column_titles=[shortened(name, 60) for name in names],
        shared_yaxes=True,
        shared_xaxes=True,
        row_heights=[1.6, 1],
        horizontal_spacing=0.03,
        vertical_spacing=0.06,
    )
    # One look a family: that of its first arm.
    families: dict[str, SweepLook] = {}
    for look in sweep_looks(analysis).values():
        families.setdefault(look.family, look)
    named: set[str] = set()
    for column, condition in enumerate(names, 1):
        for family, look in families.items():
            mine = sorted(
                (row for row in of_condition(rows, condition) if row["family"] == family), key=lambda row: row["budget"]
            )
            if mine:
                _add_family(plot, mine, look, column, family not in named)
                named.add(family)
    styled(plot, 560, legend=side_legend(), margin={"l": 64, "r": 210, "t": 40, "b": 56}, hovermode="closest")
    # Trials are whole.
    most = max(row["budget"] for row in rows)
    plot.update_xaxes(dtick=max(1, round(most / 8)))
    plot.update_xaxes(title_text="trials n", row=2)
    plot.update_yaxes(title_text=f"expected {measure} (%)", row=1, col=1)
    plot.update_yaxes(title_text="expected utility (%)", row=2, col=1)
    return Figure(**frame, plot=plot)


def _add_family(plot: go.Figure, rows: Sequence[dict[str, Any]], look: SweepLook, column: int, legend: bool) -> None:
    budgets = [row["budget"] for row in rows]
    common = {"legendgroup": look.family, "x": budgets, "mode": "lines+markers"}
    if all(row["asr_low"] is not None and row["asr_high"] is not None for row in rows):
        plot.add_trace(
            go.Scatter(
                x=budgets + budgets[::-1],
                y=hundredfold([row["asr_low"] for row in rows] + [row["asr_high"] for row in reversed(rows)]),
                mode="lines",
                line={"width": 0},
                fill="toself",
                fillcolor=look.colour,
                opacity=0.12,
                legendgroup=look.family,
                showlegend=False,
                hoverinfo="skip",
            ),
            row=1,
            col=column,
        )
    plot.add_trace(
        go.Scatter(
            **common,
            y=hundredfold(row["asr"] for row in rows),
            name=shortened(look.family),
            showlegend=legend,
            line={"color": look.colour, "width": 2.2},
            marker={"size": 6},
            customdata=[
                f"<br>chosen of all: {row['chosen']}" if row["budget"] == row["trials"] else "" for row in rows
            ],
            hovertemplate=f"<b>{look.family}</b>, %{{x}} trials: %{{y:.1f}} %%{{customdata}}<extra></extra>",
        ),
        row=1,
        col=column,
    )
    plot.add_trace(
        go.Scatter(
            **common,
            y=hundredfold(row["utility"] for row in rows),
            showlegend=False,
            opacity=0.6,
            line={"color": look.colour, "width": 1.4},
            marker={"size": 4},
            hovertemplate=f"<b>{look.family}</b>, %{{x}} trials: utility %{{y:.1f}} %<extra></extra>",
        ),
        row=2,
        col=column,
    )
