"""Tables from the captures: distances, and what the probes say over steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from geomsafe.analyses import distances, subspace_drift
from geomsafe.reports.arms import Study
from geomsafe.reports.captures import Capture
from geomsafe.reports.runs import RunData

DISTANCES = ["key", "run", "seed", "step", "layer", "l2", "relative"]
PROBES = [
    "key", "run", "seed", "step", "distance", "relative_distance", "safety_loss", "utility_loss", "refusal_nll",
    "refusal_margin", "refusal_margin_low", "refusal_margin_high", "refusal_log_odds", "dot_safety", "dot_utility",
    "safety_change", "update_distance", "update_dot_safety", "update_dot_utility", "safety_turn", "safety_turn_sd",
]  # fmt: skip


def distance_rows(study: Study) -> list[dict[str, Any]]:
    """Return the distance of each layer and of all, for every capture."""
    rows = []
    for place, _, capture in captures(study):
        moved, start = capture.get("displacement_norm"), capture.get("parameter_norm")
        if moved is None or start is None:
            continue
        found = [*distances.layer_distances(capture.names, moved, start), distances.total_distance(moved, start)]
        rows += [{**place, "layer": one.label, "l2": one.l2, "relative": one.relative} for one in found]
    return rows


def probe_rows(study: Study) -> list[dict[str, Any]]:
    """Return losses, refusal functionals and inner products with displacement and update, for every capture."""
    rows = []
    start: dict[str, float] = {}
    sketches: dict[str, np.ndarray] = {}
    for place, _, capture in captures(study):
        row: dict[str, Any] = dict(place)
        moved, norms, update = (capture.get(f"{name}_norm") for name in ("displacement", "parameter", "update"))
        if moved is not None and norms is not None:
            total = distances.total_distance(moved, norms)
            row |= {"distance": total.l2, "relative_distance": total.relative}
        if update is not None and capture.step > 0:
            row["update_distance"] = float(np.linalg.norm(update))
        row |= {"safety_loss": capture.loss("safety"), "utility_loss": capture.loss("utility")}
        row |= _refusals(capture)
        for kind in ("safety", "utility"):
            for key, what in ((f"dot_{kind}", "displacement"), (f"update_dot_{kind}", "update")):
                dots = capture.dots(what, kind) if what == "displacement" or capture.step > 0 else None
                if dots is not None:
                    row[key] = float(dots.sum())
        if capture.step == 0 and row["safety_loss"] is not None:
            start[place["run"]] = row["safety_loss"]
        if place["run"] in start and row["safety_loss"] is not None:
            row["safety_change"] = row["safety_loss"] - start[place["run"]]
        sketch = capture.get("safety_sketch")
        if sketch is not None:
            row |= _turn(sketches.setdefault(place["run"], sketch), sketch, capture.step)
        rows.append(row)
    return rows


def captures(study: Study) -> Iterator[tuple[dict[str, Any], RunData, Capture]]:
    """Go through all captures, runs in the order of the study, steps rising.

    Args:
        study: the runs.

    Yields:
        Arm key, run, seed and step; the run; the capture.
    """
    for name, run in study.runs.items():
        arm = study.arm_of(name)
        for capture in sorted(run.captures, key=lambda one: one.step):
            key = study.name(arm) if arm else None
            yield {"key": key, "run": name, "seed": run.seed, "step": capture.step}, run, capture


def ends(study: Study) -> Iterator[tuple[dict[str, Any], RunData, Capture]]:
    """Go through the first and last capture of each run: there the control sets are measured."""
    for place, run, capture in captures(study):
        steps = [one.step for one in run.captures]
        if capture.step in {min(steps), max(steps)}:
            yield place, run, capture


def _refusals(capture: Capture) -> dict[str, float]:
    row: dict[str, float] = {}
    for key in ("refusal_nll", "refusal_margin", "refusal_log_odds"):
        values = capture.get(key)
        if values is not None and values.size:
            row[key] = float(values.mean())
    margins = capture.get("refusal_margin")
    if margins is not None and margins.size:
        row["refusal_margin_low"], row["refusal_margin_high"] = map(float, np.quantile(margins, [0.1, 0.9]))
    return row


def _turn(start: np.ndarray, now: np.ndarray, step: int) -> dict[str, float]:
    found = subspace_drift.sketch_cosine(start, now) if step > 0 else None
    return {} if found is None else {"safety_turn": found.cosine, "safety_turn_sd": found.deviation}
