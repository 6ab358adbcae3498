"""The table that the command prints: the first screen's table in text."""

from __future__ import annotations

from typing import Any

from geomsafe.reports.sweep_markdown import heading, rate_cell, sweep_cells
from geomsafe.reports.wording import number, points, points_interval


def summary_table(analysis: dict[str, Any]) -> list[dict[str, str]]:
    """Return the arms in a few columns of text.

    Args:
        analysis: analysis.json.

    Returns:
        One mapping of title to text an arm, theta_0 first; of a sweep, an arm and condition of its plan.
    """
    if analysis["sweep"] is not None:
        return _sweep_summary(analysis)
    primary = analysis["scope"]["primary"]
    other = "keyword_asr" if primary == "gold_asr" else "gold_asr"
    return [
        {"": row["key"], "arm": row["arm"]}
        | {heading(key): rate_cell(row, key) for key in (primary, other, "over_refusal", "utility", "retained")}
        | {
            "distance": number(row["relative_distance"]),
            heading("difference", "minus control"): " ".join([
                f"{points(row['difference'])} ({row['control']})"
                if row["control"] and row["difference"] is not None
                else "–",
                points_interval(row["difference_low"], row["difference_high"]),
            ]).strip(),
            "verdict": row["word"] or "–",
        }
        for row in analysis["tables"]["arms"]["rows"]
    ]


def _sweep_summary(analysis: dict[str, Any]) -> list[dict[str, str]]:
    sweep = analysis["sweep"]
    several = len(sweep["conditions"]) > 1
    left_out = {heading(key) for key in ("sham_loss", "over_refusal", "retained", "answer_incoherence")}
    left_out |= {"KL", heading("radial_difference", "minus radial")}
    rows = []
    for row in analysis["tables"]["sweep"]["rows"]:
        cells = sweep_cells(row)
        rows.append(
            {"": row["key"]}
            | ({"condition": row["condition"]} if several else {})
            | {title: text for title, text in cells.items() if title not in left_out}
        )
    return rows
