"""The table that the command prints: the first screen's table in text."""

from __future__ import annotations

from typing import Any

from geomsafe.reports.sweep_markdown import sweep_cells
from geomsafe.reports.wording import number, percent, percent_interval, points, points_interval


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
    titles = {"gold_asr": "gold ASR", "keyword_asr": "keyword ASR"}
    rows = []
    for row in analysis["tables"]["arms"]["rows"]:
        control = row["control"]
        rows.append({
            "": row["key"],
            "arm": row["arm"],
            titles[primary]: " ".join([
                percent(row[primary]),
                percent_interval(row[f"{primary}_low"], row[f"{primary}_high"]),
            ]).strip(),
            titles[other]: percent(row[other]),
            "over-refusal": percent(row["over_refusal"]),
            "utility": percent(row["utility"]),
            "retained": percent(row["retained"]),
            "distance": number(row["relative_distance"]),
            "minus control": " ".join([
                f"{points(row['difference'])} ({control})" if control and row["difference"] is not None else "–",
                points_interval(row["difference_low"], row["difference_high"]),
            ]).strip(),
            "verdict": row["word"] or "–",
        })
    return rows


def _sweep_summary(analysis: dict[str, Any]) -> list[dict[str, str]]:
    sweep = analysis["sweep"]
    several = len(sweep["conditions"]) > 1
    wanted = ("arm", "gold ASR", "keyword ASR", "utility", "incoherence", "distance", "minus control", "verdict")
    rows = []
    for row in analysis["tables"]["sweep"]["rows"]:
        cells = sweep_cells(row, sweep["primary"])
        rows.append(
            {"": row["key"]}
            | ({"condition": row["condition"]} if several else {})
            | {title: cells[title] for title in wanted}
        )
    return rows
