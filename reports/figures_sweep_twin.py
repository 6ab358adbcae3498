"""Each arm's difference of attack success beside that of the harmless twin of the refusals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from geomsafe.reports.figures import Figure, cell, hundredfold, panels, styled, whiskers
from geomsafe.reports.figures_sweep import (
    of_condition,
    panelled_conditions,
    primary_of,
    shortened,
)
from geomsafe.reports.forests import LONGEST_LABEL, MOST_ROWS, add_equivalence, fit, number_rows
from geomsafe.reports.wording import points, points_interval

TWINS = (("difference", "#D55E00", "circle"), ("sham_difference", "#009E73", "diamond"))


def sham_figure(analysis: dict[str, Any]) -> Figure:
    """Return the plot of each arm's difference to its control beside that of the harmless twin."""
    key, measure = primary_of(analysis)
    names, left_out = panelled_conditions(analysis)
    rows = [row for row in analysis["tables"]["sweep"]["rows"] if row["difference"] is not None]
    frame: dict[str, Any] = {
        "id": "sham-twin",
        "short": "harmless twin",
        "title": "Safety beside its harmless twin",
        "how": (
            f"One row an arm: its difference to its matched control in {measure} (orange circle) and in sham loss "
            "(green diamond), in points with 95 % intervals. The sham behaviour was learnt like the refusals and has "
            "nothing to do with harm: an arm whose two marks move together keeps what was learnt, not safety as such."
        ),
        "limitation": f"Sham and refusals are learnt equally well in the model organism only.{left_out}",
        "tables": ["sweep"],
    }
    if not rows or all(row["sham_difference"] is None for row in rows):
        return Figure(**frame, plot=None, missing="not run: no arm and control were both scored on the sham suite")
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    if len(arms) > MOST_ROWS:
        frame["limitation"] += f" {len(arms) - MOST_ROWS} more arms are in the CSV."
    arms = arms[:MOST_ROWS]
    columns = min(len(names), 3)
    plot, height = panels([shortened(name, 60) for name in names], columns, 40 + 26 * len(arms))
    for index, condition in enumerate(names):
        mine = [row for row in of_condition(rows, condition) if row["arm"] in arms]
        place = cell(index, columns)
        _add_twins(plot, mine, arms, measure, place, legend=index == 0)
        add_equivalence(plot, **place)
    controls = {row["arm"]: row["control"] for row in reversed(rows)}
    styled(plot, height, margin={"r": 24, "t": 84, "b": 56})
    number_rows(plot, [(arm, shortened(controls[arm] or "", LONGEST_LABEL)) for arm in arms])
    plot.update_layout(legend_y=1 + 34 / (height - 140))
    plot.update_xaxes(title_text="difference in points")
    fit(plot, rows, ("difference_low", "difference_high", "sham_low", "sham_high"))
    return Figure(**frame, plot=plot)


def _add_twins(
    plot: go.Figure,
    rows: Sequence[dict[str, Any]],
    arms: Sequence[str],
    measure: str,
    place: dict[str, int],
    *,
    legend: bool,
) -> None:
    for (key, colour, symbol), name, nudge in zip(TWINS, (measure, "sham loss"), (-0.14, 0.14), strict=True):
        stem = key if key == "difference" else key.removesuffix("_difference")
        found = [row for row in rows if row[key] is not None]
        plot.add_trace(
            go.Scatter(
                x=hundredfold(row[key] for row in found),
                y=[arms.index(row["arm"]) + nudge for row in found],
                error_x=whiskers(found, key, f"{stem}_low", f"{stem}_high")
                | {"color": colour, "thickness": 1.2, "width": 0},
                mode="markers",
                marker={"size": 9, "symbol": symbol, "color": colour},
                name=name,
                legendgroup=key,
                showlegend=legend,
                customdata=[
                    f"{row['arm']} − {row['control']}<br>{name} {points(row[key])} "
                    f"{points_interval(row[f'{stem}_low'], row[f'{stem}_high'])}"
                    for row in found
                ],
                hovertemplate="%{customdata}<extra></extra>",
            ),
            **place,
        )
