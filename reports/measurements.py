"""The table of measurements: multiple choice, held-out loss, harness tasks and MT-Bench, as the runs recorded them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from geomsafe.records import Measurement
from geomsafe.reports.arms import STARTS, Study

MEASUREMENTS = [
    "key",
    "run",
    "seed",
    "weights",
    "measurement",
    "metric",
    "direction",
    "value",
    "standard_error",
    "items",
    "source",
]


def measurement_rows(study: Study) -> list[dict[str, Any]]:
    """Return one row a run, weight set, measure and metric; theta_0 once where runs agree on it.

    Args:
        study: arms and runs.

    Returns:
        The rows, those of one measure and metric below each other, starts first.
    """
    rows: list[dict[str, Any]] = []
    seen: list[Measurement] = []
    for name, run in study.runs.items():
        for one in run.record.measurements:
            if one.weights in STARTS:
                if one in seen:
                    continue
                seen.append(one)
            rows += [
                {"key": _key(study, name, one.weights), "run": name, "seed": run.seed} | row for row in _metrics(one)
            ]
    order = {place: index for index, place in enumerate(dict.fromkeys((r["measurement"], r["metric"]) for r in rows))}
    return sorted(rows, key=lambda row: (order[row["measurement"], row["metric"]], row["weights"] not in STARTS))


def _metrics(one: Measurement) -> Iterator[dict[str, Any]]:
    directions = {True: "higher", False: "lower", None: None}
    for metric, value in one.values.items():
        yield {
            "weights": one.weights,
            "measurement": one.name,
            "metric": metric,
            "direction": directions[one.higher_is_better.get(metric)],
            "value": value,
            "standard_error": one.errors.get(metric),
            "items": one.n.get(metric),
            "source": one.source,
        }


def _key(study: Study, run: str, weights: str) -> str | None:
    """Return the short name of the arm that a run's weight set is in, None for one that no arm has."""
    if weights in STARTS:
        return weights
    found = (arm for arm in study.arms if arm.weights == weights and run in arm.runs.values())
    return next((study.name(arm) for arm in found), None)
