"""The table of categories: attack success and over-refusal by what the prompts are about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from geomsafe.analyses.categories import by_category
from geomsafe.reports.arms import STARTS, Study
from geomsafe.reports.runs import RunData
from geomsafe.reports.scores import MEASURES, Measure, Outcome, outcomes

CATEGORIES = [
    "key", "suite", "measure", "judge", "tag", "category", "rate", "low", "high", "count", "n", "clusters", "interval",
    "small",
]  # fmt: skip

# Tags that say what a prompt is about, the first with two values or more is used. XSTest has `type`, JailbreakBench
# and StrongREJECT `category`, the organism `kind`.
TAGS = {"harmful": ("category", "type", "kind"), "look-alike": ("type", "category", "kind")}

# Arm key -> the runs and weight sets that it pools.
Sources = Mapping[str, list[tuple[RunData, str]]]


def category_rows(study: Study) -> list[dict[str, Any]]:
    """Return one row an arm, suite and category, seeds pooled; none of suites whose prompts carry no categories.

    Args:
        study: arms and runs.

    Returns:
        Attack success on harmful suites, refusals on look-alike ones; prompts put directly only.
    """
    sources: dict[str, list[tuple[RunData, str]]] = {start: [(study.first, start)] for start in STARTS}
    sources |= {study.name(arm): [(study.runs[run], arm.weights) for run in arm.runs.values()] for arm in study.arms}
    rows = []
    for kind in TAGS:
        suites = dict.fromkeys(
            one.suite for each in sources.values() for run, weights in each for one in run.evaluations(weights, kind)
        )
        for suite in suites:
            rows += _suite_rows(sources, suite, kind, study.primary)
    return rows


def _suite_rows(sources: Sources, suite: str, kind: str, primary: Measure) -> list[dict[str, Any]]:
    held = {
        key: [run.answers[weights, suite] for run, weights in each if (weights, suite) in run.answers]
        for key, each in sources.items()
    }
    every = [one for answers in held.values() for one in answers]
    tag = next((tag for tag in TAGS[kind] if len(_values(one.tags.get(tag, ()) for one in every)) > 1), None)
    if tag is None:
        return []
    measure = MEASURES["over_refusal"] if kind == "look-alike" else primary
    if any(not outcomes(one, measure)[0] for one in every) and kind == "harmful":
        # One judge for all arms: they would not be comparable otherwise.
        measure = MEASURES["keyword_asr"]
    rows = []
    for key, answers in held.items():
        read = [(outcomes(one, measure), dict(zip(one.ids, one.tags.get(tag, ()), strict=False))) for one in answers]
        found: list[tuple[Outcome, str | None]] = [
            (outcome, about.get(outcome.prompt)) for (group, _), about in read for outcome in group
        ]
        if not found:
            continue
        judge = next(judge for (_, judge), _ in read if judge)
        for one in by_category(
            [bool(outcome.hit) for outcome, _ in found],
            [outcome.cluster for outcome, _ in found],
            [category for _, category in found],
        ):
            rows.append({
                "key": key, "suite": suite, "measure": measure.key, "judge": judge, "tag": tag,
                "category": one.category, "rate": one.rate.rate, "low": one.rate.low, "high": one.rate.high,
                "count": one.rate.count, "n": one.rate.n, "clusters": one.rate.clusters,
                "interval": one.rate.interval, "small": one.small,
            })  # fmt: skip
    return rows


def _values(columns: Iterable[Iterable[str | None]]) -> set[str]:
    return {value for column in columns for value in column if value}
