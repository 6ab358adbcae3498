"""What a sweep adds to the page, and what it takes from the figures of single runs."""

from __future__ import annotations

from typing import Any

from geomsafe.reports.figures import Figure
from geomsafe.reports.figures_sweep import analysed, conditions, first_arms, of_condition, sweep_looks
from geomsafe.reports.figures_sweep_curves import curves_figure
from geomsafe.reports.figures_sweep_matched import matched_figure
from geomsafe.reports.figures_sweep_pareto import pareto_figure
from geomsafe.reports.figures_sweep_settings import effects_figure, grid_figure
from geomsafe.reports.figures_sweep_tuning import tuning_figure
from geomsafe.reports.figures_sweep_twin import sham_figure


def sweep_context(analysis: dict[str, Any]) -> dict[str, Any]:
    """Return what the template needs to show a sweep.

    Args:
        analysis: analysis.json.

    Returns:
        sweep_figures, sweep_rows by condition and sweep_looks; all empty where no sweep was analysed.
    """
    if not analysed(analysis):
        return {"sweep_figures": [], "sweep_rows": [], "sweep_looks": {}}
    rows = analysis["tables"]["sweep"]["rows"]
    return {
        "sweep_figures": sweep_figures(analysis),
        "sweep_rows": [(condition, of_condition(rows, condition)) for condition in conditions(analysis)],
        "sweep_looks": sweep_looks(analysis),
    }


def sweep_figures(analysis: dict[str, Any]) -> list[Figure]:
    """Draw the figures of a sweep.

    Args:
        analysis: analysis.json of a sweep.

    Returns:
        The figures, in the order of the page; the first stands above the sweep's table.
    """
    return [
        curves_figure(analysis),
        pareto_figure(analysis),
        matched_figure(analysis),
        sham_figure(analysis),
        tuning_figure(analysis),
        grid_figure(analysis),
        effects_figure(analysis),
    ]


def swept_arms(analysis: dict[str, Any]) -> dict[str, str]:
    """Name the arms of single runs that the sweep shows first: of last iterates, by run.

    Args:
        analysis: analysis.json.

    Returns:
        Key of the table of arms -> arm and condition of the sweep; one arm's conditions stand together.
    """
    if not analysed(analysis):
        return {}
    tables = analysis["tables"]
    keys = {row["run"]: row["key"] for row in tables["points"]["rows"] if row["weights"] == "final"}
    runs = {(row["arm"], row["condition"] or ""): row["run"] for row in tables["curves"]["rows"]}
    found: dict[str, str] = {}
    for arm in first_arms(analysis):
        for condition in conditions(analysis):
            key = keys.get(runs.get((arm, condition), ""))
            if key is not None:
                found.setdefault(key, f"{arm}, {condition}" if condition else arm)
    return found


def with_names(analysis: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Return the analysis with other labels of arms, for legends; keys that are not named keep theirs."""
    scope = analysis["scope"]
    arms = {key: names.get(key, label) for key, label in scope["arms"].items()}
    return {**analysis, "scope": {**scope, "arms": arms}}


def narrowed(analysis: dict[str, Any], keys: set[str]) -> tuple[dict[str, Any], int]:
    """Keep the arms of the first table for the figures of single runs where a sweep has too many to draw.

    Args:
        analysis: analysis.json.
        keys: arms of the first table.

    Returns:
        The analysis to draw, and how many arms it leaves out; the same and 0 where no sweep was analysed.
    """
    if not analysed(analysis):
        return analysis, 0
    arms = {key: label for key, label in analysis["scope"]["arms"].items() if key in keys}
    dropped = set(analysis["scope"]["arms"]) - set(arms)
    tables = {
        name: {**table, "rows": [row for row in table["rows"] if row.get("key") not in dropped]}
        for name, table in analysis["tables"].items()
        if name != "sweep"
    }
    return {**analysis, "scope": {**analysis["scope"], "arms": arms}, "tables": tables}, len(dropped)
