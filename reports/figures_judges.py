"""How far judges agree: kappa of every pair."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from geomsafe.reports.figures import INK, Figure, colorbar, styled
from geomsafe.reports.visible import inert
from geomsafe.reports.wording import number, percent

FEWEST_JUDGES = 3
LONGEST_LABEL = 30


def kappa_figure(analysis: dict[str, Any]) -> Figure:
    """Return the grid of Cohen's kappa between judges, over all answers to harmful prompts put directly."""
    rows = [row for row in analysis["tables"]["judges"]["rows"] if row["key"] == "all"]
    judges = list(dict.fromkeys(row[place] for place in ("first", "second") for row in rows))
    frame: dict[str, Any] = {
        "id": "kappas",
        "title": "Agreement of judges, pair by pair",
        "how": (
            "Cohen's κ of “compliance” between two judges over all answers to harmful prompts, attacks left out; 1 is "
            "full agreement, 0 is chance. Answers that one of the two left undecided are not in it; –: undefined, as "
            "both say one and the same throughout."
        ),
        "limitation": "Judges that agree may be wrong together: lists that share their strings are no two witnesses.",
        "tables": ["judges"],
    }
    if len(judges) < FEWEST_JUDGES:
        return Figure(**frame, plot=None, missing="not run: fewer than 3 judges of refusal")
    pairs = {frozenset((row["first"], row["second"])): row for row in rows}
    # Each pair once: the upper right half would say the same again.
    grid = [
        [pairs.get(frozenset((lower, upper))) if place < line else None for place, upper in enumerate(judges[:-1])]
        for line, lower in enumerate(judges)
    ][1:]
    names = [inert(judge, LONGEST_LABEL) for judge in judges]
    plot = go.Figure(
        go.Heatmap(
            z=[[row["kappa"] if row else None for row in line] for line in grid],
            x=list(range(len(judges) - 1)),
            y=list(range(len(judges) - 1)),
            zmin=0,
            zmax=1,
            colorscale="Blues",
            colorbar=colorbar("κ"),
            xgap=2,
            ygap=2,
            customdata=[[_hover(row) if row else "" for row in line] for line in grid],
            hovertemplate="%{customdata}<extra></extra>",
        )
    )
    for y, line in enumerate(grid):
        for x, row in enumerate(line):
            if row is not None:
                dark = (row["kappa"] or 0) > 0.55
                text = "–" if row["kappa"] is None else f"{row['kappa']:.2f}".replace("-", "−")
                plot.add_annotation(x=x, y=y, text=text, showarrow=False, font_color="white" if dark else INK)
    wide = 60 + 7 * max(map(len, names))
    styled(plot, 130 + 38 * len(grid), margin={"l": wide, "r": 24, "t": 20, "b": 40 + 3 * max(map(len, names))})
    plot.update_annotations(font_size=13)
    axis = {"showgrid": False, "ticks": ""}
    plot.update_xaxes(tickvals=list(range(len(judges) - 1)), ticktext=names[:-1], tickangle=20, **axis)
    plot.update_yaxes(tickvals=list(range(len(judges) - 1)), ticktext=names[1:], autorange="reversed", **axis)
    return Figure(**frame, plot=plot)


def _hover(row: dict[str, Any]) -> str:
    first, second = inert(row["first"], 60), inert(row["second"], 60)
    return (
        f"{first} and {second}<br>κ {number(row['kappa'], 'undefined')}, {percent(row['agreement'], 'nothing')} equal "
        f"over {row['n']} answers<br>{row['undecided']} more left undecided"
    )
