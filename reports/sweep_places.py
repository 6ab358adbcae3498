"""How far a weight set has moved, on every axis, and the curves that lead there; the table of curves."""

from __future__ import annotations

from typing import Any

from geomsafe.reports.runs import RunData
from geomsafe.reports.scores import MEASURES, share
from geomsafe.reports.sweep_arms import Sweep

DRIFTS = ("kl_task", "kl_harmful", "utility_loss", "refusal_margin")
RATES = ("gold_asr", "keyword_asr", "utility", "incoherence", "sham_loss")
CURVES = ["condition", "arm", "run", "seed", "weights", "step", "distance", "relative_distance", *DRIFTS, *RATES]


def drift_of(run: RunData, weights: str) -> dict[str, float | None]:
    """Return distance, relative distance and drift in behaviour of a weight set; None where not measured."""
    place, drift = run.record.weights.get(weights), run.record.drift.get(weights)
    start = 0.0 if weights == "theta_0" else None
    found: dict[str, float | None] = {
        "distance": place.distance if place else start,
        "relative_distance": place.relative_distance if place else start,
    }
    found |= {name: getattr(drift, name) if drift else None for name in DRIFTS}
    if weights == "theta_0":
        # theta_0 has not moved from itself, measured or not.
        found |= {"kl_task": 0.0, "kl_harmful": 0.0}
    return found


def path_sets(run: RunData) -> list[str]:
    """Return the weight sets on the path of training: theta_0, the intermediate ones by step, the last iterate."""
    sets = run.record.weights
    steps = sorted((name for name in sets if name.startswith("step-")), key=lambda name: sets[name].step)
    return ["theta_0", *steps, "final"]


def line_sets(run: RunData) -> list[str]:
    """Return the weight sets theta_0 + c (theta_T - theta_0), c from 0 to 1; none without one strictly between."""
    labels = {
        str(entry["label"]): float(entry["options"]["alpha"])
        for entry in run.record.methods
        if entry.get("name") == "interpolate" and "alpha" in entry.get("options", {})
    }
    between = sorted((alpha, label) for label, alpha in labels.items() if 0 < alpha < 1)
    return ["theta_0", *(label for _, label in between), "final"] if between else []


def rates_of(sweep: Sweep, run: RunData, weights: str) -> dict[str, float]:
    """Return the shares of a weight set's answers, without interval; a measure that was not taken is left out."""
    found = {key: sweep.set_outcomes(run, weights, MEASURES[key]) for key in RATES}
    return {key: share(outcomes) for key, outcomes in found.items() if outcomes}


def curve_rows(sweep: Sweep) -> list[dict[str, Any]]:
    """Return the checkpoints of every arm of last iterates, theta_0 first; unscored ones are left out."""
    rows = []
    for arm in sweep.arms:
        for seed, place in arm.places.items():
            if place.weights != "final":
                continue
            for weights in path_sets(place.run):
                rates = rates_of(sweep, place.run, weights)
                if sweep.primary.key not in rates:
                    continue
                held = place.run.record.weights.get(weights)
                rows.append({
                    "condition": arm.condition, "arm": arm.name, "run": place.name, "seed": seed, "weights": weights,
                    "step": held.step if held else 0, **drift_of(place.run, weights), **rates,
                })  # fmt: skip
    return rows
