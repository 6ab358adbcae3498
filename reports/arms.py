"""The table of arms: every rate, its control and the paired difference to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

from geomsafe.analyses import drift, pairing, rates, verdict
from geomsafe.analyses.pairing import Arm, Contrast
from geomsafe.analyses.rates import Difference, SeedTest
from geomsafe.analyses.verdict import Word
from geomsafe.reports.columns import MEASURES as MEASURE_COLUMNS
from geomsafe.reports.comparison import Comparison, compare
from geomsafe.reports.runs import RunData
from geomsafe.reports.scores import (
    ANSWER_INCOHERENCE,
    MEASURES,
    Measure,
    answered,
    outcomes,
    pooled_rate,
    rate_columns,
    run_outcomes,
    suite_of,
    total_answered,
)

STARTS = ("theta_base", "theta_0")


@dataclass(frozen=True)
class Result:
    """An arm's contrast with what the data say; `difference` is None where nothing was paired."""

    arm: Arm
    contrast: Contrast
    difference: Difference | None
    against_baseline: Difference | None
    seeds: SeedTest | None
    seeds_p: float | None
    paired_seeds: int

    @property
    def word(self) -> Word | None:
        """The verdict word, None without a control."""
        if self.difference is None:
            return None
        plain = self.against_baseline if self.contrast.baseline != self.contrast.control else None
        return verdict.judge(_effect(self.difference), _effect(plain) if plain else None, self.seeds_p)


@dataclass(frozen=True)
class Study:
    """Runs, arms and contrasts; `primary` is the measure that verdicts are about."""

    runs: Mapping[str, RunData]
    arms: Sequence[Arm]
    results: Sequence[Result]
    primary: Measure

    @property
    def first(self) -> RunData:
        """The first run: theta_0 is the same in all."""
        return next(iter(self.runs.values()))

    def name(self, arm: Arm) -> str:
        """Return the arm's short name, A, B, C, ... in their order."""
        return short_name(self.arms.index(arm))

    def arm_of(self, run: str) -> Arm | None:
        """Return the arm of a run's last iterate, whose steps the run recorded."""
        return next((arm for arm in self.arms if run in arm.runs.values() and arm.weights == "final"), None)

    def labels(self) -> dict[str, str]:
        """Return arm key -> label."""
        return {arm.key: arm.label for arm in self.arms}


def make_study(runs: Mapping[str, RunData]) -> Study:
    """Form arms and contrasts and compare them.

    Args:
        runs: finished runs by their unique name.

    Returns:
        The study.
    """
    arms = pairing.make_arms([run.paired(name) for name, run in runs.items()])
    primary = _primary(list(runs.values()))
    results = [
        _result(arm, contrast, arms, runs, primary)
        for arm, contrast in zip(arms, pairing.make_contrasts(arms), strict=True)
    ]
    # The seed tests of all contrasts are one family.
    tested = [index for index, one in enumerate(results) if one.seeds is not None and one.seeds.n > 3]
    adjusted = rates.holm([results[index].seeds.p_value for index in tested])  # type: ignore[union-attr]
    for index, p in zip(tested, adjusted, strict=True):
        results[index] = replace(results[index], seeds_p=p)
    return Study(runs, arms, results, primary)


def arm_columns() -> list[str]:
    """Return the columns of the table of arms."""
    measured = [f"{key}{part}" for key in MEASURE_COLUMNS for part in ("", "_low", "_high", "_min", "_max")]
    return [
        "key", "arm", "weights", "seeds", "n", "clusters", *measured, "answered", "effective_lr", "window", "distance",
        "relative_distance", "control", "control_kind", "basis", "difference", "difference_low", "difference_high",
        "p_value", "seeds_p", "detectable", "interval", "baseline_difference", "baseline_low", "baseline_high",
        "curve_rate", "curve_difference", "word",
    ]  # fmt: skip


SUITES = ["key", "suite", "measure", "judge", "rate", "low", "high", "count", "n", "clusters", "interval"]


