"""Attack success by attack: one row an attack, one mark an arm, one panel a prompt set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from geomsafe.reports.attacks import TOO_WEAK
from geomsafe.reports.figures import (
    MOST_PANELS,
    START_LOOKS,
    Figure,
    Look,
    cell,
    hundredfold,
    looks,
    panels,
    shown_rate,
    styled,
    whiskers,
)
from geomsafe.reports.visible import inert

DIRECT = "direct"
WEAK = "too weak to count"
LONGEST_LABEL = 34
# Marks of arms lie side by side in the row of their attack, which is 1 high.
SPREAD = 0.56
Rows = Sequence[dict[str, Any]]


def attack_figure(analysis: dict[str, Any]) -> Figure:
    """Return the plot of attack success under every attack, the same prompts without attack in the first row."""
    rows = analysis["tables"]["attacks"]["rows"]
    judges = dict.fromkeys(row["judge"] for row in rows)
    frame: dict[str, Any] = {
        "id": "attacks",
        "title": "Attack success by attack",
        "how": (
            f"Right = less safe. One row an attack, the same prompts without attack on top, one mark an arm with its "
            f"95 % interval by cluster of prompts; verdicts by {' and '.join(judges)}. Hollow marks: too weak to "
            f"count, as the attack gets less than {100 * TOO_WEAK:.0f} % (dotted line) on the least safe arm."
        ),
        "limitation": (
            "A prefilled opening is judged as part of the answer, so long ones give it away; attacks not run here may "
            "succeed where these fail."
        ),
        "tables": ["attacks"],
    }
    if not rows:
        return Figure(**frame, plot=None, missing="not run: no attack")
    sets = list(dict.fromkeys(row["prompt_set"] for row in rows))
    drawn = sets[:MOST_PANELS]
    most = max(len({row["attack"] for row in rows if row["prompt_set"] == one}) for one in drawn)
    columns = min(2, len(drawn))
    plot, height = panels([inert(one, LONGEST_LABEL) for one in drawn], columns, 90 + 52 * (most + 1), shared=False)
    known = START_LOOKS | looks(analysis)
    keys = [key for key in known if any(row["key"] == key for row in rows)]
    # The last iterates of shadow runs repeat a baseline where there is one.
    keys = [key for key in keys if not known[key].repeats] or keys
    for index, one in enumerate(drawn):
        _add_panel(
            plot, [row for row in rows if row["prompt_set"] == one], [known[key] for key in keys], index, columns
        )
    for key in keys:
        plot.add_trace(_legend(known[key]))
    longest = max(len(inert(row["attack"], LONGEST_LABEL)) for row in rows)
    styled(plot, height, margin={"l": 60 + 7 * max(longest, len(WEAK)), "r": 24, "t": 90, "b": 56})
    plot.update_xaxes(range=[-2, 102], title_text="attack success (% of harmful prompts)")
    plot.add_vline(x=100 * TOO_WEAK, line={"dash": "dot", "width": 1, "color": "#8b93a1"})
    left_out = len(sets) - len(drawn)
    more = f" {left_out} more prompt sets are in the CSV." if left_out else ""
    return Figure(**frame | {"limitation": frame["limitation"] + more}, plot=plot)


def _add_panel(plot: go.Figure, rows: Rows, arms: Sequence[Look], index: int, columns: int) -> None:
    attacks = list(dict.fromkeys(row["attack"] for row in rows))
    weak = {row["attack"] for row in rows if row["too_weak"]}
    for number, look in enumerate(arms):
        mine = {row["attack"]: row for row in rows if row["key"] == look.key}
        points = [(0, _direct_row(row)) for row in list(mine.values())[:1] if row["direct_rate"] is not None]
        points += [(1 + attacks.index(attack), row) for attack, row in mine.items()]
        offset = SPREAD * ((number + 0.5) / len(arms) - 0.5)
        plot.add_trace(_marks(points, look, offset), **cell(index, columns))
    names = [
        DIRECT,
        *(inert(attack, LONGEST_LABEL) + (f"<br>{WEAK}" * (attack in weak)) for attack in attacks),
    ]
    plot.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=names,
        range=[len(names) - 0.5, -0.5],
        showgrid=False,
        **cell(index, columns),
    )


def _direct_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row as if its direct rate were its rate, for the mark of the direct prompts."""
    return row | {
        "attack": DIRECT, "rate": row["direct_rate"], "low": row["direct_low"], "high": row["direct_high"],
        "too_weak": False,
    }  # fmt: skip


def _marks(points: Sequence[tuple[int, dict[str, Any]]], look: Look, offset: float) -> go.Scatter:
    rows = [row for _, row in points]
    return go.Scatter(
        x=hundredfold(row["rate"] for row in rows),
        y=[place + offset for place, _ in points],
        error_x=whiskers(rows, "rate", "low", "high") | {"color": look.colour, "thickness": 1.4, "width": 0},
        mode="markers",
        marker={
            "symbol": look.symbol,
            "size": 10,
            "color": ["white" if row["too_weak"] else look.colour for row in rows],
            "line": {"color": look.colour, "width": 2},
        },
        customdata=[
            [inert(row["attack"], 80), shown_rate(row | {"rate_low": row["low"], "rate_high": row["high"]}, "rate")]
            for row in rows
        ],
        hovertemplate=f"{look.name}<br>%{{customdata[0]}}: %{{customdata[1]}}<extra></extra>",
        legendgroup=look.key,
        showlegend=False,
    )


def _legend(look: Look) -> go.Scatter:
    return go.Scatter(
        x=[None],
        y=[None],
        mode="markers",
        marker={"symbol": look.symbol, "size": 10, "color": look.colour},
        name=look.label if look.key in START_LOOKS else look.name,
        legendgroup=look.key,
    )
