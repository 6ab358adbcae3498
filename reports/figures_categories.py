"""Rates by category: one figure a suite, one group of bars a category, arms as series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from geomsafe.analyses.categories import SMALL
from geomsafe.reports.columns import COLUMNS
from geomsafe.reports.figures import (
    INK,
    MOST_PANELS,
    START_LOOKS,
    Figure,
    Look,
    hundredfold,
    looks,
    shown_rate,
    styled,
    whiskers,
)
from geomsafe.reports.visible import inert, visible

PREFIX = "categories-"
LONGEST_LABEL = 36
# More categories than this are not read; the rest stays in the CSV.
MOST_CATEGORIES = 24

Rows = Sequence[dict[str, Any]]


def category_figures(analysis: dict[str, Any]) -> list[Figure]:
    """Return one figure for each suite whose prompts carry at least two categories.

    Args:
        analysis: analysis.json.

    Returns:
        The figures, in the order of the table; none where no prompts carry any.
    """
    rows = analysis["tables"]["categories"]["rows"]
    suites = dict.fromkeys(row["suite"] for row in rows)
    return [_figure(analysis, suite, [row for row in rows if row["suite"] == suite]) for suite in suites]


def _figure(analysis: dict[str, Any], suite: str, rows: Rows) -> Figure:
    known = START_LOOKS | looks(analysis)
    keys = [key for key in known if any(row["key"] == key for row in rows)]
    keys = [key for key in keys if not known[key].repeats] or keys
    drawn = [known[key] for key in keys[: MOST_PANELS + 1]]
    sizes: dict[str, int] = {}
    for row in rows:
        sizes[row["category"]] = max(row["n"], sizes.get(row["category"], 0))
    largest = sorted(sizes, key=lambda category: -sizes[category])[:MOST_CATEGORIES]
    categories = [category for category in sizes if category in largest]
    small = {row["category"] for row in rows if row["small"]}
    measure, first = COLUMNS[rows[0]["measure"]], rows[0]
    left_out = [
        f"{count} more {what} in the CSV."
        for count, what in ((len(keys) - len(drawn), "arms are"), (len(sizes) - len(categories), "categories are"))
        if count > 0
    ]
    plot = go.Figure([_bars(rows, look, categories, small) for look in drawn])
    names = [_label(category, small) for category in categories]
    height = 130 + len(categories) * (18 + 13 * len(drawn))
    margin = {"l": 50 + 7 * max(map(len, names)), "r": 24, "t": 74, "b": 50}
    styled(plot, height, barmode="group", bargap=0.28, bargroupgap=0.08, margin=margin)
    plot.update_layout(legend_y=1 + 14 / (height - 124), legend_traceorder="normal")
    plot.update_xaxes(range=[0, 103], title_text=f"{measure.title} (% of the category's prompts)")
    plot.update_yaxes(
        tickvals=list(range(len(names))), ticktext=names, range=[len(names) - 0.5, -0.5], ticks="", showgrid=False
    )
    return Figure(
        id=f"{PREFIX}{suite}",
        title=f"{measure.title[0].upper()}{measure.title[1:]} by category: {visible(suite)}",
        how=(
            f"One group of bars a value of the prompts' tag “{first['tag']}”, one bar an arm, seeds pooled, with 95 % "
            f"intervals by cluster of prompts; verdicts by {first['judge']}. † = fewer than {SMALL} clusters, paler: "
            "too few to say more than that it was looked at."
        ),
        limitation=" ".join([
            "Nothing is compared or adjusted here: the largest of many categories is a description and no finding.",
            *left_out,
        ]),
        tables=["categories"],
        plot=plot,
    )


def _label(category: str, small: set[str]) -> str:
    return inert(category, LONGEST_LABEL) + (" †" if category in small else "")


def _bars(rows: Rows, look: Look, categories: Sequence[str], small: set[str]) -> go.Bar:
    found = {row["category"]: row for row in rows if row["key"] == look.key}
    mine = [found[category] for category in categories if category in found]
    return go.Bar(
        x=hundredfold(row["rate"] for row in mine),
        y=[categories.index(row["category"]) for row in mine],
        orientation="h",
        name=look.label if look.key in START_LOOKS else look.name,
        marker={"color": look.colour, "opacity": [0.35 if row["category"] in small else 0.8 for row in mine]},
        error_x=whiskers(mine, "rate", "low", "high") | {"color": INK, "thickness": 1, "width": 2},
        customdata=[
            [
                inert(row["category"], 80),
                shown_rate(row | {"rate_low": row["low"], "rate_high": row["high"]}, "rate"),
                row["n"],
                row["clusters"],
            ]
            for row in mine
        ],
        hovertemplate=(
            f"{look.name}<br>%{{customdata[0]}}: %{{customdata[1]}}<br>%{{customdata[2]}} answers, "
            "%{customdata[3]} clusters<extra></extra>"
        ),
    )
