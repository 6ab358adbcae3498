"""Grids of cells: layers over steps, or modules over gradients, one panel an arm. Undefined cells stay blank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go

from geomsafe.reports.figures import INK, MOST_PANELS, Look, cell, looks

Rows = list[dict[str, Any]]

# (row of the grid, column of the grid) -> the table's rows behind the cell.
Cells = dict[tuple[str, str], Rows]


def panelled(analysis: dict[str, Any], rows: Sequence[dict[str, Any]]) -> tuple[list[Look], int]:
    """Choose the arms that get a panel.

    Args:
        analysis: analysis.json.
        rows: what is to be drawn.

    Returns:
        The arms, without last iterates that repeat a baseline, and how many more there are.
    """
    present = {row["key"] for row in rows}
    arms = [look for look in looks(analysis).values() if look.key in present]
    # The last iterates of shadow runs repeat a baseline where there is one.
    distinct = [look for look in arms if not look.repeats] or arms
    return distinct[:MOST_PANELS], max(0, len(distinct) - MOST_PANELS)


def columns_of(panels: Sequence[object]) -> int:
    """Return how many panels stand in a row."""
    return 4 if len(panels) == 4 else min(3, len(panels))


def noted(frame: dict[str, Any], left_out: int) -> dict[str, Any]:
    """Say in a figure's limitation how many arms it leaves out."""  # noqa: DOC201
    if not left_out:
        return frame
    return frame | {"limitation": f"{frame['limitation']} {left_out} more arms are in the CSV."}


def add_heatmaps(
    plot: go.Figure,
    rows: Sequence[dict[str, Any]],
    arms: Sequence[Look],
    value: Callable[[Rows], float | None],
    hover: Callable[[Rows], str],
    mark: Callable[[Rows], str],
) -> list[float]:
    """Draw layers over optimizer steps, one panel an arm.

    Args:
        plot: with a panel for each arm.
        rows: with columns key, layer and step; layer "all" is left out.
        arms: one a panel.
        value: of a cell; None where it is undefined.
        hover: its text.
        mark: what is written into it.

    Returns:
        The values drawn, without the undefined.
    """
    columns = columns_of(arms)
    values: list[float] = []
    for index, look in enumerate(arms):
        cells: Cells = {}
        layers: dict[str, None] = {}
        steps: set[int] = set()
        for row in rows:
            if row["key"] == look.key and row["layer"] != "all":
                label = f"layer {row['layer']}" if row["layer"].isdigit() else row["layer"]
                layers.setdefault(label)
                steps.add(row["step"])
                cells.setdefault((label, str(row["step"])), []).append(row)
        across = [str(step) for step in sorted(steps)]
        values += add_grid(plot, (index, columns), across, list(layers), cells, value, hover, mark, "step ")
    plot.update_xaxes(title_text="optimizer step")
    plot.update_yaxes(ticks="")
    return values


def add_grid(
    plot: go.Figure,
    panel: tuple[int, int],
    across: Sequence[str],
    upwards: Sequence[str],
    cells: Cells,
    value: Callable[[Rows], float | None],
    hover: Callable[[Rows], str],
    mark: Callable[[Rows], str],
    unit: str = "",
    coloraxis: str = "coloraxis",
) -> list[float]:
    """Draw one grid.

    Args:
        plot: the plot.
        panel: number of the panel, and panels in a row.
        across: labels of the columns.
        upwards: labels of the rows, the lowest first.
        cells: rows of the table by (row, column) of the grid.
        value: of a cell; None where it is undefined.
        hover: its text.
        mark: what is written into it.
        unit: what stands before a column's label in the hover text.
        coloraxis: name of the colour scale in plotly's layout.

    Returns:
        The values drawn, without the undefined.
    """
    found = [[cells.get((row, column), []) for column in across] for row in upwards]
    z = [[value(one) if one else None for one in line] for line in found]
    texts = [
        [f"{row}, {unit}{column}<br>{hover(one)}" if one else "" for column, one in zip(across, line, strict=True)]
        for row, line in zip(upwards, found, strict=True)
    ]
    plot.add_trace(
        go.Heatmap(
            z=z,
            text=[[mark(one) if one else "" for one in line] for line in found],
            texttemplate="%{text}",
            textfont={"size": 13, "color": INK},
            customdata=texts,
            hovertemplate="%{customdata}<extra></extra>",
            coloraxis=coloraxis,
            xgap=1,
            ygap=1,
            hoverongaps=True,
        ),
        **cell(*panel),
    )
    # Numbered axes with labels: where all cells are undefined, plotly would forget a category and draw no axis.
    plot.update_xaxes(
        tickvals=list(range(len(across))), ticktext=list(across), range=[-0.5, len(across) - 0.5], **cell(*panel)
    )
    plot.update_yaxes(
        tickvals=list(range(len(upwards))), ticktext=list(upwards), range=[-0.5, len(upwards) - 0.5], **cell(*panel)
    )
    return [one for line in z for one in line if one is not None]
