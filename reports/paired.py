"""Two scored models side by side, prompt by prompt: what `geomsafe evaluate A B --paired` prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from geomsafe.analyses.rates import Difference, paired_difference
from geomsafe.errors import RecordError
from geomsafe.records import Evaluation
from geomsafe.reports.answers import read_answers

DECIDING = {
    "system_prompt": "system prompt",
    "template_sha256": "chat template",
    "max_new_tokens": "longest answer",
    "decoding": "decoding",
    "temperature": "temperature",
    "top_p": "top_p",
    "attack": "settings of the attack",
}
"""Settings that move a rate whatever the weights are, and what they are called."""


class Side(NamedTuple):
    """One scored model: its folder and one set of weights of it."""

    name: str
    folder: Path
    evaluations: list[Evaluation]


class PairedScore(NamedTuple):
    """One judge's verdict on both sides: share of prompts with that verdict, first minus second."""

    suite: str
    kind: str
    judge: str
    verdict: str
    first: float
    second: float
    difference: Difference


def paired_scores(first: Side, second: Side, allow_mixed: bool = False) -> list[PairedScore]:
    """Compare two models on the suites that both were scored on.

    Args:
        first: one model.
        second: the other.
        allow_mixed: compare also across different templates, system prompts and decoding.

    Returns:
        One row a suite, judge and verdict; only prompts that the judge gave a verdict on both times count.

    Raises:
        RecordError: no suite is common, a suite's prompts differ, or settings do and `allow_mixed` is False.
    """
    theirs = {one.suite: one for one in second.evaluations}
    common = [(one, theirs[one.suite]) for one in first.evaluations if one.suite in theirs]
    if not common:
        raise RecordError(f"'{first.name}' and '{second.name}' share no prompt set: score both on the same ones")
    rows: list[PairedScore] = []
    for ours, other in common:
        _check(first, second, ours, other, allow_mixed)
        rows += _compared(first.folder / ours.file, second.folder / other.file, ours, other)
    return rows


def mixed_settings(ours: Evaluation, other: Evaluation) -> list[str]:
    """Name the settings that differ and move a rate whatever the weights are.

    Args:
        ours: one evaluation.
        other: the other.

    Returns:
        "system prompt (none and Be brief.)" and so on; empty where the two may be compared.
    """
    found: list[str] = []
    for setting, name in DECIDING.items():
        a, b = ours.settings.get(setting), other.settings.get(setting)
        if a != b:
            found.append(f"{name} ({_short(a)} and {_short(b)})")
    return found


def _check(first: Side, second: Side, ours: Evaluation, other: Evaluation, allow_mixed: bool) -> None:
    """Refuse what is no comparison.

    Raises:
        RecordError: prompts differ, or settings.
    """
    if ours.prompts_sha256 != other.prompts_sha256:
        raise RecordError(
            f"suite '{ours.suite}' has other prompts in '{first.name}' ({ours.n} of {ours.source}) than in "
            f"'{second.name}' ({other.n} of {other.source}): pairs need the same ones"
        )
    mixed = mixed_settings(ours, other)
    if mixed and not allow_mixed:
        raise RecordError(
            f"'{first.name}' and '{second.name}' were not scored alike on '{ours.suite}': {', '.join(mixed)}; "
            "score both under one setting, or compare all the same with --allow-mixed"
        )


def _compared(first: Path, second: Path, ours: Evaluation, other: Evaluation) -> list[PairedScore]:
    a, b = read_answers(first), read_answers(second)
    rows: list[PairedScore] = []
    for judge, counts in ours.scores.items():
        if judge not in other.scores:
            continue
        pairs = [
            (one, two, cluster)
            for one, two, cluster in zip(a.verdicts[judge], b.verdicts[judge], a.clusters, strict=True)
            if one and two
        ]
        for verdict in counts if pairs else ():
            hits = [float(one == verdict) for one, _, _ in pairs]
            others = [float(two == verdict) for _, two, _ in pairs]
            found = paired_difference(hits, others, [cluster for _, _, cluster in pairs])
            rows.append(PairedScore(ours.suite, ours.kind, judge, verdict, _mean(hits), _mean(others), found))
    return rows


def _mean(hits: Sequence[float]) -> float:
    return sum(hits) / len(hits)


def _short(value: Any) -> str:
    text = "none" if value in (None, {}) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
