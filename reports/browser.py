"""Which answers the page shows: a fixed sample, chosen before any verdict is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from geomsafe.analyses.pairing import Arm
from geomsafe.reports.arms import STARTS, Study

PROMPTS = 8
# A sweep has more arms than answers that anyone reads side by side.
MOST_ARMS = 12
LONGEST = 2000


def sample_completions(study: Study, most: int | None = None) -> list[dict[str, Any]]:
    """Pick prompts evenly from each suite, at most one a cluster, and every arm's answer to them.

    Args:
        study: arms and runs.
        most: arms whose answers are shown, spread evenly over their order; all where None.

    Returns:
        One entry a prompt: suite, kind, prompt, and answers with verdicts; `folded` marks an
        answer to a harmful prompt that some judge calls compliance.
    """
    sources = [(start, start, study.first.name, start) for start in STARTS]
    arms = [arm for arm in study.arms if arm.runs and not arm.label.startswith("last iterate")]
    for arm in _spread(arms, most):
        sources.append((study.name(arm), arm.label, arm.runs[min(arm.runs)], arm.weights))
    suites = {one.suite: one.kind for one in study.first.record.evaluations}
    return [entry for suite, kind in suites.items() for entry in _entries(study, suite, kind, sources)]


def _spread(arms: Sequence[Arm], most: int | None) -> list[Arm]:
    if most is None or len(arms) <= most:
        return list(arms)
    return [arms[index * len(arms) // most] for index in range(most)]


def _entries(study: Study, suite: str, kind: str, sources: list[tuple[str, str, str, str]]) -> list[dict[str, Any]]:
    # Texts are read for the shown prompts only; verdicts alone are held of all others.
    chosen = _chosen(study, suite)
    rows = [
        {str(row["id"]): row for row in study.runs[run].completions(weights, suite) if str(row["id"]) in chosen}
        if run in study.runs
        else {}
        for _, _, run, weights in sources
    ]
    return [_entry(study, suite, kind, prompt, sources, rows) for prompt in chosen]


def _chosen(study: Study, suite: str) -> list[str]:
    answers = next(found for (_, name), found in study.first.answers.items() if name == suite)
    first_of_cluster: dict[str, str] = {}
    for prompt, cluster in zip(answers.ids, answers.clusters, strict=True):
        first_of_cluster.setdefault(cluster, prompt)
    prompts = list(first_of_cluster.values())
    stride = max(1, len(prompts) // PROMPTS)
    return prompts[::stride][:PROMPTS]


def _entry(
    study: Study,
    suite: str,
    kind: str,
    prompt: str,
    sources: list[tuple[str, str, str, str]],
    read: list[dict[str, dict[str, Any]]],
) -> dict[str, Any]:
    answers = []
    text = ""
    for (key, label, run, _), rows in zip(sources, read, strict=True):
        row = rows.get(prompt)
        if row is None:
            continue
        text = str(row["prompt"])
        verdicts = {judge: said for judge, said in row["verdicts"].items() if said}
        complied = any("compliance" in said["value"] for said in verdicts.values())
        answers.append({
            "key": key,
            "label": label,
            "seed": study.runs[run].seed,
            "completion": _cut(str(row["completion"])),
            "verdicts": {judge: said["value"] for judge, said in verdicts.items()},
            "rules": {judge: str(said.get("rule", "")) for judge, said in verdicts.items()},
            "folded": kind == "harmful" and complied,
        })
    return {"suite": suite, "kind": kind, "id": prompt, "prompt": _cut(text), "answers": answers}


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text) - LONGEST} more characters)"
