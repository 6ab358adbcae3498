"""The figure of shallow alignment: divergence by answer position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from geomsafe.reports.figures import INK, Figure, cell, looks, panels, styled
from geomsafe.reports.wording import percent

BASE = "theta_base"


def shallow_figure(analysis: dict[str, Any]) -> Figure:
    """Return the plot of D(theta_0 || theta_base) and of every arm's D(theta_0 || theta) by answer position."""
    frame: dict[str, Any] = {
        "id": "shallow",
        "title": "How deep is alignment? Divergence by answer position",
        "how": (
            "Compliant answers to harmful prompts are given, nothing is generated. Left: how far the model before "
            "alignment is from θ₀ at each token of the answer; a curve that falls at once is an alignment of the first "
            "few tokens. Right: how far each arm has moved from θ₀ at the same tokens, seeds pooled. Bands and "
            "whiskers are 95 % intervals by cluster of prompts; n, in the hover text, falls where answers end."
        ),
        "limitation": (
            "Answers of one given wording; later positions average only the prompts whose answers are that long."
        ),
        "tables": ["shallow", "shallow_shares"],
    }
    rows = analysis["tables"]["shallow"]["rows"]
    if not rows:
        return Figure(**frame, plot=None, missing="not run: no scored harmful prompts with compliant answers")
    shares = {row["key"]: row for row in analysis["tables"]["shallow_shares"]["rows"]}
    plot, height = panels([_title(shares), "arms, D(θ₀ ‖ θ)"], 2, 300, shared=False)
    base = [row for row in rows if row["key"] == BASE]
    if base:
        _add_band(plot, base)
    else:
        plot.add_annotation(text="not run: θ_base is not known", showarrow=False, font_color="#6b7280", **cell(0, 2))
    for key, look in looks(analysis).items():
        mine = [row for row in rows if row["key"] == key]
        if mine:
            plot.add_trace(
                go.Scatter(
                    **_places(mine),
                    mode="lines+markers",
                    marker={"symbol": look.symbol, "size": 6},
                    line={"color": look.colour, "width": 1.8},
                    error_y=_whiskers(mine),
                    name=look.name,
                    visible="legendonly" if look.repeats else True,
                    customdata=[_hover(row) for row in mine],
                    hovertemplate=f"%{{customdata}}<extra>{key}</extra>",
                ),
                **cell(1, 2),
            )
    styled(plot, height + 20, margin={"l": 64, "r": 24, "t": 110, "b": 56})
    plot.update_layout(legend_y=1.14)
    plot.update_xaxes(title_text="answer position (tokens)", range=[0.5, max(row["position"] for row in rows) + 0.5])
    plot.update_yaxes(rangemode="tozero")
    plot.update_yaxes(title_text="KL (nats)", col=1)
    return Figure(**frame, plot=plot)


def _title(shares: dict[str, dict[str, Any]]) -> str:
    row = shares.get(BASE)
    if row is None:
        return "D(θ₀ ‖ θ_base)"
    low, high = 100 * row["first_share_low"], 100 * row["first_share_high"]
    return f"D(θ₀ ‖ θ_base): {percent(row['first_share'])} [{low:.0f}, {high:.0f}] in the first 5"


def _add_band(plot: go.Figure, rows: Sequence[dict[str, Any]]) -> None:
    bounded = [row for row in rows if row["kl_low"] is not None]
    plot.add_trace(
        go.Scatter(
            x=[row["position"] for row in (*bounded, *reversed(bounded))],
            y=[*(row["kl_high"] for row in bounded), *(row["kl_low"] for row in reversed(bounded))],
            fill="toself",
            fillcolor="rgba(31, 36, 48, .14)",
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            showlegend=False,
        ),
        **cell(0, 2),
    )
    plot.add_trace(
        go.Scatter(
            **_places(rows),
            mode="lines+markers",
            line={"color": INK, "width": 2},
            marker={"size": 6},
            name="θ_base",
            showlegend=False,
            customdata=[_hover(row) for row in rows],
            hovertemplate="%{customdata}<extra>θ_base</extra>",
        ),
        **cell(0, 2),
    )


def _places(rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    return {"x": [row["position"] for row in rows], "y": [row["kl"] for row in rows]}


def _whiskers(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [0.0 if row["kl_high"] is None else row["kl_high"] - row["kl"] for row in rows],
        "arrayminus": [0.0 if row["kl_low"] is None else row["kl"] - row["kl_low"] for row in rows],
        "thickness": 1,
        "width": 2,
    }


def _hover(row: dict[str, Any]) -> str:
    bounds = f" [{row['kl_low']:.3g}, {row['kl_high']:.3g}]" if row["kl_low"] is not None else ""
    return f"position {row['position']}: {row['kl']:.3g} nats{bounds}<br>{row['n']} prompts"
