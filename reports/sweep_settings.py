"""What the settings do: main effects, the grid of plain baselines, and choice at an equal tuning budget."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from geomsafe.analyses.effects import main_effect
from geomsafe.analyses.tradeoffs import choice_order, expected_choice
from geomsafe.reports.scores import MEASURES, run_outcomes, share
from geomsafe.reports.sweep_arms import Place, Sweep, SweepArm
from geomsafe.reports.sweep_places import drift_of
from geomsafe.reports.sweep_table import mean_rate
from geomsafe.reports.wording import number

EFFECTS = ["setting", "level", "n", "mean", "low", "high", "utility_mean", "share_of_variance"]
GRID = [
    "condition", "lr", "batch_size", "accumulation", "effective_batch", "seeds", "gold_asr", "keyword_asr", "utility",
    "incoherence", "relative_distance",
]  # fmt: skip
TUNING = ["family", "condition", "budget", "trials", "asr", "asr_low", "asr_high", "utility", "chosen"]
_CELL = ("lr", "batch_size", "accumulation")


class _Point(NamedTuple):
    condition: str
    place: Place
    asr: float
    utility: float | None


def effect_rows(sweep: Sweep) -> list[dict[str, Any]]:
    """Return one row a setting and level: among plain baselines, or all points of a plan without reference or them."""
    rows = []
    points = _points(sweep)
    for setting in _tuned(sweep, points):
        levels = [_level(point, setting) for point in points]
        found = main_effect(levels, [point.asr for point in points])
        for level in found.levels:
            utilities = [
                point.utility
                for point, name in zip(points, levels, strict=True)
                if name == level.level and point.utility is not None
            ]
            rows.append({
                "setting": setting, "level": level.level, "n": level.n, "mean": level.mean, "low": level.low,
                "high": level.high, "utility_mean": fmean(utilities) if utilities else None,
                "share_of_variance": found.share,
            })  # fmt: skip
    return rows


def grid_rows(sweep: Sweep) -> list[dict[str, Any]]:
    """Return one row a condition, learning rate, batch size and accumulation of the plain baselines."""
    cells: dict[tuple[Any, ...], list[Place]] = {}
    for arm in sweep.arms:
        if arm.is_plain:
            for place in arm.places.values():
                config = place.run.record.config
                cells.setdefault((arm.condition, *(config.get(name) for name in _CELL)), []).append(place)
    rows = []
    for (condition, lr, batch, accumulation), places in cells.items():
        row: dict[str, Any] = {
            "condition": condition, "lr": lr, "batch_size": batch, "accumulation": accumulation,
            "effective_batch": (batch or 1) * (accumulation or 1),
            "seeds": len({place.run.seed for place in places}),
        }  # fmt: skip
        for key in ("gold_asr", "keyword_asr", "utility", "incoherence"):
            groups = [run_outcomes(place.run, place.weights, MEASURES[key]) for place in places]
            shares = [share(group) for group in groups if group]
            row[key] = fmean(shares) if shares else None
        far = [x for place in places if (x := drift_of(place.run, place.weights)["relative_distance"]) is not None]
        rows.append(row | {"relative_distance": fmean(far) if far else None})
    return rows


def tuning_rows(sweep: Sweep) -> list[dict[str, Any]]:
    """Return one row a family, condition and number of trials: what choosing by validation utility alone gives."""
    rows = []
    for condition in sweep.conditions:
        for family in dict.fromkeys(arm.family for arm in sweep.arms):
            rows += _family_rows(
                sweep,
                condition,
                family,
                [arm for arm in sweep.arms if (arm.condition, arm.family) == (condition, family)],
            )
    return rows


def _family_rows(sweep: Sweep, condition: str, family: str, arms: Sequence[SweepArm]) -> list[dict[str, Any]]:
    trials = [
        arm
        for arm in arms
        if mean_rate(arm, "validation") is not None
        and mean_rate(arm, sweep.primary.key) is not None
        and mean_rate(arm, "utility") is not None
    ]
    if not trials:
        return []
    order = choice_order([mean_rate(arm, "validation") or 0.0 for arm in trials], [_loss(arm) for arm in trials])
    each = [{seed: share(found) for seed, found in arm.outcomes(sweep.primary).items()} for arm in trials]
    seeds = sorted(set.intersection(*(set(one) for one in each)))
    rows = []
    for budget in range(1, len(trials) + 1):
        by_seed = [expected_choice([one[seed] for one in each], order, budget) for seed in seeds]
        rows.append({
            "family": family, "condition": condition, "budget": budget, "trials": len(trials),
            "asr": expected_choice([fmean(one.values()) for one in each], order, budget),
            "asr_low": min(by_seed, default=None), "asr_high": max(by_seed, default=None),
            "utility": expected_choice([mean_rate(arm, "utility") or 0.0 for arm in trials], order, budget),
            "chosen": trials[order[0]].name,
        })  # fmt: skip
    return rows


def _loss(arm: SweepArm) -> float | None:
    drifts = [place.run.record.drift.get(place.weights) for place in arm.places.values()]
    found = [drift.validation_loss for drift in drifts if drift is not None and drift.validation_loss is not None]
    return fmean(found) if found and len(found) == len(drifts) else None


def _points(sweep: Sweep) -> list[_Point]:
    plain = [arm for arm in sweep.arms if arm.is_plain and arm.places]
    points = []
    for arm in plain if plain and sweep.record.reference is not None else sweep.arms:
        asr, utility = arm.outcomes(sweep.primary), arm.outcomes(MEASURES["utility"])
        for seed, place in arm.places.items():
            if seed in asr:
                found = share(utility[seed]) if seed in utility else None
                points.append(_Point(arm.condition, place, share(asr[seed]), found))
    return points


def _tuned(sweep: Sweep, points: Sequence[_Point]) -> list[str]:
    """Name the settings that vary within a condition, and the condition itself where there are several."""  # noqa: DOC201
    names = dict.fromkeys(name for point in points for name in point.place.settings)
    tuned = [
        name
        for name in names
        if any(
            len({_level(point, name) for point in points if point.condition == condition}) > 1
            for condition in sweep.conditions
        )
    ]
    return tuned + (["condition"] if len({point.condition for point in points}) > 1 else [])


def _level(point: _Point, setting: str) -> str:
    if setting == "condition":
        return point.condition
    return _text(_value(point.place, setting))


def _value(place: Place, setting: str) -> Any:
    settings: Mapping[str, Any] = place.settings
    # Runs are shared by points of several methods, so their list of methods is not the point's.
    return settings.get(setting, [] if setting == "method" else place.run.record.config.get(setting))


def _text(value: Any) -> str:
    if isinstance(value, list | dict):
        return json.dumps(value) if value else "none"
    return "none" if value is None else number(value)
