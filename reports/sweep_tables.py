"""All tables of a sweep, in the order in which they are read; without one they have no rows."""

from __future__ import annotations

from typing import Any

from geomsafe.reports.columns import table
from geomsafe.reports.sweep_arms import Sweep
from geomsafe.reports.sweep_contrasts import SweepContrast
from geomsafe.reports.sweep_matched import MATCHED, matched_rows
from geomsafe.reports.sweep_places import CURVES, curve_rows
from geomsafe.reports.sweep_predictors import PREDICTORS, predictor_rows
from geomsafe.reports.sweep_settings import EFFECTS, GRID, TUNING, effect_rows, grid_rows, tuning_rows
from geomsafe.reports.sweep_table import SWEEP, sweep_rows


def sweep_tables(sweep: Sweep | None, contrasts: list[SweepContrast]) -> dict[str, dict[str, Any]]:
    """Return the tables of a sweep by their key.

    Args:
        sweep: the arms, None where only runs were given.
        contrasts: (arms,) their differences.

    Returns:
        Seven tables, as `table` makes them.
    """
    matched = matched_rows(sweep) if sweep else []
    return {
        name: table(title, note, keys, rows)
        for name, title, note, keys, rows in (
            ("sweep", "Arms of the sweep", "pooled over seeds; difference to the control that the plan names",
             SWEEP, sweep_rows(sweep, contrasts, matched) if sweep else []),
            ("curves", "Curves of the sweep", "checkpoints of last iterates; theta_0 first",
             CURVES, curve_rows(sweep) if sweep else []),
            ("matched", "Matched comparisons", "comparator's curve read at the arm's place; a reason = not comparable",
             MATCHED, matched),
            ("effects", "Main effects of settings", "one setting at a time; shares overlap unless settings are crossed",
             EFFECTS, effect_rows(sweep) if sweep else []),
            ("tuning", "Equal tuning budget", "chosen by validation utility alone; low and high are seeds",
             TUNING, tuning_rows(sweep) if sweep else []),
            ("grid", "Grid of plain baselines", "means over seeds",
             GRID, grid_rows(sweep) if sweep else []),
            ("predictors", "Drift as predictor of attack success", "over all weight sets of all runs, theta_0 left out",
             PREDICTORS, predictor_rows(sweep) if sweep else []),
        )
    }  # fmt: skip
