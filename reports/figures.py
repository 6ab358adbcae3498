"""What all figures share: colours, axes, panels, and the frame around a plot."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from geomsafe.reports.wording import percent

# Okabe & Ito 2008, distinguishable with any colour vision; darkened where text needs it.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#6A51A3", "#7F7F7F")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "pentagon", "hexagon", "cross", "triangle-down")
INK, GRID, GREY = "#1f2430", "#e9ebef", "#d4d7dd"
FONT = "Inter, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"
# A point with more incoherent answers than this is drawn hollow: its low attack success is not safety.
HOLLOW = 0.05
# More panels than this are not read; the rest stays in the CSV.
MOST_PANELS = 6


class Figure(NamedTuple):
    """A plot with what a reader needs: how to read it, its limitation, and the tables behind it."""

    id: str
    title: str
    how: str
    limitation: str
    tables: list[str]
    plot: go.Figure | None
    missing: str = ""
    short: str = ""

    def noted(self, left_out: int) -> Figure:
        """Return the figure with its limitation naming how many arms it leaves out."""
        more = f" {left_out} more arms are in the CSV." if left_out else ""
        return self._replace(limitation=self.limitation + more)


class Look(NamedTuple):
    """How an arm is drawn in every figure."""

    key: str
    label: str
    colour: str
    symbol: str
    repeats: bool
    method: bool

    @property
    def name(self) -> str:
        """Key and label, as in legends."""
        return f"<b>{self.key}</b>  {self.label}"


START_LOOKS = {
    "theta_0": Look("theta_0", "θ₀, the aligned start", INK, "diamond", False, False),
    "theta_base": Look("theta_base", "θ_base, before alignment", "#6b7280", "x", False, False),
}


def looks(analysis: dict[str, Any]) -> dict[str, Look]:
    """Give each arm its colour and symbol, in the order of the table.

    Args:
        analysis: analysis.json.

    Returns:
        Arm key -> look; `method` says that one acts on the weights; `repeats` marks the last
        iterates of shadow runs, whose curves lie under those of the baseline where there is one.
    """
    labels: dict[str, str] = analysis["scope"]["arms"]
    rows = {row["key"]: row for row in analysis["tables"]["arms"]["rows"]}
    return {
        key: Look(
            key,
            label,
            COLOURS[index % len(COLOURS)],
            SYMBOLS[index % len(SYMBOLS)],
            str(rows.get(key, {}).get("basis", "")).startswith("a control itself"),
            not label.startswith(("baseline", "last iterate")),
        )
        for index, (key, label) in enumerate(labels.items())
    }


def styled(plot: go.Figure, height: int, **layout: Any) -> go.Figure:
    """Give a plot the report's fonts, margins and axes.

    Args:
        plot: the plot.
        height: in pixels.
        layout: more of plotly's layout.

    Returns:
        The same plot.
    """
    plot.update_layout(
        template="none",
        height=height,
        font={"family": FONT, "size": 13, "color": INK},
        margin={"l": 64, "r": 24, "t": 36, "b": 56},
        paper_bgcolor="white",
        plot_bgcolor="white",
        hoverlabel={"font": {"family": FONT, "size": 12}, "bgcolor": "white"},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.06, "xanchor": "left", "x": 0, "font": {"size": 12}},
    )
    plot.update_layout(**layout)
    axis = {
        "gridcolor": GRID, "zeroline": False, "linecolor": "#9aa1ad", "ticks": "outside", "ticklen": 4,
        "tickcolor": "#9aa1ad", "title_standoff": 8, "title_font_size": 12, "tickfont_size": 11,
    }  # fmt: skip
    plot.update_xaxes(**axis)
    plot.update_yaxes(**axis)
    plot.update_annotations(font_size=12)
    return plot


def panels(titles: Sequence[str], columns: int, height: int, *, shared: bool = True) -> tuple[go.Figure, int]:
    """Make small multiples.

    Args:
        titles: one a panel.
        columns: panels in a row.
        height: of one row in pixels.
        shared: all panels have one y axis.

    Returns:
        The plot and its full height.
    """
    columns = min(columns, len(titles))
    rows = math.ceil(len(titles) / columns)
    plot = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=list(titles),
        shared_yaxes="all" if shared else False,
        horizontal_spacing=0.045 if shared else 0.09,
        vertical_spacing=min(0.16, 90 / max(1, rows * height)),
    )
    return plot, rows * height + 90


def colorbar(title: str, **more: Any) -> dict[str, Any]:
    """Return the settings of a colour scale's bar."""
    return {
        "title": {"text": title, "side": "right", "font": {"size": 12}},
        "tickfont": {"size": 11},
        "thickness": 12,
        "outlinewidth": 0,
        **more,
    }


def cell(index: int, columns: int) -> dict[str, int]:
    """Return plotly's row and column of the panel with this number."""
    return {"row": index // columns + 1, "col": index % columns + 1}


def by_run(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return rows by (arm key, run), in the order of the table."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["key"] is not None:
            groups.setdefault((row["key"], row["run"]), []).append(row)
    return groups


def hundredfold(values: Iterable[float | None]) -> list[float | None]:
    """Return shares in per cent; None stays None."""
    return [None if value is None else 100 * value for value in values]


def shown_rate(row: dict[str, Any], key: str) -> str:
    """Return "21.3 % [18.0, 25.1]" for hover texts."""
    if row[key] is None:
        return "not run"
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    return percent(row[key]) + (f" [{100 * low:.1f}, {100 * high:.1f}]" if low is not None and high is not None else "")


def whiskers(
    rows: Sequence[dict[str, Any]], key: str, low: str | None = None, high: str | None = None
) -> dict[str, Any]:
    """Give a share or a difference of shares the error bars of its interval.

    Args:
        rows: of a table.
        key: column of the value.
        low: column of the lower bound; key_low where not named.
        high: column of the upper bound; key_high where not named.

    Returns:
        plotly's error bars in per cent, of no length where there is no interval.
    """
    bounds = (low or f"{key}_low", high or f"{key}_high")

    def reach(row: dict[str, Any], sign: int, bound: str) -> float:
        return 0.0 if row[key] is None or row[bound] is None else max(0.0, 100 * sign * (row[bound] - row[key]))

    return {
        "type": "data",
        "symmetric": False,
        "array": [reach(row, 1, bounds[1]) for row in rows],
        "arrayminus": [reach(row, -1, bounds[0]) for row in rows],
    }
