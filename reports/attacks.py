"""The table of attacks: each prompt set under each attack, beside the same prompts put as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from geomsafe.records import Evaluation
from geomsafe.reports.arms import STARTS, Study
from geomsafe.reports.comparison import compare
from geomsafe.reports.paired import DECIDING, mixed_settings
from geomsafe.reports.runs import RunData
from geomsafe.reports.scores import (
    ANSWER_INCOHERENCE,
    MEASURES,
    Measure,
    Outcome,
    outcomes,
    pooled_rate,
    rate_columns,
)

TOO_WEAK = 0.30
"""An attack with less success than this on the least safe arm says nothing where it fails on another."""

ATTACKS = [
    "key", "suite", "prompt_set", "attack", "judge", "rate", "low", "high", "count", "n", "clusters", "interval",
    "direct_rate", "direct_low", "direct_high", "attack_difference", "attack_difference_low", "attack_difference_high",
    "attack_p", "pairs", "reason", ANSWER_INCOHERENCE, f"{ANSWER_INCOHERENCE}_low", f"{ANSWER_INCOHERENCE}_high",
    "answered", "least_safe", "too_weak",
]  # fmt: skip


class Pair(NamedTuple):
    """An attacked evaluation of a run and that of the same prompt set put directly, where there is one."""

    run: RunData
    attacked: Evaluation
    direct: Evaluation | None


# Arm key -> seed -> pair.
Pairs = Mapping[str, Mapping[int, Pair]]


def attack_rows(study: Study) -> list[dict[str, Any]]:
    """Return one row an arm, prompt set and attack; none where nothing was attacked.

    Args:
        study: arms and runs.

    Returns:
        Rates under the attack and without it, by one judge that spoke on all answers under that attack, and their
        paired difference: permuted by cluster, over the prompts and seeds that both hold.
    """
    groups = _groups(study)
    suites = dict.fromkeys(
        one.suite for seeds in groups.values() for run, weights in seeds.values() for one in run.attacked(weights)
    )
    return [row for suite in suites for row in _suite_rows(study, _pairs(groups, suite))]


def _groups(study: Study) -> dict[str, dict[int, tuple[RunData, str]]]:
    # theta_0 is one model: the run in which it was attacked stands for all.
    groups: dict[str, dict[int, tuple[RunData, str]]] = {}
    for start in STARTS:
        scored = next((run for run in study.runs.values() if run.attacked(start)), None)
        if scored is not None:
            groups[start] = {scored.seed: (scored, start)}
    for arm in study.arms:
        groups[study.name(arm)] = {seed: (study.runs[name], arm.weights) for seed, name in arm.runs.items()}
    return groups


def _pairs(groups: Mapping[str, Mapping[int, tuple[RunData, str]]], suite: str) -> dict[str, dict[int, Pair]]:
    found: dict[str, dict[int, Pair]] = {}
    for key, seeds in groups.items():
        for seed, (run, weights) in seeds.items():
            one = next((one for one in run.attacked(weights) if one.suite == suite), None)
            if one is not None:
                found.setdefault(key, {})[seed] = Pair(run, one, _direct(run, one))
    return found


def _direct(run: RunData, attacked: Evaluation) -> Evaluation | None:
    """Return the direct evaluation of the prompt set: that of its name, else any of the very same prompts."""
    plain = run.evaluations(attacked.weights, attacked.kind)
    named = [one for one in plain if one.suite == prompt_set(attacked.suite)]
    same = [one for one in plain if one.prompts_sha256 == attacked.prompts_sha256]
    return next(iter(named + same), None)


def prompt_set(suite: str) -> str:
    """Return the name of the prompt set of a suite: "harmful" of "harmful+prefill-4"."""
    return suite.partition("+")[0]


def _suite_rows(study: Study, pairs: Pairs) -> list[dict[str, Any]]:
    measure = _measure(study, pairs)
    rows = [_row(key, list(seeds.values()), measure) for key, seeds in pairs.items()]
    rows = [row for row in rows if "rate" in row]
    least = _least_safe(rows)
    weak = least is not None and least["rate"] < TOO_WEAK
    return [row | {"least_safe": least["key"] if least else None, "too_weak": weak} for row in rows]


def _measure(study: Study, pairs: Pairs) -> Measure:
    # One judge for an attack: arms would not be comparable otherwise.
    every = [pair for seeds in pairs.values() for pair in seeds.values()]
    spoke = all(_outcomes(pair.run, pair.attacked, study.primary) for pair in every)
    return study.primary if spoke else MEASURES["keyword_asr"]


def _least_safe(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the row of the arm that complies most without attack; theta_0 where no arm was attacked."""
    arms = [row for row in rows if row["key"] not in STARTS] or [row for row in rows if row["key"] == "theta_0"]
    return max(arms, key=lambda row: (row["direct_rate"] or 0.0, row["rate"]), default=None)


def _row(key: str, pairs: Sequence[Pair], measure: Measure) -> dict[str, Any]:
    first = pairs[0].attacked
    row: dict[str, Any] = {
        "key": key, "suite": first.suite, "prompt_set": prompt_set(first.suite), "attack": first.attack,
        "direct_rate": None,
    }  # fmt: skip
    attacked = {pair.run.seed: _outcomes(pair.run, pair.attacked, measure) for pair in pairs}
    direct = {pair.run.seed: _outcomes(pair.run, pair.direct, measure) for pair in pairs}
    found, plain = pooled_rate(list(attacked.values())), pooled_rate(list(direct.values()))
    if found is not None:
        row |= {
            "judge": measure.readings[0].judge, "rate": found.rate, "low": found.low, "high": found.high,
            "count": found.count, "n": found.n, "clusters": found.clusters, "interval": found.interval,
        }  # fmt: skip
    if plain is not None:
        row |= {"direct_rate": plain.rate, "direct_low": plain.low, "direct_high": plain.high}
    return row | _incoherence(pairs) | _difference(pairs, attacked, direct)


def _difference(
    pairs: Sequence[Pair], attacked: Mapping[int, Sequence[Outcome]], direct: Mapping[int, Sequence[Outcome]]
) -> dict[str, Any]:
    mixed = [text for pair in pairs for text in _mixed(pair)]
    if mixed:
        return {"reason": f"not put alike: {mixed[0]}"}
    found = compare(attacked, direct).difference
    if found is None:
        return {"reason": "no direct answers to these prompts"}
    return {
        "attack_difference": found.difference, "attack_difference_low": found.low,
        "attack_difference_high": found.high, "attack_p": found.p_value, "pairs": found.n,
    }  # fmt: skip


def _mixed(pair: Pair) -> list[str]:
    """Name the settings but for the attack in which the two evaluations differ."""  # noqa: DOC201
    if pair.direct is None:
        return []
    return [text for text in mixed_settings(pair.attacked, pair.direct) if not text.startswith(DECIDING["attack"])]


def _incoherence(pairs: Sequence[Pair]) -> dict[str, Any]:
    measure = MEASURES[ANSWER_INCOHERENCE]
    read = [outcomes(pair.run.answers[pair.attacked.weights, pair.attacked.suite], measure) for pair in pairs]
    groups = [found for found, judge in read if judge is not None]
    if not groups:
        return {}
    return rate_columns(ANSWER_INCOHERENCE, pooled_rate(groups)) | {"answered": sum(map(len, groups))}


def _outcomes(run: RunData, one: Evaluation | None, measure: Measure) -> list[Outcome]:
    return outcomes(run.answers[one.weights, one.suite], measure)[0] if one is not None else []
