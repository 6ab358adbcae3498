"""Figures of the captures: distance and cosine per layer and step, and spectra."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go

from geomsafe.reports.figures import GREY, MOST_PANELS, Figure, Look, cell, colorbar, looks, panels, styled
from geomsafe.reports.figures_series import SET_COLOURS, places

Cells = dict[tuple[str, int], list[dict[str, Any]]]

_COSINE_SCALE = {"colorscale": "RdBu", "cmin": -1, "cmid": 0, "cmax": 1, "colorbar": colorbar("cosine")}


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
    arms, left_out = _panelled(analysis, rows)
    if not arms:
        return Figure(**frame, plot=None, missing="not run: no captures with a displacement")
    plot, height = panels([look.name for look in arms], _columns(arms), 210)

    def value(cells: list[dict[str, Any]]) -> float:
        return math.log10(sum(one["relative"] for one in cells) / len(cells))

    def hover(cells: list[dict[str, Any]]) -> str:
        l2 = sum(one["l2"] for one in cells) / len(cells)
        return f"{100 * 10 ** value(cells):.3g} % of the layer's norm<br>L2 {l2:.3g}, {len(cells)} seeds"

    values = _add_heatmaps(plot, rows, arms, value, hover, lambda _: "")
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
    _label(plot)
    return Figure(**_noted(frame, left_out), plot=plot)


def cosine_figure(analysis: dict[str, Any], space: str = "raw") -> Figure:
    """Return the plot of the cosine of safety and utility gradients of each layer over steps, one panel an arm."""
    plain = space == "raw"
    frame: dict[str, Any] = {
        "id": "cosines" if plain else "cosines-preconditioned",
        "title": (
            "Do safety and utility gradients oppose each other?"
            if plain
            else "And after Adam's preconditioning, in the space of updates?"
        ),
        "how": (
            "One panel an arm, mean over seeds. Red = the gradients oppose each other (cosine below 0), blue = they "
            "agree, blank = undefined: the noise of the probe set hides a gradient's length in some seed. A dot marks "
            "cells below 0 in every seed after correction over layers, a diamond those that are also below the benign "
            "anchor's cosine: a conflict. Hover: interval, noise floor, raw cosine, anchor."
            if plain
            else "As above with ⟨g_u, P g_s⟩, P = 1 / (√v̂ + ε) read from the optimizer: what opposes before Adam need "
            "not after. There is no P at step 0."
        ),
        "limitation": _anchored(analysis, space),
        "tables": ["cosines"],
    }
    rows = [
        row
        for row in analysis["tables"]["cosines"]["rows"]
        if (row["gradient_space"], row["grouping"], row["set"]) == (space, "layer", "safety")
    ]
    arms, left_out = _panelled(analysis, rows)
    if not arms:
        missing = "both probe sets" if plain else "Adam's state"
        return Figure(**frame, plot=None, missing=f"not run: no captures with {missing}")
    plot, height = panels([look.name for look in arms], _columns(arms), 210)

    undefined = sum(row["cosine"] is None for row in rows)
    if undefined:
        frame["limitation"] += (
            f" {undefined} of {len(rows)} cosines are undefined; more probe examples (--probe-examples) define more."
        )
    _add_heatmaps(plot, rows, arms, _mean_cosine, _said, _mark)
    styled(plot, height, coloraxis=_COSINE_SCALE, plot_bgcolor=GREY)
    plot.update_xaxes(showgrid=False)
    plot.update_yaxes(showgrid=False)
    _label(plot)
    return Figure(**_noted(frame, left_out), plot=plot)


def kinds_figure(analysis: dict[str, Any]) -> Figure:
    """Return the plot of the cosines by kind of module and in all, of safety and of its sham twin."""
    frame: dict[str, Any] = {
        "id": "cosines-kinds",
        "title": "Which modules, and is it special to safety?",
        "how": (
            "The same cosine with utility by kind of module and for the whole model, at θ₀ and each arm's last step. "
            "Columns: safety and its sham twin (a harmless behaviour learnt in the same way), raw and preconditioned. "
            "Colours, dots and diamonds as above; where sham looks like safety, it is not about safety."
        ),
        "limitation": "Fused weights (qkv, gate_up) are one kind: their Gram cannot be taken apart.",
        "tables": ["cosines"],
    }
    rows = [row for row in analysis["tables"]["cosines"]["rows"] if row["grouping"] != "layer"]
    found, left_out = places(analysis, rows)
    if not found:
        return Figure(**frame, plot=None, missing="not run: no captures with both probe sets")
    columns = len(found) if len(found) <= 4 else 3
    labels = list(dict.fromkeys(row["layer"] for row in rows))
    plot, height = panels([place.title for place in found], columns, 60 + 22 * len(labels))
    for index, place in enumerate(found):
        cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in rows:
            if place.belongs(row):
                short = row["set"] if row["gradient_space"] == "raw" else f"{row['set']}, Adam"
                cells.setdefault((row["layer"], short), []).append(row)
        across = sorted({short for _, short in cells}, key=lambda one: (one.endswith("Adam"), one))
        plot.add_trace(
            go.Heatmap(
                x=across,
                y=[label if label != "all" else "whole model" for label in labels],
                z=[[_mean_cosine(cells.get((label, one), [])) for one in across] for label in labels],
                text=[[_mark(cells.get((label, one), [])) for one in across] for label in labels],
                texttemplate="%{text}",
                textfont={"size": 13, "color": "#1f2430"},
                customdata=[[_said(cells.get((label, one), [])) for one in across] for label in labels],
                hovertemplate="%{y}, %{x}<br>%{customdata}<extra></extra>",
                coloraxis="coloraxis",
                xgap=1,
                ygap=1,
                hoverongaps=True,
            ),
            **cell(index, columns),
        )
    styled(plot, height, coloraxis=_COSINE_SCALE, plot_bgcolor=GREY, margin={"l": 92, "r": 24, "t": 36, "b": 56})
    plot.update_xaxes(showgrid=False, type="category")
    plot.update_yaxes(showgrid=False, ticks="", autorange="reversed")
    return Figure(**_noted(frame, left_out), plot=plot)


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


def _columns(arms: Sequence[Look]) -> int:
    return 4 if len(arms) == 4 else min(3, len(arms))


def _mean_cosine(cells: list[dict[str, Any]]) -> float | None:
    found = [one["cosine"] for one in cells]
    return None if not found or any(one is None for one in found) else float(sum(found) / len(found))


def _mark(cells: list[dict[str, Any]]) -> str:
    if not cells:
        return ""
    if all(one["claimed"] for one in cells):
        return "◆"
    return "•" if all(one["negative"] for one in cells) else ""


def _said(cells: list[dict[str, Any]]) -> str:
    lines = []
    for one in cells:
        raw = "–" if one["raw"] is None else f"{one['raw']:.2f}"
        said = (
            f"undefined: {one['reason']}"
            if one["cosine"] is None
            else f"{one['cosine']:.2f} [{one['low']:.2f}, {one['high']:.2f}], floor {one['floor']:.2f}"
        )
        anchor = "" if one["anchor_cosine"] is None else f", anchor {one['anchor_cosine']:.2f}"
        lines.append(f"seed {one['seed']}: {said}, raw {raw}{anchor}")
    return "<br>".join(lines[:8])


def _anchored(analysis: dict[str, Any], space: str) -> str:
    rows = [row for row in analysis["tables"]["cosines"]["rows"] if row["gradient_space"] == space]
    steps = sorted({row["step"] for row in rows if row["claimed"] is not None})
    if not steps:
        return "No benign anchor was run, so a dot shows opposition, not that it is special to safety."
    where = ", ".join(map(str, steps[:4]))
    return f"The benign anchor was measured at steps {where} only: a conflict can be claimed at no other."


def _mean_curve(rows: Sequence[dict[str, Any]]) -> tuple[list[int], list[float]]:
    by_k: dict[int, list[float]] = {}
    for row in rows:
        by_k.setdefault(row["k"], []).append(row["median"])
    return sorted(by_k), [sum(by_k[k]) / len(by_k[k]) for k in sorted(by_k)]


def _panelled(analysis: dict[str, Any], rows: Sequence[dict[str, Any]]) -> tuple[list[Look], int]:
    present = {row["key"] for row in rows}
    arms = [look for look in looks(analysis).values() if look.key in present]
    # The last iterates of shadow runs repeat a baseline where there is one.
    distinct = [look for look in arms if not look.repeats] or arms
    return distinct[:MOST_PANELS], max(0, len(distinct) - MOST_PANELS)


def _add_heatmaps(
    plot: go.Figure,
    rows: Sequence[dict[str, Any]],
    arms: Sequence[Look],
    value: Callable[[list[dict[str, Any]]], float | None],
    hover: Callable[[list[dict[str, Any]]], str],
    mark: Callable[[list[dict[str, Any]]], str],
) -> list[float]:
    # One heatmap an arm; the values drawn come back, without the undefined.
    columns = _columns(arms)
    values: list[float] = []
    for index, look in enumerate(arms):
        cells: Cells = {}
        layers: dict[str, None] = {}
        for row in rows:
            if row["key"] == look.key and row["layer"] != "all":
                layers.setdefault(row["layer"])
                cells.setdefault((row["layer"], row["step"]), []).append(row)
        steps = sorted({step for _, step in cells})
        z = [[value(cells[layer, step]) if (layer, step) in cells else None for step in steps] for layer in layers]
        values += [one for line in z for one in line if one is not None]
        plot.add_trace(
            go.Heatmap(
                x=[str(step) for step in steps],
                y=[f"layer {layer}" if layer.isdigit() else layer for layer in layers],
                z=z,
                text=[
                    [mark(cells.get((layer, step), [])) if (layer, step) in cells else "" for step in steps]
                    for layer in layers
                ],
                texttemplate="%{text}",
                textfont={"size": 13, "color": "#1f2430"},
                customdata=[
                    [hover(cells[layer, step]) if (layer, step) in cells else "" for step in steps] for layer in layers
                ],
                hovertemplate="%{y}, step %{x}<br>%{customdata}<extra></extra>",
                coloraxis="coloraxis",
                xgap=1,
                ygap=1,
                hoverongaps=True,
            ),
            **cell(index, columns),
        )
    return values


def _label(plot: go.Figure) -> None:
    plot.update_xaxes(type="category", title_text="optimizer step")
    plot.update_yaxes(ticks="")


def _noted(frame: dict[str, Any], left_out: int) -> dict[str, Any]:
    if not left_out:
        return frame
    return frame | {"limitation": f"{frame['limitation']} {left_out} more arms are in the CSV."}
