"""Figures of conflict: cosines by layer and step, raw and preconditioned, and by kind of module."""

from __future__ import annotations

from typing import Any

from geomsafe.reports.figures import GREY, Figure, colorbar, panels, styled
from geomsafe.reports.figures_series import places
from geomsafe.reports.heatmaps import Cells, add_grid, add_heatmaps, columns_of, noted, panelled

_COSINE_SCALE = {"colorscale": "RdBu", "cmin": -1, "cmid": 0, "cmax": 1, "colorbar": colorbar("cosine")}


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
    arms, left_out = panelled(analysis, rows)
    if not arms:
        missing = "both probe sets" if plain else "Adam's state"
        return Figure(**frame, plot=None, missing=f"not run: no captures with {missing}")
    plot, height = panels([look.name for look in arms], columns_of(arms), 210)
    undefined = sum(row["cosine"] is None for row in rows)
    if undefined:
        frame["limitation"] += (
            f" {undefined} of {len(rows)} cosines are undefined; more probe examples (--probe-examples) define more."
        )
    add_heatmaps(plot, rows, arms, _mean_cosine, _said, _mark)
    styled(plot, height, coloraxis=_COSINE_SCALE, plot_bgcolor=GREY)
    plot.update_xaxes(showgrid=False)
    plot.update_yaxes(showgrid=False)
    return Figure(**noted(frame, left_out), plot=plot)


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
    labels = list(dict.fromkeys("whole model" if row["layer"] == "all" else row["layer"] for row in rows))
    plot, height = panels([place.title for place in found], columns, 60 + 22 * len(labels))
    for index, place in enumerate(found):
        cells: Cells = {}
        for row in rows:
            if place.belongs(row):
                short = row["set"] if row["gradient_space"] == "raw" else f"{row['set']}, Adam"
                cells.setdefault(("whole model" if row["layer"] == "all" else row["layer"], short), []).append(row)
        across = sorted({short for _, short in cells}, key=lambda one: (one.endswith("Adam"), one))
        add_grid(plot, (index, columns), across, labels[::-1], cells, _mean_cosine, _said, _mark)
    styled(plot, height, coloraxis=_COSINE_SCALE, plot_bgcolor=GREY, margin={"l": 92, "r": 24, "t": 36, "b": 56})
    plot.update_xaxes(showgrid=False)
    plot.update_yaxes(showgrid=False, ticks="")
    shown = [row for row in rows if any(place.belongs(row) for place in found)]
    undefined = sum(row["cosine"] is None for row in shown)
    if undefined:
        frame["limitation"] += f" {undefined} of {len(shown)} cosines are undefined: blank."
    return Figure(**noted(frame, left_out), plot=plot)


def _anchored(analysis: dict[str, Any], space: str) -> str:
    rows = [row for row in analysis["tables"]["cosines"]["rows"] if row["gradient_space"] == space]
    steps = sorted({row["step"] for row in rows if row["claimed"] is not None})
    if not steps:
        return "No benign anchor was run, so a dot shows opposition, not that it is special to safety."
    where = ", ".join(map(str, steps[:4]))
    return f"The benign anchor was measured at steps {where} only: a conflict can be claimed at no other."


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
        trigger = ", SPF would project" if one["spf_trigger"] else ""
        lines.append(f"seed {one['seed']}: {said}, raw {raw}{anchor}{trigger}")
    return "<br>".join(lines[:8])
