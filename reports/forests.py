"""Rows of differences around zero: labels, the band of equivalence, one range for all panels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from geomsafe.analyses.verdict import EQUIVALENCE
from geomsafe.reports.figures_sweep import shortened

# More rows are not read; the rest stays in the CSV.
MOST_ROWS = 60
LONGEST_LABEL = 32


def add_equivalence(plot: go.Figure, **place: int) -> None:
    """Shade the band of differences that count as equivalent."""
    band = {"fillcolor": "#e8f1fa", "line_width": 0, "layer": "below"}
    plot.add_vrect(x0=-100 * EQUIVALENCE, x1=100 * EQUIVALENCE, **band, **place)


def number_rows(plot: go.Figure, names: Sequence[tuple[str, str]]) -> None:
    """Give rows numbered axes with labels, the first on top: rows that are empty at first keep their place."""
    longest = max(len(shortened(arm, LONGEST_LABEL)) + len(other) for arm, other in names)
    plot.update_layout(margin_l=40 + 7 * (longest + 3))
    plot.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=[f"<b>{shortened(arm, LONGEST_LABEL)}</b> − {other}" for arm, other in names],
        range=[len(names) - 0.4, -0.6],
        ticks="",
    )


def fit(plot: go.Figure, rows: Sequence[dict[str, Any]], bounds: Sequence[str]) -> None:
    """Give all panels one range around zero."""
    reach = max((abs(row[bound]) for row in rows for bound in bounds if row[bound] is not None), default=0.0)
    furthest = max(10.0, 105 * reach)
    plot.update_xaxes(range=[-furthest, furthest], zeroline=True, zerolinewidth=1, zerolinecolor="#6b7280")
