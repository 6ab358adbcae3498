"""Which measure of drift explains attack success over all weight sets of a condition?"""

from __future__ import annotations

from typing import Any, NamedTuple

from geomsafe.analyses.collapse import left_out_r2, smoothed_logit
from geomsafe.analyses.drift import monotone_association
from geomsafe.reports.scores import run_outcomes, share
from geomsafe.reports.sweep_arms import Sweep
from geomsafe.reports.sweep_places import DRIFTS, drift_of

PREDICTORS = ["condition", "x", "rho", "n", "r2_left_out"]
XS = ("relative_distance", *DRIFTS)


class _Set(NamedTuple):
    family: str
    drift: dict[str, float | None]
    asr: float
    n: int


def predictor_rows(sweep: Sweep) -> list[dict[str, Any]]:
    """Return one row a condition and measure of drift; no values where it was not measured."""
    rows = []
    for condition in sweep.conditions:
        sets = _sets(sweep, condition)
        for x in XS:
            pairs = [(value, one) for one in sets if (value := one.drift[x]) is not None]
            places, found = [value for value, _ in pairs], [one for _, one in pairs]
            rows.append({
                "condition": condition,
                "x": x,
                "rho": monotone_association(places, [one.asr for one in found]).rho,
                "n": len(found),
                "r2_left_out": left_out_r2(
                    places, [smoothed_logit(one.asr, one.n) for one in found], [one.family for one in found]
                ),
            })
    return rows


def _sets(sweep: Sweep, condition: str) -> list[_Set]:
    """Every scored weight set of the condition's runs but theta_0, under the family of its arm, else of its run's."""  # noqa: DOC201
    arms = [arm for arm in sweep.arms if arm.condition == condition]
    families: dict[tuple[str, str], str] = {}
    owners: dict[str, str] = {}
    for arm in arms:
        for place in arm.places.values():
            families.setdefault((place.name, place.weights), arm.family)
            if place.weights == "final" or place.name not in owners:
                owners[place.name] = arm.family
    found = []
    for name, owner in owners.items():
        run = sweep.runs[name]
        for weights in dict.fromkeys(one.weights for one in run.record.evaluations):
            outcomes = run_outcomes(run, weights, sweep.primary)
            if outcomes and weights not in {"theta_0", "theta_base"}:
                family = families.get((name, weights), owner)
                found.append(_Set(family, drift_of(run, weights), share(outcomes), len(outcomes)))
    return found
