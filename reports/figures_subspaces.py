"""Figures of spectra beside nulls, of overlaps over k, of shares, and of single examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go

from geomsafe.reports.figures import INK, Figure, cell, looks, panels, styled
from geomsafe.reports.figures_series import RANDOM, SET_COLOURS, Series, places, series_figure
from geomsafe.reports.subspace_tables import ONE_SAMPLE, TURNS

# Legend, colour, and which rows belong.
End = tuple[str, str, Callable[[dict[str, Any]], bool]]

# A share over steps needs one k; the figure over k stands above it.
K_OVER_STEPS = 8


def excess_figure(analysis: dict[str, Any]) -> Figure:
    """Return the plot of excess CER(k) of the safety gradient over each null."""
    frame: dict[str, Any] = {
        "id": "excess",
        "title": "Is the safety gradient more concentrated than its nulls?",
        "how": (
            "CER(k) of the safety gradient minus that of a null with as many examples, in percentage points: median "
            "over weight matrices, mean over seeds. Above 0 = fewer directions than the null needs. Only where all "
            "curves lie above 0 is it more than what short texts, untrained weights or any late-learnt behaviour give."
        ),
        "limitation": "Nulls match counts, and lengths or losses one at a time; no null matches everything.",
        "tables": ["excess", "nulls", "energy"],
    }
    rows = analysis["tables"]["excess"]["rows"]
    if not rows:
        reasons = sorted({row["reason"] for row in analysis["tables"]["nulls"]["rows"] if row["reason"]})
        missing = f"not comparable: {'; '.join(reasons)}" if reasons else "not run: no nulls in the captures"
        return Figure(**frame, plot=None, missing=missing)
    nulls = list(dict.fromkeys(row["null"] for row in rows))
    series = [
        Series(
            f"over {null}",
            SET_COLOURS.get(null, INK),
            "dash" if null in {"sham", "benign"} else "solid",
            [row for row in rows if row["null"] == null],
            "excess",
            lambda row: f"{row['matrices']} matrices, {row['examples']} examples a side",
        )
        for null in nulls
    ]
    return series_figure(
        frame, places(analysis, rows), series, x="k", x_title="k, number of directions",
        y_title="excess energy (points)", scale=100, zero=True,
    )  # fmt: skip


def rarefaction_figure(analysis: dict[str, Any]) -> Figure:
    """Return the plot of effective rank against the number of independent examples."""
    frame: dict[str, Any] = {
        "id": "rarefaction",
        "title": "Has the rank settled? Directions against examples",
        "how": (
            "Effective rank of the Gram matrix of example gradients (whole model, each example's mean loss) in "
            "subsamples of N independent examples. Solid = with the mean, dotted = the variation around it. "
            "Compare sets at equal N only; a curve that still rises says that the rank is that of the sample."
        ),
        "limitation": "N examples cannot span more than N directions, so no curve can lie above the diagonal.",
        "tables": ["rarefaction", "gram_ranks"],
    }
    rows = analysis["tables"]["rarefaction"]["rows"]
    if not rows:
        return Figure(**frame, plot=None, missing="not run: no Gram matrix of single examples in the captures")
    series = [
        Series(
            kind if form == "uncentred" else f"{kind}, centred",
            SET_COLOURS[kind],
            "solid" if form == "uncentred" else "dot",
            [row for row in rows if row["set"] == kind and row["form"] == form],
            "effective_rank",
            lambda row: f"10 to 90 % of draws: {row['effective_rank_low']:.2f} to {row['effective_rank_high']:.2f}",
        )
        for kind in SET_COLOURS
        for form in ("uncentred", "centred")
        if any(row["set"] == kind for row in rows)
    ]
    counts = sorted({row["units"] for row in rows})
    ticks = [count for count in counts if count & (count - 1) == 0 or count == counts[-1]]
    return series_figure(
        frame, places(analysis, rows), series, x="units", x_title="N, independent examples",
        y_title="effective rank", xaxis={"type": "log", "tickvals": ticks, "ticktext": list(map(str, ticks))},
    )  # fmt: skip


def overlap_figure(analysis: dict[str, Any], space: str) -> Figure:
    """Return the plot of phi(k), of example spans or of left spaces."""
    if space == "example_span":
        frame: dict[str, Any] = {
            "id": "overlaps",
            "title": "Do the sets' example gradients span the same directions? (example_span)",
            "how": (
                "φ(k), mean squared cosine of the principal angles between the k strongest directions of two sets' "
                "example gradients, whole model; 1 = the same, 0 = orthogonal. Every curve has equal N on either side: "
                "a disjoint half of each set. Black = two halves of the safety set, the most that noise leaves; what "
                "comes near it shares the safety directions."
            ),
            "limitation": "Shared answer text alone gives overlap; the benign and sham halves are the controls for it.",
        }
    else:
        frame = {
            "id": "left-overlaps",
            "title": "Do the sets' gradients use the same output directions? (left_space)",
            "how": (
                "φ(k) between the k leading left singular vectors of two sets' mean gradients, median over weight "
                "matrices; 1 = the same, 0 = orthogonal, grey = random subspaces. Dotted = the safety space of this "
                "step and that of step 0 from the same examples."
            ),
            "limitation": (
                "Whole sets are used: a ceiling from halves does not apply, and a turn from step 0 is not called drift."
            ),
        }
    frame["tables"] = ["overlaps"]
    rows = [
        row
        for row in analysis["tables"]["overlaps"]["rows"]
        if row["space"] == space and row["comparison"] not in {*ONE_SAMPLE.values(), TURNS["utility"]}
    ]
    if not rows:
        return Figure(**frame, plot=None, missing="not run: no captures with two sets to compare")
    random = [row | {"phi": row["baseline"]} for row in rows]
    series = [Series("random subspaces", RANDOM, "dash", random, "phi")]
    for name in sorted({row["comparison"] for row in rows}, key=lambda one: ("ceiling" in one, one)):
        other = next((kind for kind in ("utility", "sham", "benign") if kind in name), None)
        colour = SET_COLOURS[other] if other else INK
        dash = "dot" if "step 0" in name else "solid"
        series.append(
            Series(
                name, colour, dash, [row for row in rows if row["comparison"] == name], "phi",
                lambda row: f"quartiles {row['quartile_low']:.2f} to {row['quartile_high']:.2f}, "
                f"{row['examples']} examples a side",
            )
        )  # fmt: skip
    return series_figure(
        frame, places(analysis, rows), series, x="k", x_title="k, number of directions", y_title="φ(k)",
        yaxis={"rangemode": "tozero"},
    )  # fmt: skip


def turn_figure(analysis: dict[str, Any]) -> Figure:
    """Return the plot of the overlap of left spaces with those of step 0, over steps."""
    frame: dict[str, Any] = {
        "id": "turns",
        "title": "Do the left spaces turn while the model trains?",
        "how": (
            "φ(k) between a set's left space at each step and at step 0, median over weight matrices, at three k. "
            "Orange = safety, blue = utility, grey = random subspaces at the largest k. Where orange falls, a "
            "projection onto the safety space of step 0 no longer meets the safety gradient."
        ),
        "limitation": (
            "Both steps use the same examples and no halves are kept, so a turn is shown and not called drift."
        ),
        "tables": ["overlaps"],
    }
    rows = [row for row in analysis["tables"]["overlaps"]["rows"] if row["comparison"] in TURNS.values()]
    if not rows:
        return Figure(**frame, plot=None, missing="not run: fewer than two captures with left spaces")
    present = sorted({row["k"] for row in rows})
    chosen = list(dict.fromkeys([present[0], present[len(present) // 2], present[-1]]))
    random = [row | {"phi": row["baseline"]} for row in rows if row["k"] == chosen[-1]]
    series = [Series(f"random, k = {chosen[-1]}", RANDOM, "dash", random, "phi")]
    for kind in ("utility", "safety"):
        for k, dash in zip(chosen, ("dot", "dash", "solid"), strict=False):
            mine = [row for row in rows if row["comparison"] == TURNS[kind] and row["k"] == k]
            series.append(
                Series(
                    f"{kind}, k = {k}", SET_COLOURS[kind], dash, mine, "phi",
                    lambda row: f"quartiles {row['quartile_low']:.2f} to {row['quartile_high']:.2f}",
                )
            )  # fmt: skip
    return series_figure(
        frame, places(analysis, rows, start=False, last=False), series, x="step", x_title="optimizer step",
        y_title="φ(k) with step 0", yaxis={"rangemode": "tozero"},
    )  # fmt: skip


def share_figure(analysis: dict[str, Any]) -> Figure:
    """Return the plot of the displacement's and the last update's share in each left space over k."""
    frame: dict[str, Any] = {
        "id": "shares",
        "title": "How much of the displacement lies in the safety subspace?",
        "how": (
            "Share of ||θ − θ₀||² (solid, in the subspaces of step 0) and of the last update (dotted, in those of its "
            "own step) inside the k leading left singular vectors of each set's gradient, all weight matrices "
            "together. Orange says something about safety only where it lies above green and pink."
        ),
        "limitation": "Any gradient's subspace holds more than a random one (grey): that alone is no evidence.",
        "tables": ["shares"],
    }
    rows = analysis["tables"]["shares"]["rows"]
    if not rows:
        return Figure(**frame, plot=None, missing="not run: no captures with projections of the displacement")
    return series_figure(
        frame, places(analysis, rows, start=False), _share_series(rows), x="k", x_title="k, number of directions",
        y_title="share (%)", scale=100,
    )  # fmt: skip


def share_steps_figure(analysis: dict[str, Any]) -> Figure:
    """Return the plot of the shares over steps at one k."""
    frame: dict[str, Any] = {
        "id": "shares-steps",
        "title": "Does that share change while the model trains?",
        "how": (
            f"As above at k = {K_OVER_STEPS}, over optimizer steps. Solid = displacement in the subspaces of step 0, "
            "dotted = the last update in the subspaces of its own step. Sham and benign gradients are measured at the "
            "ends only, so their dotted curves are one point."
        ),
        "limitation": f"What holds at k = {K_OVER_STEPS} need not at another k; the figure above shows the others.",
        "tables": ["shares"],
    }
    rows = [row for row in analysis["tables"]["shares"]["rows"] if row["k"] == K_OVER_STEPS]
    if len({row["step"] for row in rows}) < 2:
        return Figure(**frame, plot=None, missing="not run: fewer than two captures with projections")
    return series_figure(
        frame, places(analysis, rows, start=False, last=False), _share_series(rows), x="step",
        x_title="optimizer step", y_title="share (%)", scale=100,
    )  # fmt: skip


def sufficiency_figure(analysis: dict[str, Any]) -> Figure:
    """Return the plot of what each single example gives of all others."""
    frame: dict[str, Any] = {
        "id": "singles",
        "title": "Does one example give the whole set's gradient?",
        "how": (
            "Each dot is one example, compared with all others of its set outside its cluster, in the whole model. "
            "Left: cosine with their mean gradient. Right: share of its squared length inside their span (grey line: "
            "a random direction). Black = θ₀, colours = arms at their last step."
        ),
        "limitation": (
            "High values of safety alone show nothing: refusals share their text. Read them against sham and benign."
        ),
        "tables": ["singles"],
    }
    rows = analysis["tables"]["singles"]["rows"]
    if not rows:
        return Figure(**frame, plot=None, missing="not run: no captures of single examples")
    plot, height = panels(["cosine with the others' mean", "share inside the others' span"], 2, 330, shared=False)
    for name, colour, belongs in _ends(analysis, rows):
        mine = [row for row in rows if belongs(row)]
        for column, key in enumerate(("single_cosine", "in_span")):
            plot.add_trace(
                go.Box(
                    x=[row["set"] for row in mine],
                    y=[row[key] for row in mine],
                    name=name,
                    legendgroup=name,
                    offsetgroup=name,
                    showlegend=column == 0,
                    marker={"color": colour, "size": 3},
                    line={"width": 1},
                    boxpoints="all",
                    jitter=0.5,
                    pointpos=0,
                    fillcolor="rgba(255,255,255,0)",
                    hovertemplate="%{x}: %{y:.3f}<extra></extra>",
                ),
                **cell(column, 2),
            )
    random = sum(row["span_baseline"] for row in rows) / len(rows)
    plot.add_hline(y=random, line={"color": RANDOM, "dash": "dash", "width": 1.2}, **cell(1, 2))
    styled(plot, height, margin={"l": 64, "r": 24, "t": 84, "b": 56}, boxmode="group")
    plot.update_layout(legend_y=1.1)
    plot.update_yaxes(range=[0, 1.03], **cell(1, 2))
    return Figure(**frame, plot=plot)


def one_sample_figure(analysis: dict[str, Any]) -> Figure:
    """Return the plot of phi(k) between one refusal and the half of the safety set that it is not in."""
    frame: dict[str, Any] = {
        "id": "singles-left",
        "title": "Does one refusal give the safety set's output directions? (left_space)",
        "how": (
            "φ(k) between the left space of one safety example and that of the half of the set that it is not in, "
            "median over examples and weight matrices (solid orange). Its null is the same refusal text behind a "
            "benign prompt (solid pink): only what lies above is due to the prompt. Dashed = two disjoint halves, "
            "black the ceiling and pink its null. Grey = random subspaces."
        ),
        "limitation": "A single and a half differ in count: compare solid with solid, and dashed with dashed.",
        "tables": ["overlaps"],
    }
    rows = [row for row in analysis["tables"]["overlaps"]["rows"] if row["comparison"] in ONE_SAMPLE.values()]
    if not rows:
        return Figure(**frame, plot=None, missing="not run: no captures with overlaps of single examples")
    random = [row | {"phi": row["baseline"]} for row in rows]
    series = [Series("random subspaces", RANDOM, "dash", random, "phi")]
    for key, colour, dash in (
        ("half_phi_same_text", SET_COLOURS["benign"], "dash"),
        ("half_phi", INK, "dash"),
        ("single_phi_same_text", SET_COLOURS["benign"], "solid"),
        ("single_phi", SET_COLOURS["safety"], "solid"),
    ):
        name = ONE_SAMPLE[key]
        series.append(
            Series(
                name, colour, dash, [row for row in rows if row["comparison"] == name], "phi",
                lambda row: f"quartiles {row['quartile_low']:.2f} to {row['quartile_high']:.2f}, "
                f"{row['matrices']} matrices, halves of {row['examples']}",
            )
        )  # fmt: skip
    return series_figure(
        frame, places(analysis, rows), series, x="k", x_title="k, number of directions", y_title="φ(k)",
        yaxis={"rangemode": "tozero"},
    )  # fmt: skip


def _share_series(rows: list[dict[str, Any]]) -> list[Series]:
    wanted = [("displacement", "0", "solid"), ("update", "t", "dot")]
    main = [row for row in rows if (row["what"], row["basis_step"], row["set"]) == ("displacement", "0", "safety")]
    series = [Series("random subspaces", RANDOM, "dash", main or rows, "random_share")]
    for kind in ("utility", "benign", "sham", "safety"):
        for what, at, dash in wanted:
            mine = [row for row in rows if (row["set"], row["what"], row["basis_step"]) == (kind, what, at)]
            if mine:
                series.append(
                    Series(
                        f"{what}, {kind}", SET_COLOURS[kind], dash, mine, "share",
                        lambda row: f"random {100 * row['random_share']:.2g} %, {row['matrices']} matrices",
                    )
                )  # fmt: skip
    return series


def _ends(analysis: dict[str, Any], rows: list[dict[str, Any]]) -> list[End]:
    found: list[End] = []
    start = next((row["run"] for row in rows if row["step"] == 0), None)
    if start is not None:
        # theta_0 is one model: the examples of one run, not those of every run again.
        found.append(("θ₀", INK, lambda row: bool(row["step"] == 0 and row["run"] == start)))
    for look in looks(analysis).values():
        steps = {row["step"] for row in rows if row["key"] == look.key} - {0}
        if steps and not look.repeats:
            found.append((look.name, look.colour, _last(look.key, max(steps))))
    return found


def _last(key: str, step: int) -> Callable[[dict[str, Any]], bool]:
    return lambda row: bool(row["key"] == key and row["step"] == step)
