"""What a reader must know before believing: warnings, and what was not run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from geomsafe.reports.arms import Study
from geomsafe.reports.judging import other_judges


def warnings_of(study: Study, left_out: Sequence[dict[str, Any]]) -> list[str]:
    """Gather warnings: runs left out, what the runs recorded, and a theta_0 that is not one.

    Args:
        study: arms and runs.
        left_out: rows of the table of that name.

    Returns:
        One sentence each, equal ones of several runs together.
    """
    found = [f"{row['run']} is {row['status']} and left out: {row['cause']}" for row in left_out]
    per_run: dict[str, list[str]] = {}
    for name, run in study.runs.items():
        for warning in run.record.warnings:
            per_run.setdefault(warning, []).append(name)
    found += [f"{text} ({_some(names)})" for text, names in per_run.items()]
    return found + _start_warnings(study)


def _start_warnings(study: Study) -> list[str]:
    # theta_0 is one model: its verdicts must be the same in every run.
    scores: dict[str, dict[str, str]] = {}
    for name, run in study.runs.items():
        for one in run.record.evaluations:
            if one.weights == "theta_0":
                scores.setdefault(one.suite, {}).setdefault(json.dumps(one.scores, sort_keys=True), name)
    return [
        f"theta_0 has other scores on '{suite}' in {_some(list(found.values()))}: the first run's are shown"
        for suite, found in scores.items()
        if len(found) > 1
    ]


def not_run(study: Study, tables: dict[str, Any]) -> dict[str, str]:
    """Name what this report does not show, and why.

    Args:
        study: the runs, whose own lists are added.
        tables: the tables of analysis.json.

    Returns:
        What -> why.
    """
    own = _not_captured(study)
    if not other_judges(tables["judges"]["rows"]):
        own["judge model"] = "no judges but keyword lists and the grammar"
    if not any(run.record.drift for run in study.runs.values()):
        own["drift as KL"] = "no run measured it; drift is the L2 distance of the weights"
    if not any(row["comparator"] == "radial" and row["difference"] is not None for row in tables["matched"]["rows"]):
        own["distance-matched radial control"] = "theta_0 + c (theta - theta_0) is not read beside any arm"
    if not any(one.weights == "theta_base" for one in study.first.record.evaluations):
        own["theta_base"] = "the model before alignment was not scored, so it is no anchor in the figure"
    recorded: dict[str, list[str]] = {}
    for name, run in study.runs.items():
        for what, why in run.record.not_run.items():
            recorded.setdefault(f"{what}\0{why}", []).append(name)
    for entry, names in recorded.items():
        what, why = entry.split("\0", 1)
        own[what] = f"{why} ({_some(names)})"
    return own


def _not_captured(study: Study) -> dict[str, str]:
    """Name what no capture of any run holds, and what follows from that."""  # noqa: DOC201
    found = [capture for run in study.runs.values() for capture in run.captures]
    missing = {
        "nulls for spectra": (
            any(capture.nulls for capture in found),
            "untrained weights, random tokens and matched answers are not in the captures",
        ),
        "benign anchor for conflict": (
            any("benign" in capture.sets for capture in found),
            "so a cosine below zero is reported, and a conflict is not claimed",
        ),
        "sham behaviour": (
            any("sham" in capture.sets for capture in found),
            "no twin of the safety numbers on a harmless deflection",
        ),
        "preconditioned geometry": (
            any("preconditioned_gram" in capture.keys for capture in found),
            "no Gram matrix after Adam's preconditioning in the captures",
        ),
        "single examples": (
            any(capture.version > 1 for capture in found),
            "the captures hold blocks of examples: no overlap, sufficiency or rarefaction",
        ),
        "one-sample sufficiency": (
            any(key.startswith("single_phi/") for capture in found for key in capture.keys),
            "no left spaces of single refusals in the captures",
        ),
        "drift of the safety subspace": (
            False,
            "left spaces of halves are not kept at two steps: the turn from step 0 is shown and not called drift",
        ),
    }
    return {what: why for what, (measured, why) in missing.items() if not measured}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
