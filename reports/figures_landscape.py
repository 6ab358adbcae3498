"""Figures of landscapes of lines: curves, edges, VISAGE, and width against the end of each run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from geomsafe.analyses.basins import FEWEST_DIRECTIONS
from geomsafe.reports.figures import COLOURS, GREY, INK, Figure, cell, panels, styled
from geomsafe.reports.wording import percent

TITLES = {
    "unsafe": "coherent compliance (%)",
    "asr": "keyword ASR (%)",
    "incoherent": "incoherent answers (%)",
    "retained": "old skills kept (%)",
    "utility": "task accuracy (%)",
    "over_refusal": "over-refusal (%)",
    "sham_loss": "sham behaviour lost (%)",
    "refusal_margin": "refusal margin (nats)",
    "refusal_log_odds": "refusal log-odds (nats)",
    "refusal_nll": "refusal nll (nats)",
    "utility_loss": "task loss (nats per token)",
}
SHOWN = ("unsafe", "refusal_margin", "retained", "incoherent", "utility", "sham_loss")
"""Quantities that get a panel, where they were measured; the others are in the CSV."""

EDGE_LOOKS = {
    "safety": ("safety edge", "#D55E00", "circle"),
    "capability": ("capability edge", "#0072B2", "square"),
    "sham": ("sham edge", "#7F7F7F", "diamond-open"),
    "margin": ("margin edge (proxy)", "#009E73", "x-thin-open"),
}


def landscape_figures(analysis: dict[str, Any]) -> list[Figure]:
    """Draw what there is of lines.

    Args:
        analysis: analysis.json.

    Returns:
        Curves and edges of each landscape, VISAGE, and width against the end of the runs; none without landscapes.
    """
    figures: list[Figure] = []
    for one in analysis["landscapes"]:
        if one["shape"] == "lines" and not one["visage"]:
            figures += [_curves(analysis, one), _edges(analysis, one), _ends(analysis, one)]
    figures += [_visage(analysis, one) for one in analysis["landscapes"] if one["visage"]]
    return [figure for figure in figures if figure.plot is not None]


def of(analysis: dict[str, Any], table: str, one: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a table that belong to a landscape."""
    return [row for row in analysis["tables"][table]["rows"] if row["landscape"] == one["landscape"]]


