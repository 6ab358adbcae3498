"""Attack success, utility and the sham twin against drift: the runs' checkpoints by arm, with a choice of axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from geomsafe.reports.columns import COLUMNS
from geomsafe.reports.figures import HOLLOW, Figure, styled
from geomsafe.reports.figures_sweep import (
    SweepLook,
    first_arms,
    of_condition,
    panelled_conditions,
    primary_of,
    shortened,
    side_legend,
    sweep_looks,
    switch,
)

Row = dict[str, Any]


class Axis(NamedTuple):
    """A choice of the horizontal axis; utility loss falls in training, so it runs from right to left."""

    key: str
    label: str
    title: str
    scale: float = 1.0
    reverse: bool = False


AXES = (
    Axis("relative_distance", "L2 distance", "relative distance from θ₀ (%)", 100.0),
    Axis("kl_task", "KL on the task", "KL(θ₀ ‖ θ) on task prompts (nats)"),
    Axis("kl_harmful", "KL on harmful prompts", "KL(θ₀ ‖ θ) on harmful prompts (nats)"),
    Axis("utility_loss", "utility loss", "utility loss (nats per token), falling →", 1.0, True),
)
BELOW = ("utility", "sham_loss")
MOST_COLUMNS = 3


def curves_figure(analysis: dict[str, Any]) -> Figure:
    """Return the plot of every checkpoint's rates against drift, one column of panels a condition."""
    key, measure = primary_of(analysis)
    names, left_out = panelled_conditions(analysis, MOST_COLUMNS)
    frame: dict[str, Any] = {
        "id": "sweep-curves",
        "short": "curves",
        "title": f"{measure[0].upper()}{measure[1:]} as the model drifts from θ₀",
        "how": (
            "Buttons choose what drift is. Strong lines are means over seeds of one arm's checkpoints, thin lines the "
            "seeds, large marks the end; all begin at θ₀. A dotted line joins an arm's end to that of its matched "
            "control. An arm that only trains less runs along its control's line; one that adds safety lies below it "
            "at equal drift. Below: utility, and the harmless twin of the refusals, which a method that is about "
            f"safety should not move. Hollow = more than {100 * HOLLOW:.0f} % incoherent. At first the reference and "
            "each family's choice by validation utility are shown; click other names."
        ),
        "limitation": (
            f"No measure of drift is the right one: a difference that holds on one axis only is none.{left_out}"
        ),
        "tables": ["curves", "sweep"],
    }
    rows = analysis["tables"]["curves"]["rows"]
    axes = [axis for axis in AXES if any(row[axis.key] is not None for row in rows)]
    measures = [one for one in (key, *BELOW) if any(row[one] is not None for row in rows)]
    if not axes or key not in measures:
        return Figure(**frame, plot=None, missing="not run: no checkpoint has both attack success and drift")
    plot = make_subplots(
        rows=len(measures),
        cols=len(names),
        column_titles=[shortened(name, 60) for name in names],
        shared_yaxes=True,
        shared_xaxes=True,
        horizontal_spacing=0.03,
        vertical_spacing=0.05,
        row_heights=[1.5, *[1.0] * (len(measures) - 1)],
    )
    drawn: list[Sequence[Row | None]] = []
    named: set[str] = set()
    for column, condition in enumerate(names, 1):
        points = of_condition(analysis["tables"]["sweep"]["rows"], condition)
        groups = _by_arm(of_condition(rows, condition), points)
        for row, one in enumerate(measures, 1):
            place = {"row": row, "col": column}
            drawn += _add_panel(plot, analysis, groups, one, place, condition, named)
    height = 130 + 330 + 210 * (len(measures) - 1)
    styled(plot, height, legend=side_legend(), margin={"l": 64, "r": 210, "t": 86, "b": 56}, hovermode="closest")
    first = next((index for index, axis in enumerate(axes) if axis.key == "kl_task"), 0)
    plot.update_layout(
        updatemenus=switch(
            [_button(axis, drawn, len(measures), len(names)) for axis in axes], 34 / (height - 142), first
        )
    )
    for trace, behind in zip(plot.data, drawn, strict=True):
        trace.x = _positions(behind, axes[first])
    plot.update_xaxes(title_text=axes[first].title, row=len(measures))
    plot.update_xaxes(autorange="reversed" if axes[first].reverse else True)
    for row, one in enumerate(measures, 1):
        plot.update_yaxes(title_text=f"{COLUMNS[one].title} (%)", row=row, col=1)
    return Figure(**frame, plot=plot)


def _by_arm(rows: Sequence[Row], points: Sequence[Row]) -> dict[str, list[list[Row]]]:
    """Return the curves of each arm, one a seed, each from theta_0 on; other arms are one point, the mean of seeds."""
    runs: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        runs.setdefault((row["arm"], row["run"]), []).append(row)
    curves: dict[str, list[list[Row]]] = {}
    for (arm, _), found in runs.items():
        ordered = sorted(found, key=lambda row: (row["step"] or 0, row["weights"] == "final"))
        curves.setdefault(arm, []).append(ordered)
    return {row["arm"]: [[{**row, "step": None}]] for row in points if row["arm"] not in curves} | curves


