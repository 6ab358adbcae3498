"""The table of judges: keywords against the gold verdict on harmful prompts."""

from __future__ import annotations

from typing import Any

from geomsafe.analyses.agreement import judge_agreement
from geomsafe.reports.arms import STARTS, Study
from geomsafe.reports.runs import RunData
from geomsafe.reports.scores import GOLD_COMPLIANCE

JUDGES = ["key", "n", "kappa", "agreement", "both", "only_first", "only_second", "neither"]


def judge_rows(study: Study) -> list[dict[str, Any]]:
    """Return agreement for theta_0, each arm, and all of them together (key "all")."""
    groups: dict[str, list[tuple[bool, bool]]] = {}
    for start in STARTS:
        groups[start] = _verdicts(study.first, start)
    for arm in study.arms:
        groups[study.name(arm)] = [
            pair for run in arm.runs.values() for pair in _verdicts(study.runs[run], arm.weights)
        ]
    groups["all"] = [pair for key, pairs in groups.items() if key != "theta_base" for pair in pairs]
    rows = []
    for key, pairs in groups.items():
        if pairs:
            found = judge_agreement([keyword for keyword, _ in pairs], [gold for _, gold in pairs])
            rows.append({"key": key, **found._asdict()})
    return rows


def _verdicts(run: RunData, weights: str) -> list[tuple[bool, bool]]:
    pairs = []
    for one in run.evaluations(weights, "harmful"):
        said = run.answers[weights, one.suite].verdicts
        for keyword, gold in zip(said.get("keyword-29", ()), said.get("gold", ()), strict=False):
            if keyword and gold:
                pairs.append((keyword == "compliance", gold in GOLD_COMPLIANCE))
    return pairs