def shown_quantities(one: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the quantities that are drawn, in their order."""
    known = {measured["name"]: measured for measured in one["measured"]}
    return [known[name] for name in SHOWN if name in known]


def scale_of(measured: dict[str, Any]) -> float:
    """Return what values are multiplied by: rates are drawn in per cent."""
    return 100.0 if measured["kind"] == "rate" else 1.0


def left_out_points(one: dict[str, Any]) -> str:
    """Return a sentence on points that rounding made unreadable; empty where there are none."""
    count = one["unresolved"]
    return f" {count} points lie below one unit in the last place of the weights and are not drawn." if count else ""


def _curves(analysis: dict[str, Any], one: dict[str, Any]) -> Figure:
    chosen = shown_quantities(one)
    frame: dict[str, Any] = {
        "id": f"landscape-{slug(one)}-curves",
        "title": f"Around θ₀: {one['landscape']}",
        "how": (
            "Each curve goes through θ₀ in the middle, along one direction, to the right along it and to the left "
            "against it; whiskers are 95 % intervals by cluster of prompts. The grey band holds the 5th to 95th "
            "percentile of the random directions. A diamond marks where a run ends on its own line. Dotted lines are "
            "the thresholds of the edges. Compare directions at equal distance: all have the same unit, ‖θ₀‖."
        ),
        "limitation": (
            "Straight lines, which are not the paths that training took; between points nothing was measured."
            + left_out_points(one)
        ),
        "tables": ["landscape_lines", "landscape_bands"],
        "short": f"{one['landscape']}: curves",
    }
    rows = of(analysis, "landscape_lines", one)
    if not chosen or not rows:
        return Figure(**frame, plot=None)
    plot, height = panels([TITLES[measured["name"]] for measured in chosen], 2, 300, shared=False)
    bands = of(analysis, "landscape_bands", one)
    looks, reach = _line_looks(one), _reach(one)
    for index, measured in enumerate(chosen):
        where, factor, name, near = cell(index, 2), scale_of(measured), measured["name"], [0.0]
        _add_band(plot, [row for row in bands if row["quantity"] == name], factor, where, index == 0)
        for line, colour in looks.items():
            mine = [
                row for row in rows if row["line"] == line and row["quantity"] == name and row["average"] is not None
            ]
            if mine:
                drawn_alone = one["directions"][line]["kind"] == "random"
                plot.add_trace(_curve(mine, colour, factor, index == 0, drawn_alone), **where)
                near += [factor * row["average"] for row in mine if abs(row["coordinate"]) <= reach]
                _mark_end(plot, one["directions"][line], mine, colour, factor, where)
        _thresholds(plot, one, name, where)
        room = 0.06 * (max(near) - min(near)) or 1.0
        plot.update_yaxes(range=[min(near) - room, max(near) + room], **where)
    styled(plot, height + 90, margin={"l": 64, "r": 24, "t": 150, "b": 56})
    plot.update_layout(legend_y=1.0 + 60 / height)
    plot.update_xaxes(title_text="distance from θ₀ (of ‖θ₀‖)", range=[-reach, reach], zeroline=True, zerolinecolor=GREY)
    return Figure(**frame, plot=plot)


def _line_looks(one: dict[str, Any]) -> dict[int, str]:
    """Give each line a colour; random directions are drawn one by one only where there is no band."""  # noqa: DOC201
    drawn = [line for line, direction in enumerate(one["directions"]) if direction["kind"] == "random"]
    named = [line for line, direction in enumerate(one["directions"]) if direction["kind"] != "random"]
    looks = {line: COLOURS[index % len(COLOURS)] for index, line in enumerate(named)}
    return looks | dict.fromkeys(drawn if len(drawn) < FEWEST_DIRECTIONS else [], "#9aa1ad")


def _curve(rows: Sequence[dict[str, Any]], colour: str, factor: float, legend: bool, thin: bool) -> go.Scatter:
    low = [factor * (row["average"] - (row["low"] if row["low"] is not None else row["average"])) for row in rows]
    high = [factor * ((row["high"] if row["high"] is not None else row["average"]) - row["average"]) for row in rows]
    return go.Scatter(
        x=[row["coordinate"] for row in rows],
        y=[factor * row["average"] for row in rows],
        mode="lines" if thin else "lines+markers",
        line={"color": colour, "width": 1 if thin else 1.8, "dash": "dot" if rows[0]["way_kind"] == "ema" else "solid"},
        marker={"size": 5},
        error_y=None
        if thin
        else {"type": "data", "symmetric": False, "array": high, "arrayminus": low, "thickness": 0.8, "width": 0},
        name=rows[0]["way"],
        legendgroup=rows[0]["way"],
        showlegend=legend,
        customdata=[row["lengths"] for row in rows],
        hovertemplate="%{x:.4f} of ‖θ₀‖, %{customdata:.3f} own lengths<br>%{y:.4g}<extra>"
        + rows[0]["way"]
        + "</extra>",
    )


def _add_band(
    plot: go.Figure, rows: Sequence[dict[str, Any]], factor: float, where: dict[str, int], legend: bool
) -> None:
    if not rows:
        return
    plot.add_trace(
        go.Scatter(
            x=[row["coordinate"] for row in (*rows, *reversed(rows))],
            y=[*(factor * row["high"] for row in rows), *(factor * row["low"] for row in reversed(rows))],
            fill="toself",
            fillcolor="rgba(120, 128, 140, .28)",
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            name=f"{rows[0]['band_n']} random directions",
            legendgroup="band",
            showlegend=legend,
        ),
        **where,
    )


def _mark_end(
    plot: go.Figure, direction: dict[str, Any], rows: Sequence[dict[str, Any]], colour: str, factor: float, where: Any
) -> None:
    if direction["run"] is None or direction["kind"] == "pca":
        return
    at = direction["length"]
    near = min(rows, key=lambda row: abs(row["coordinate"] - at))
    plot.add_trace(
        go.Scatter(
            x=[at],
            y=[factor * near["average"]],
            mode="markers",
            marker={"symbol": "diamond", "size": 11, "color": colour, "line": {"color": "white", "width": 1}},
            showlegend=False,
            legendgroup=direction["name"],
            hovertemplate=f"{direction['name']}: {at:.4f} of ‖θ₀‖<extra></extra>",
        ),
        **where,
    )


def _thresholds(plot: go.Figure, one: dict[str, Any], name: str, where: dict[str, int]) -> None:
    edges = one["edges"]
    levels = {
        "unsafe": 100 * edges["unsafe"],
        "incoherent": 100 * edges["incoherent"],
        "refusal_margin": 0.0,
        "sham_loss": 50.0,
    }
    if name in levels:
        plot.add_hline(y=levels[name], line={"dash": "dot", "color": INK, "width": 1}, **where)


def _reach(one: dict[str, Any]) -> float:
    """Return how far the first view goes: two and a half times the farthest end of a run, else all there is."""  # noqa: DOC201
    ends = [direction["length"] for direction in one["directions"] if direction["run"] is not None]
    return 2.5 * max(ends) if ends else float(max(one["grid"]["high"]))


def _edges(analysis: dict[str, Any], one: dict[str, Any]) -> Figure:
    frame: dict[str, Any] = {
        "id": f"landscape-{slug(one)}-edges",
        "title": f"Where the basin ends: {one['landscape']}",
        "how": (
            "One row a direction: how far one can go along it (right) and against it (left) before half of the harmful "
            "prompts are answered coherently (safety), or a tenth of the old skills is lost or one answer in twenty is "
            "incoherent (capability); bars are 95 % intervals. What is not reached has an open arrow where looking "
            "ended, outside the first view. Where capability goes first, the model is destroyed before it is unsafe. "
            "The two parts have different scales. Sham and margin edges are in the legend."
        ),
        "limitation": "First crossing on straight lines; an interval is over prompts, not over directions.",
        "tables": ["basin_edges", "basin_widths"],
        "short": f"{one['landscape']}: edges",
    }
    rows = of(analysis, "basin_edges", one)
    if not rows:
        return Figure(**frame, plot=None)
    parts = [
        (title, [row for row in rows if (row["way_kind"] == "random") == drawn])
        for title, drawn in (("directions with a meaning", False), ("random directions", True))
    ]
    parts = [(title, mine) for title, mine in parts if mine]
    counts = [len({row["way"] for row in mine}) for _, mine in parts]
    plot = make_subplots(
        rows=len(parts),
        cols=1,
        subplot_titles=[title for title, _ in parts],
        row_heights=[count + 1 for count in counts],
        vertical_spacing=90 / (260 + 26 * sum(counts)),
    )
    for place, (_, mine) in enumerate(parts, start=1):
        for kind, (label, colour, symbol) in EDGE_LOOKS.items():
            for reached in (True, False):
                marks = [row for row in mine if row["edge"] == kind and (row["edge_at"] is not None) == reached]
                if marks:
                    trace = _edge_marks(marks, label, colour, symbol, reached)
                    shown = True if kind in ("safety", "capability") else "legendonly"
                    plot.add_trace(trace.update(visible=shown, showlegend=place == 1), row=place, col=1)
        ways = list(dict.fromkeys(row["way"] for row in mine))
        plot.add_vline(x=0, line={"color": INK, "width": 1}, row=place, col=1)
        plot.update_yaxes(categoryorder="array", categoryarray=ways[::-1], showgrid=True, row=place, col=1)
        far = _farthest(mine)
        plot.update_xaxes(range=[-far, far], row=place, col=1)
    styled(plot, 260 + 26 * sum(counts), margin={"l": 210, "r": 24, "t": 120, "b": 56})
    plot.update_layout(legend_y=1.0 + 50 / (84 + 26 * sum(counts)))
    plot.update_xaxes(title_text="of ‖θ₀‖; left: against the direction")
    return Figure(**frame, plot=plot)


def _farthest(rows: Sequence[dict[str, Any]]) -> float:
    """Return how far the first view goes: to the farthest safety or capability edge that is reached."""
    known = [row["edge_high"] or row["edge_at"] for row in rows if row["edge"] in ("safety", "capability")]
    return 1.15 * float(max((at for at in known if at is not None), default=max(row["looked"] for row in rows)))


def _edge_marks(rows: Sequence[dict[str, Any]], label: str, colour: str, symbol: str, reached: bool) -> go.Scatter:
    sign = [1 if row["side"] == "+" else -1 for row in rows]
    places = [row["edge_at"] if reached else row["looked"] for row in rows]
    outward = [max(0.0, (row["edge_high"] or row["looked"]) - row["edge_at"]) if reached else 0.0 for row in rows]
    inward = [max(0.0, row["edge_at"] - (row["edge_low"] or row["edge_at"])) if reached else 0.0 for row in rows]
    arrows = ["triangle-right-open" if one > 0 else "triangle-left-open" for one in sign]
    return go.Scatter(
        x=[one * at for one, at in zip(sign, places, strict=True)],
        y=[row["way"] for row in rows],
        mode="markers",
        marker={
            "symbol": symbol if reached else arrows,
            "color": colour,
            "size": 9,
            "line": {"width": 1.5, "color": colour},
        },
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [a if one > 0 else b for one, a, b in zip(sign, outward, inward, strict=True)],
            "arrayminus": [b if one > 0 else a for one, a, b in zip(sign, outward, inward, strict=True)],
            "thickness": 1,
            "width": 3,
            "color": colour,
        },
        name=label if reached else f"{label}: not reached",
        legendgroup=label,
        customdata=[_edge_text(row) for row in rows],
        hovertemplate="%{customdata}<extra></extra>",
    )


def _edge_text(row: dict[str, Any]) -> str:
    if row["edge_at"] is None:
        return f"{row['way']} {row['side']}: {row['edge']} edge not reached within {row['looked']:.3g}"
    high = "-" if row["edge_high"] is None else f"{row['edge_high']:.4f}"
    return (
        f"{row['way']} {row['side']}: {row['edge']} edge at {row['edge_at']:.4f} [{row['edge_low']:.4f}, {high}]<br>"
        f"{row['lengths']:.2f} own lengths; {row['first_edge'] or ''} first"
    )


def _ends(analysis: dict[str, Any], one: dict[str, Any]) -> Figure:
    frame: dict[str, Any] = {
        "id": f"landscape-{slug(one)}-ends",
        "title": f"Does the width of the basin foretell the end? {one['landscape']}",
        "how": (
            "One point a run: left, how far the safety edge lies on the run's own straight line; right, how far the "
            "run went. If width foretold harm, points would fall from upper left to lower right. Rank correlations "
            "with intervals over runs are in the table below. Blue: the run ended inside the edge."
        ),
        "limitation": "Runs of one theta_0 and a few tasks; they are taken as independent.",
        "tables": ["basin_margins", "basin_prediction"],
        "short": f"{one['landscape']}: ends",
    }
    rows = [row for row in of(analysis, "basin_margins", one) if row["asr_end"] is not None]
    if len(rows) < 3:
        return Figure(**frame, plot=None)
    plot, height = panels(["safety edge on the own line", "distance that the run went"], 2, 320)
    for index, key in enumerate(("edge_at", "end")):
        known = [row for row in rows if row[key] is not None]
        plot.add_trace(
            go.Scatter(
                x=[row[key] for row in known],
                y=[100 * row["asr_end"] for row in known],
                mode="markers",
                marker={"size": 9, "color": [COLOURS[(row["margin_to_edge"] or 0) > 0] for row in known]},
                customdata=[f"{row['run']}: {percent(row['asr_end'])}" for row in known],
                hovertemplate="%{customdata}<br>%{x:.4f} of ‖θ₀‖<extra></extra>",
                showlegend=False,
            ),
            **cell(index, 2),
        )  # fmt: skip
    styled(plot, height)
    plot.update_xaxes(title_text="of ‖θ₀‖", rangemode="tozero")
    plot.update_yaxes(title_text="coherent compliance at the end (%)", col=1)
    return Figure(**frame, plot=plot)


def _visage(analysis: dict[str, Any], one: dict[str, Any]) -> Figure:
    frame: dict[str, Any] = {
        "id": f"landscape-{slug(one)}",
        "title": "VISAGE: the depth of the basin as its authors measure it",
        "how": (
            "100 minus keyword ASR, averaged over the basin along one random direction (21 points, α from −0.5 to 0.5, "
            "the first 80 harmful prompts). One point a direction with its interval over prompts; the last row is the "
            "mean of all, with an interval over directions and prompts. Higher is safer."
        ),
        "limitation": (
            "A depth without a width, by keywords: gibberish counts as an attack. The authors use one direction."
        ),
        "tables": ["visage"],
        "short": "VISAGE",
    }
    rows = of(analysis, "visage", one)
    if not rows:
        return Figure(**frame, plot=None)
    plot = go.Figure(
        go.Scatter(
            x=[row["visage"] for row in rows],
            y=[row["way"] for row in rows],
            mode="markers",
            marker={"size": 10, "color": [INK if row["band_n"] > 1 else COLOURS[1] for row in rows]},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": _reaches(rows, "high"),
                "arrayminus": _reaches(rows, "low"),
                "thickness": 1.2,
            },
            hovertemplate="%{y}: %{x:.1f}<extra></extra>",
        )
    )
    styled(plot, 130 + 24 * len(rows), margin={"l": 130, "r": 24, "t": 30, "b": 56})
    plot.update_yaxes(autorange="reversed")
    plot.update_xaxes(title_text="VISAGE (0 to 100)", range=[0, 102])
    return Figure(**frame, plot=plot)


def _reaches(rows: Iterable[dict[str, Any]], bound: str) -> list[float]:
    return [0.0 if row[bound] is None else abs(row[bound] - row["visage"]) for row in rows]


def slug(one: dict[str, Any]) -> str:
    """Return the landscape's name as part of an element's id."""
    return "".join(letter if letter.isalnum() else "-" for letter in str(one["landscape"]))