def arm_rows(study: Study, points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Make the table of arms.

    Args:
        study: arms and contrasts.
        points: the table of points, for the curve of the baselines.

    Returns:
        One row a start (theta_base, theta_0) and arm.
    """
    rows = [row for start in STARTS if (row := _start_row(study, start))]
    curve = _baseline_curve(study, points)
    for result in study.results:
        row = _arm_row(study, result)
        rate, place = row.get(study.primary.key), row.get("relative_distance")
        if result.arm.methods and rate is not None and place is not None:
            row["curve_rate"] = drift.curve_at(place, [x for x, _ in curve], [y for _, y in curve])
            row["curve_difference"] = None if row["curve_rate"] is None else rate - row["curve_rate"]
        rows.append(row)
    return rows


def point_columns() -> list[str]:
    """Return the columns of the table of points."""
    measured = [f"{key}{part}" for key in MEASURE_COLUMNS for part in ("", "_low", "_high")]
    return ["key", "run", "seed", "weights", "step", "distance", "relative_distance", "n", *measured, "answered"]


def point_rows(study: Study) -> list[dict[str, Any]]:
    """Return one row for every scored weight set of every run; theta_0 and theta_base once."""
    rows = []
    for start in STARTS:
        found = _rates_of(study.first, start)
        if found:
            place = study.first.record.weights.get(start)
            zero = 0.0 if start == "theta_0" else None
            rows.append({
                "key": start,
                "weights": start,
                "step": 0 if start == "theta_0" else None,
                "distance": place.distance if place else zero,
                "relative_distance": place.relative_distance if place else zero,
                **found,
            })
    for name, run in study.runs.items():
        for weights in sorted({one.weights for one in run.record.evaluations} - set(STARTS)):
            arm = next((arm for arm in study.arms if arm.runs.get(run.seed) == name and arm.weights == weights), None)
            arm = arm or (study.arm_of(name) if weights.startswith("step-") else None)
            place = run.record.weights.get(weights)
            rows.append({
                "key": study.name(arm) if arm else None,
                "run": name,
                "seed": run.seed,
                "weights": weights,
                "step": place.step if place else None,
                "distance": place.distance if place else None,
                "relative_distance": place.relative_distance if place else None,
                **_rates_of(run, weights),
            })
    return rows


def suite_rows(study: Study) -> list[dict[str, Any]]:
    """Return every measure on every suite of every arm, not only on the first suite of a kind."""
    rows = []
    for start in STARTS:
        rows += _suite_rows(start, [(study.first, start)])
    for arm in study.arms:
        rows += _suite_rows(study.name(arm), [(study.runs[run], arm.weights) for run in arm.runs.values()])
    return rows


def short_name(index: int) -> str:
    """Return A, B, ..., Z, A1, B1, ... for the number of an arm."""
    letter = chr(ord("A") + index % 26)
    return letter if index < 26 else f"{letter}{index // 26}"


def _suite_rows(key: str, sources: Sequence[tuple[RunData, str]]) -> list[dict[str, Any]]:
    rows = []
    for measure in MEASURES.values():
        suites = {one.suite: None for run, weights in sources for one in run.evaluations(weights, measure.kind)}
        for suite in suites:
            read = [
                outcomes(run.answers[weights, suite], measure)
                for run, weights in sources
                if (weights, suite) in run.answers
            ]
            found = pooled_rate([one for one, _ in read])
            if found is None:
                continue
            judge = next(judge for _, judge in read if judge)
            rows.append({
                "key": key, "suite": suite, "measure": measure.key, "judge": judge, "rate": found.rate,
                "low": found.low, "high": found.high, "count": found.count, "n": found.n,
                "clusters": found.clusters, "interval": found.interval,
            })  # fmt: skip
    return rows


def _baseline_curve(study: Study, points: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    # Mean (relative distance, primary rate) of theta_0 and of each weight set of each baseline.
    plain = {study.name(arm) for arm in study.arms if arm.is_baseline} | {"theta_0"}
    groups: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in points:
        place, rate = row.get("relative_distance"), row.get(study.primary.key)
        if row["key"] in plain and place is not None and rate is not None:
            groups.setdefault((row["key"], row["weights"]), []).append((place, rate))
    return [(mean(x for x, _ in found), mean(y for _, y in found)) for found in groups.values()]


def _primary(runs: Sequence[RunData]) -> Measure:
    # Gold where the world's grammar judged every harmful answer set, else keywords.
    gold = MEASURES["gold_asr"]
    for run in runs:
        for weights in {one.weights for one in run.record.evaluations}:
            if run.evaluations(weights, "harmful") and not run_outcomes(run, weights, gold):
                return MEASURES["keyword_asr"]
    return gold


def _result(arm: Arm, contrast: Contrast, arms: Sequence[Arm], runs: Mapping[str, RunData], primary: Measure) -> Result:
    named = {one.key: one for one in arms}
    control = named[contrast.control] if contrast.control else None
    baseline = named[contrast.baseline] if contrast.baseline else None
    difference, each = _compare(arm, control, runs, primary)
    plain, _ = _compare(arm, baseline, runs, primary)
    return Result(arm, contrast, difference, plain, rates.seed_test(each), None, len(each))


def _compare(arm: Arm, control: Arm | None, runs: Mapping[str, RunData], primary: Measure) -> Comparison:
    if control is None:
        return Comparison(None, [])
    ours, theirs = (
        {seed: run_outcomes(runs[name], one.weights, primary) for seed, name in one.runs.items()}
        for one in (arm, control)
    )
    return compare(ours, theirs)


def _start_row(study: Study, start: str) -> dict[str, Any]:
    found = _rates_of(study.first, start)
    if not found and start != "theta_0":
        return {}
    place = study.first.record.weights.get(start)
    zero = 0.0 if start == "theta_0" else None
    return {
        "key": start,
        "arm": "θ₀, the aligned start" if start == "theta_0" else "θ_base, before alignment",
        "weights": start,
        "distance": place.distance if place else zero,
        "relative_distance": place.relative_distance if place else zero,
        "basis": "the start of every run",
        **found,
    }


def _arm_row(study: Study, result: Result) -> dict[str, Any]:
    arm, contrast, difference, plain = result.arm, result.contrast, result.difference, result.against_baseline
    row: dict[str, Any] = {
        "key": study.name(arm),
        "arm": arm.label,
        "weights": arm.weights,
        "seeds": len(arm.runs),
        "effective_lr": arm.effective_lr,
        "window": arm.window,
        "control": next((study.name(one) for one in study.arms if one.key == contrast.control), None),
        "control_kind": contrast.kind,
        "basis": contrast.basis,
        "seeds_p": result.seeds_p,
        "word": result.word,
    }
    sources = [study.runs[run] for run in arm.runs.values()]
    for key, measure in MEASURES.items():
        groups = [run_outcomes(run, arm.weights, measure) for run in sources]
        found = pooled_rate(groups)
        row |= rate_columns(key, found, groups)
        if key == study.primary.key and found is not None:
            row |= {"n": found.n, "clusters": found.clusters}
    row["answered"] = total_answered((run, arm.weights) for run in sources)
    places = [run.record.weights[arm.weights] for run in sources if arm.weights in run.record.weights]
    if places:
        row["distance"] = sum(place.distance for place in places) / len(places)
        row["relative_distance"] = sum(place.relative_distance for place in places) / len(places)
    if difference is not None:
        row |= {
            "difference": difference.difference, "difference_low": difference.low, "difference_high": difference.high,
            "p_value": difference.p_value, "detectable": difference.detectable, "interval": difference.interval,
        }  # fmt: skip
    if plain is not None:
        row |= {"baseline_difference": plain.difference, "baseline_low": plain.low, "baseline_high": plain.high}
    return row


def _rates_of(run: RunData, weights: str) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key, measure in MEASURES.items():
        if suite_of(run, weights, measure) is None:
            continue
        found = pooled_rate([run_outcomes(run, weights, measure)])
        row |= rate_columns(key, found)
        if found is not None and measure.kind == "harmful" and key != ANSWER_INCOHERENCE:
            row["n"] = found.n
    if row:
        row["answered"] = answered(run, weights)
    return row


def _effect(found: Difference) -> verdict.Effect:
    return verdict.Effect(found.difference, found.low, found.high)