def mean_curve(curves: Sequence[Sequence[Row]]) -> list[Row]:
    """Return the mean over seeds of each weight set that all seeds have.

    Args:
        curves: (seeds,) rows of the table of curves.

    Returns:
        One row a weight set; a column is None where a seed lacks it.
    """
    keys = [axis.key for axis in AXES] + ["gold_asr", "keyword_asr", "utility", "sham_loss", "incoherence"]
    shared = [
        row["weights"] for row in curves[0] if all(any(row["weights"] == o["weights"] for o in c) for c in curves)
    ]
    means: list[Row] = []
    for weights in shared:
        same = [next(row for row in curve if row["weights"] == weights) for curve in curves]
        mean: Row = {"weights": weights, "step": same[0]["step"]}
        for key in keys:
            values = [row[key] for row in same]
            mean[key] = None if None in values else sum(values) / len(values)
        means.append(mean)
    return means


def _add_panel(
    plot: go.Figure,
    analysis: dict[str, Any],
    groups: dict[str, list[list[Row]]],
    measure: str,
    place: dict[str, int],
    condition: str,
    named: set[str],
) -> list[Sequence[Row | None]]:
    """Return the rows behind each trace that was drawn, in order, for the switch of axes."""
    drawn: list[Sequence[Row | None]] = []
    visible = first_arms(analysis)
    controls = {row["arm"]: row["control"] for row in of_condition(analysis["tables"]["sweep"]["rows"], condition)}
    means = {arm: mean_curve(curves) for arm, curves in groups.items()}
    for arm, look in sweep_looks(analysis).items():
        if arm not in groups:
            continue
        shown: bool | str = True if arm in visible else "legendonly"
        # None between two seeds lifts the pen.
        seeds = [row for curve in groups[arm] for row in (*curve, None)]
        link = [mean[-1] for mean in (means[arm], means.get(controls.get(arm) or "", [])) if mean]
        traces: list[tuple[Sequence[Row | None], dict[str, Any]]] = [
            (seeds, _thin(look)),
            (means[arm], _strong(look, means[arm], arm not in named)),
        ]
        named.add(arm)
        if len(link) == 2:
            traces.append((link, {"mode": "lines", "line": {"color": look.colour, "width": 1.6, "dash": "dot"}}))
        for rows, style in traces:
            plot.add_trace(
                go.Scatter(
                    y=[None if row is None or row[measure] is None else 100 * row[measure] for row in rows],
                    legendgroup=arm,
                    visible=shown,
                    # A legend of many arms scrolls: those that are drawn stand first.
                    legendrank=1 + visible.index(arm) if arm in visible else 1000,
                    **({"showlegend": False, "hoverinfo": "skip"} | style),
                ),
                **place,
            )
            drawn.append(rows)
    return drawn


def _thin(look: SweepLook) -> dict[str, Any]:
    return {"mode": "lines", "opacity": 0.3, "line": {"color": look.colour, "width": 1}}


def _strong(look: SweepLook, mean: Sequence[Row], legend: bool) -> dict[str, Any]:
    last = len(mean) - 1
    return {
        "mode": "lines+markers",
        "name": look.name,
        "showlegend": legend,
        "line": {"color": look.colour, "width": 2.2, "dash": look.dash},
        "marker": {
            "symbol": look.symbol,
            "opacity": 1,
            "size": [11 if index == last else 4 for index in range(len(mean))],
            "color": ["white" if (row["incoherence"] or 0) > HOLLOW else look.colour for row in mean],
            "line": {"color": look.colour, "width": [2 if index == last else 1 for index in range(len(mean))]},
        },
        "customdata": [row["weights"] for row in mean],
        "hoverinfo": None,
        "hovertemplate": f"<b>{look.arm}</b> %{{customdata}}<br>%{{x:.3g}}: %{{y:.1f}} %<extra></extra>",
    }


def _positions(rows: Sequence[Row | None], axis: Axis) -> list[float | None]:
    return [None if row is None or row[axis.key] is None else axis.scale * row[axis.key] for row in rows]


def _button(axis: Axis, drawn: Sequence[Sequence[Row | None]], rows: int, columns: int) -> dict[str, Any]:
    """Return the button that moves every trace to this axis."""
    layout: dict[str, Any] = {}
    for number in range(1, rows * columns + 1):
        name = "xaxis" if number == 1 else f"xaxis{number}"
        layout[f"{name}.autorange"] = "reversed" if axis.reverse else True
        if number > (rows - 1) * columns:
            layout[f"{name}.title.text"] = axis.title
    return {"label": axis.label, "method": "update", "args": [{"x": [_positions(one, axis) for one in drawn]}, layout]}
