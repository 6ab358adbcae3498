"""Arms beside their comparators at equal drift: a forest plot, words where nothing can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from geomsafe.reports.figures import INK, Figure, cell, hundredfold, panels, styled, whiskers
from geomsafe.reports.figures_sweep import (
    SweepLook,
    condition_switch,
    of_condition,
    panelled_conditions,
    primary_of,
    shortened,
    sweep_looks,
)
from geomsafe.reports.forests import LONGEST_LABEL, MOST_ROWS, add_equivalence, fit, number_rows
from geomsafe.reports.wording import plural, points, points_interval

AXES = {"l2": "at equal L2 distance", "kl": "at equal KL on the task", "utility_loss": "at equal utility loss"}

Pair = tuple[str, str]


def matched_figure(analysis: dict[str, Any]) -> Figure:
    """Return the forest plot of arms minus comparators at equal drift, one panel an axis."""
    _, measure = primary_of(analysis)
    names, left_out = panelled_conditions(analysis)
    rows = [row for row in analysis["tables"]["matched"]["rows"] if (row["condition"] or "") in names]
    frame: dict[str, Any] = {
        "id": "matched",
        "short": "equal drift",
        "title": "Arms beside their comparators at equal drift",
        "how": (
            f"One row an arm and comparator: difference of {measure} in points with its 95 % interval, the comparator "
            "read off its own checkpoints at the arm's place on the panel's axis. Left of zero = the arm is safer "
            "than the comparator at equal drift; inside the band of ±5 points = equivalent. Filled = the other axes "
            "match as well; hollow = this axis only. Buttons choose the condition."
        ),
        "limitation": (
            "Rates between two checkpoints are interpolated; where the comparator never went as far, nothing is "
            f"extrapolated: not comparable. Hover for the reason.{left_out}"
        ),
        "tables": ["matched"],
    }
    pairs, without_line = _pairs(rows)
    if without_line:
        frame["limitation"] += f" {plural(without_line, 'arm')} without a radial control: see the CSV."
    if not pairs:
        return Figure(**frame, plot=None, missing="not run: no arm has a comparator")
    if len(pairs) > MOST_ROWS:
        frame["limitation"] += f" {len(pairs) - MOST_ROWS} more rows are in the CSV."
    pairs = pairs[:MOST_ROWS]
    looks = sweep_looks(analysis)
    plot, height = panels(list(AXES.values()), 3, 40 + 24 * len(pairs))
    belongs: list[str] = []
    for index, axis in enumerate(AXES):
        place = cell(index, 3)
        for condition in names:
            mine = [
                row
                for row in of_condition(rows, condition)
                if row["axis"] == axis and (row["arm"], row["comparator"]) in pairs
            ]
            _add_forest(plot, mine, pairs, looks, place, visible=condition == names[0])
            belongs += [condition] * 2
        add_equivalence(plot, **place)
    styled(plot, height, showlegend=False, margin={"r": 24, "t": 84, "b": 56})
    number_rows(plot, [(arm, _comparator(other)) for arm, other in pairs])
    # Words are not struck through.
    plot.update_yaxes(showgrid=False)
    plot.update_layout(updatemenus=condition_switch(names, belongs, 40 / (height - 140)))
    plot.update_xaxes(title_text="difference in points, ← safer")
    fit(plot, rows, ("difference_low", "difference_high"))
    return Figure(**frame, plot=plot)


def _pairs(rows: Sequence[dict[str, Any]]) -> tuple[list[Pair], int]:
    """Return the rows of the forest, and how many have no radial control under any condition and are not drawn."""
    found = dict.fromkeys((row["arm"], row["comparator"]) for row in rows)
    compared = {(row["arm"], row["comparator"]) for row in rows if row["difference"] is not None}
    kept = [pair for pair in found if pair[1] != "radial" or pair in compared]
    return kept, len(found) - len(kept)


def _comparator(name: str) -> str:
    return "own radial control" if name == "radial" else shortened(name, LONGEST_LABEL)


def _add_forest(
    plot: go.Figure,
    rows: Sequence[dict[str, Any]],
    pairs: Sequence[Pair],
    looks: dict[str, SweepLook],
    place: dict[str, int],
    *,
    visible: bool,
) -> None:
    """Draw numbers as marks and what is not comparable as words: two traces."""
    found = [row for row in rows if row["difference"] is not None]
    words = [row for row in rows if row["difference"] is None]
    colours = [looks[row["arm"]].colour if row["arm"] in looks else INK for row in found]
    plot.add_trace(
        go.Scatter(
            x=hundredfold(row["difference"] for row in found),
            y=[pairs.index((row["arm"], row["comparator"])) for row in found],
            error_x=whiskers(found, "difference", "difference_low", "difference_high")
            | {"color": INK, "thickness": 1.2, "width": 3},
            mode="markers",
            marker={
                "size": 10,
                "color": [
                    colour if row["all_matched"] else "white" for row, colour in zip(found, colours, strict=True)
                ],
                "line": {"color": colours, "width": 2},
            },
            customdata=[
                f"{row['arm']} − {row['comparator']}<br>{points(row['difference'])} "
                f"{points_interval(row['difference_low'], row['difference_high'])}, {row['seeds']} seeds"
                for row in found
            ],
            hovertemplate="%{customdata}<extra></extra>",
            visible=visible,
        ),
        **place,
    )
    plot.add_trace(
        go.Scatter(
            x=[0] * len(words),
            y=[pairs.index((row["arm"], row["comparator"])) for row in words],
            mode="text",
            text=[_short_reason(row["reason"]) for row in words],
            textfont={"size": 11, "color": "#6b7280"},
            customdata=[f"{row['arm']} − {row['comparator']}<br>{row['reason'] or 'not run'}" for row in words],
            hovertemplate="%{customdata}<extra></extra>",
            visible=visible,
        ),
        **place,
    )


def _short_reason(reason: str | None) -> str:
    return reason if reason and len(reason) <= 40 else "not comparable" if reason else "not run"
