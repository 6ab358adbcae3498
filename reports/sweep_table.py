"""The table of a sweep: every arm under every condition, its rates, its drift and its differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from geomsafe.analyses.rates import Difference
from geomsafe.analyses.tradeoffs import pareto_front
from geomsafe.reports.columns import MEASURES as MEASURE_COLUMNS
from geomsafe.reports.scores import MEASURES, pooled_rate, rate_columns, share, total_answered
from geomsafe.reports.sweep_arms import Sweep, SweepArm
from geomsafe.reports.sweep_contrasts import SweepContrast
from geomsafe.reports.sweep_matched import RADIAL
from geomsafe.reports.sweep_places import DRIFTS, drift_of

# An arm that answers in gibberish is no trade-off between safety and utility.
INCOHERENT = 0.05

SWEEP = [
    "condition", "key", "arm", "family", "weights", "seeds", "n", "clusters",
    *(f"{key}{part}" for key in MEASURE_COLUMNS for part in ("", "_low", "_high", "_min", "_max")), "answered",
    "distance", "relative_distance", *DRIFTS,
    "control", "difference", "difference_low", "difference_high", "p_value", "seeds_p", "detectable", "interval",
    "baseline_difference", "baseline_low", "baseline_high",
    "radial_rate", "radial_difference", "radial_low", "radial_high",
    "sham_difference", "sham_low", "sham_high", "word", "pareto", "strength",
]  # fmt: skip


def sweep_rows(
    sweep: Sweep, contrasts: Sequence[SweepContrast], matched: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Make the table of a sweep.

    Args:
        sweep: the arms.
        contrasts: (arms,) their differences, in their order.
        matched: the table of matched comparisons, for the radial control.

    Returns:
        One row an arm and condition, in the order of the plan.
    """
    radial = {(row["condition"], row["arm"]): row for row in matched if row["comparator"] == RADIAL}
    fronts = _fronts(sweep)
    return [
        _row(sweep, str(number), contrast, radial.get((contrast.arm.condition, contrast.arm.name), {}))
        | {"pareto": fronts.get((contrast.arm.condition, contrast.arm.name))}
        for number, contrast in enumerate(contrasts, start=1)
    ]


def mean_rate(arm: SweepArm, key: str) -> float | None:
    """Return the mean over seeds of an arm's rate, None where it was not measured."""
    found = [share(outcomes) for outcomes in arm.outcomes(MEASURES[key]).values()]
    return fmean(found) if found else None


def mean_drift(arm: SweepArm) -> dict[str, float]:
    """Return the means over seeds of every drift that all seeds of an arm have."""
    each = [drift_of(place.run, place.weights) for place in arm.places.values()]
    found = {}
    for name in each[0] if each else ():
        known = [value for one in each if (value := one[name]) is not None]
        if len(known) == len(each):
            found[name] = fmean(known)
    return found


def _row(sweep: Sweep, key: str, contrast: SweepContrast, radial: Mapping[str, Any]) -> dict[str, Any]:
    arm = contrast.arm
    row: dict[str, Any] = {
        "condition": arm.condition, "key": key, "arm": arm.name, "family": arm.family, "weights": arm.weights,
        "seeds": len(arm.places), "control": contrast.control, "seeds_p": contrast.seeds_p, "word": contrast.word,
        "strength": contrast.strength, **mean_drift(arm),
    }  # fmt: skip
    for name, measure in MEASURES.items():
        groups = list(arm.outcomes(measure).values())
        found = pooled_rate(groups)
        row |= rate_columns(name, found, groups)
        if name == sweep.primary.key and found is not None:
            row |= {"n": found.n, "clusters": found.clusters}
    row["answered"] = total_answered((place.run, place.weights) for place in arm.places.values())
    own = contrast.difference
    if own is not None:
        row |= {"p_value": own.p_value, "detectable": own.detectable, "interval": own.interval}
    row |= _columns(own, "difference", "difference")
    row |= _columns(contrast.against_reference, "baseline_difference", "baseline")
    row |= _columns(contrast.sham, "sham_difference", "sham")
    if radial.get("difference") is not None:
        row |= {
            "radial_rate": radial["other_rate"], "radial_difference": radial["difference"],
            "radial_low": radial["difference_low"], "radial_high": radial["difference_high"],
        }  # fmt: skip
    return row


def _columns(found: Difference | None, key: str, stem: str) -> dict[str, float]:
    return {} if found is None else {key: found.difference, f"{stem}_low": found.low, f"{stem}_high": found.high}


def _fronts(sweep: Sweep) -> dict[tuple[str, str], bool]:
    # Arms without either rate are on no front and off none: they have no entry.
    marks: dict[tuple[str, str], bool] = {}
    for condition in sweep.conditions:
        rates = {
            (condition, arm.name): (asr, utility, (mean_rate(arm, "incoherence") or 0.0) <= INCOHERENT)
            for arm in sweep.arms
            if arm.condition == condition
            and (asr := mean_rate(arm, sweep.primary.key)) is not None
            and (utility := mean_rate(arm, "utility")) is not None
        }
        sound = [key for key, (_, _, coherent) in rates.items() if coherent]
        front = pareto_front([rates[key][0] for key in sound], [rates[key][1] for key in sound])
        marks |= dict.fromkeys(rates, False) | dict(zip(sound, front, strict=True))
    return marks
