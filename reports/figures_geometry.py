"""Figures of distance per layer and step, and of spectra."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from geomsafe.reports.figures import Figure, cell, colorbar, looks, panels, styled
from geomsafe.reports.figures_series import SET_COLOURS
from geomsafe.reports.heatmaps import add_heatmaps, columns_of, noted, panelled


def distance_figure(analysis: dict[str, Any]) -> Figure:
    """Return the plot of the relative distance of each layer over steps, one panel an arm."""
    frame: dict[str, Any] = {
        "id": "distances",
        "title": "Where the weights move: distance per layer over steps",
        "how": (
            "One panel an arm, mean over seeds. Rows are layers, columns optimizer steps; darker = further from θ₀, "
            "relative to the layer's own norm. The scale is logarithmic and the same in all panels."
        ),
        "limitation": "Relative L2 depends on the gauge: rescaling layers can change it, and not the model.",
        "tables": ["distances"],
    }
    rows = [row for row in analysis["tables"]["distances"]["rows"] if row["relative"] and row["step"] > 0]
    arms, left_out = panelled(analysis, rows)
    if not arms:
        return Figure(**frame, plot=None, missing="not run: no captures with a displacement")
    plot, height = panels([look.name for look in arms], columns_of(arms), 210)

    def value(cells: list[dict[str, Any]]) -> float:
        return math.log10(sum(one["relative"] for one in cells) / len(cells))

    def hover(cells: list[dict[str, Any]]) -> str:
        l2 = sum(one["l2"] for one in cells) / len(cells)
        return f"{100 * 10 ** value(cells):.3g} % of the layer's norm<br>L2 {l2:.3g}, {len(cells)} seeds"

    values = add_heatmaps(plot, rows, arms, value, hover, lambda _: "")
    low, high = math.floor(min(values)), math.ceil(max(values))
    ticks = [power for power in range(low, high + 1)]
    styled(
        plot,
        height,
        coloraxis={
            "colorscale": "Blues",
            "cmin": min(values),
            "cmax": max(values),
            "colorbar": colorbar(
                "relative distance", tickvals=ticks, ticktext=[f"{100 * 10.0**power:g} %" for power in ticks]
            ),
        },
    )
    return Figure(**noted(frame, left_out), plot=plot)


def spectrum_figure(analysis: dict[str, Any]) -> Figure:
    """Return the plot of cumulative energy of safety and utility gradients at the first and last capture."""
    frame: dict[str, Any] = {
        "id": "spectra",
        "title": "How many directions do the gradients use?",
        "how": (
            "Share of a gradient matrix' energy in its k strongest directions, median over weight matrices and mean "
            "over seeds. Solid = safety, dashed = utility, thin = nulls and controls at θ₀. A curve that rises at once "
            "is a gradient of few directions, and short texts and untrained models give such curves too."
        ),
        "limitation": (
            "CER alone is no evidence: read it against the nulls, below."
            if any(row["set"] not in {"safety", "utility"} for row in analysis["tables"]["energy"]["rows"])
            else "No nulls were run: an untrained model and short texts give steep curves too."
        ),
        "tables": ["energy", "ranks", "spectra"],
    }
    rows = analysis["tables"]["energy"]["rows"]
    if not rows:
        return Figure(**frame, plot=None, missing="not run: no singular values in the captures")
    found = looks(analysis)
    plot, height = panels(["step 0, at θ₀", "last step"], 2, 300)
    drawn: set[tuple[int, str]] = set()
    for key, look in found.items():
        mine = [row for row in rows if row["key"] == key]
        for panel, steps in enumerate(({0}, {row["step"] for row in mine} - {0})):
            for kind, dash in (("safety", "solid"), ("utility", "dash")):
                # At step 0 all runs have one model: drawn once, in black.
                if panel == 0 and (panel, kind) in drawn:
                    continue
                k, curve = _mean_curve([row for row in mine if row["step"] in steps and row["set"] == kind])
                if curve:
                    drawn.add((panel, kind))
                    plot.add_trace(
                        go.Scatter(
                            x=k,
                            y=[100 * one for one in curve],
                            mode="lines",
                            line={"color": look.colour if panel else "#1f2430", "dash": dash, "width": 2},
                            name=look.name if panel else f"θ₀, {kind}",
                            legendgroup=key if panel else f"start {kind}",
                            showlegend=panel == 0 or kind == "safety",
                            visible="legendonly" if look.repeats and panel else True,
                            hovertemplate=f"{kind}, k = %{{x}}: %{{y:.1f}} %<extra>{key if panel else 'θ₀'}</extra>",
                        ),
                        **cell(panel, 2),
                    )
    for null in dict.fromkeys(row["set"] for row in rows if row["set"] not in {"safety", "utility"}):
        k, curve = _mean_curve([row for row in rows if row["set"] == null and row["step"] == 0])
        plot.add_trace(
            go.Scatter(
                x=k, y=[100 * one for one in curve], mode="lines", name=null,
                line={"color": SET_COLOURS.get(null, "#68707d"), "width": 1.2},
                hovertemplate=f"{null}, k = %{{x}}: %{{y:.1f}} %<extra>θ₀</extra>",
            ),
            **cell(0, 2),
        )  # fmt: skip
    styled(plot, height + 20, margin={"l": 64, "r": 24, "t": 130, "b": 56})
    plot.update_layout(legend_y=1.16)
    plot.update_xaxes(title_text="k, number of directions", range=[0.5, 32.5])
    plot.update_yaxes(range=[0, 103])
    plot.update_yaxes(title_text="CER(k), energy (%)", col=1)
    return Figure(**frame, plot=plot)


def _mean_curve(rows: Sequence[dict[str, Any]]) -> tuple[list[int], list[float]]:
    by_k: dict[int, list[float]] = {}
    for row in rows:
        by_k.setdefault(row["k"], []).append(row["median"])
    return sorted(by_k), [sum(by_k[k]) / len(by_k[k]) for k in sorted(by_k)]
