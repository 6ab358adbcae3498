"""Figures over optimizer steps: loss, gradient norm, refusals, and what the displacement does to safety."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from geomsafe.reports.figures import Figure, by_run, cell, looks, panels, styled

Panel = tuple[str, str, str, str]  # table, column, title, axis


def training_figure(analysis: dict[str, Any]) -> Figure:
    """Return the plot of loss, gradient norm and the two refusal functionals of every run."""
    return _curves(
        analysis,
        {
            "id": "training",
            "title": "Training: loss, gradients and refusals over steps",
            "how": (
                "One line a run, one colour an arm. Refusal margin (higher = safer) does not saturate; refusal nll "
                "(lower = safer) stays near 0 on prompts that are refused well and is ruled by the worst ones."
            ),
            "limitation": "Refusals are teacher-forced on a probe set: the margin is a proxy for attack success.",
            "tables": ["training", "probes"],
        },
        [
            ("training", "loss", "training loss", "nats per token"),
            ("training", "grad_norm", "gradient norm before methods", "L2"),
            ("probes", "refusal_margin", "refusal margin", "nats"),
            ("probes", "refusal_nll", "refusal nll", "nats per token"),
        ],
        "not run: no steps were recorded",
    )


def displacement_figure(analysis: dict[str, Any]) -> Figure:
    """Return the plot of <displacement, safety_gradient> and the safety loss that was really gained."""
    return _curves(
        analysis,
        {
            "id": "probes",
            "title": "Do displacement and update point towards less safety?",
            "how": (
                "Inner products of the displacement θ − θ₀ and of the last update with the safety gradient at that "
                "step (above 0 = less safe, to first order) and with the utility gradient (below 0 = more useful). "
                "The update is what Adam made of the gradient, momentum included. Beside them the safety loss that "
                "was gained, and how far the safety gradient turned (cosine to that of step 0, from sketches)."
            ),
            "limitation": "First order only: θ₀ lies near a minimum of the safety loss, where curvature counts.",
            "tables": ["probes"],
        },
        [
            ("probes", "dot_safety", "⟨displacement, safety gradient⟩", "nats per token"),
            ("probes", "safety_change", "change of the safety loss", "nats per token"),
            ("probes", "dot_utility", "⟨displacement, utility gradient⟩", "nats per token"),
            ("probes", "update_dot_safety", "⟨update, safety gradient⟩", "nats per token"),
            ("probes", "safety_turn", "safety gradient, cosine to step 0", "cosine"),
            ("probes", "update_dot_utility", "⟨update, utility gradient⟩", "nats per token"),
        ],
        "not run: no captures with gradients",
    )


def _curves(analysis: dict[str, Any], frame: dict[str, Any], wanted: Sequence[Panel], missing: str) -> Figure:
    tables = analysis["tables"]
    present = [
        (name, key, title, axis)
        for name, key, title, axis in wanted
        if any(row[key] is not None and row["key"] is not None for row in tables[name]["rows"])
    ]
    if not present:
        return Figure(**frame, plot=None, missing=missing)
    columns = len(present) if len(present) < 4 else 2 if len(present) == 4 else 3
    plot, height = panels([title for _, _, title, _ in present], columns, 250, shared=False)
    found = looks(analysis)
    named: set[str] = set()
    for index, (name, key, _, axis) in enumerate(present):
        runs = by_run(tables[name]["rows"])
        for arm, run in sorted(runs, key=lambda one: (list(found).index(one[0]), one[1])):
            look, rows = found[arm], runs[arm, run]
            points = [(row["step"], row[key]) for row in rows if row[key] is not None]
            plot.add_trace(
                go.Scatter(
                    x=[step for step, _ in points],
                    y=[value for _, value in points],
                    mode="lines" if len(points) > 25 else "lines+markers",
                    marker={"size": 4},
                    line={"color": look.colour, "width": 1.4},
                    opacity=0.8,
                    name=look.name,
                    legendgroup=arm,
                    showlegend=arm not in named,
                    visible="legendonly" if look.repeats else True,
                    hovertemplate=f"{run}<br>step %{{x}}: %{{y:.4g}}<extra></extra>",
                ),
                **cell(index, columns),
            )
            named.add(arm)
        plot.update_yaxes(title_text=axis, **cell(index, columns))
        if "dot_" in key or key == "safety_change":
            plot.add_hline(y=0, line={"width": 1, "color": "#1f2430"}, **cell(index, columns))
    styled(plot, height + 20, margin={"l": 64, "r": 24, "t": 90, "b": 56})
    plot.update_layout(legend_y=1.1 if height > 450 else 1.18)
    plot.update_xaxes(title_text="optimizer step")
    left_out = [title for name, key, title, _ in wanted if title not in {shown for _, _, shown, _ in present}]
    if left_out:
        frame = frame | {"limitation": f"{frame['limitation']} Not run: {', '.join(left_out)}."}
    return Figure(**frame, plot=plot)
