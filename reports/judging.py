"""The table of judges: every pair of those that read refusals, on harmful prompts put directly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from geomsafe.analyses.agreement import judge_agreement
from geomsafe.reports.answers import Answers
from geomsafe.reports.arms import STARTS, Study
from geomsafe.reports.runs import RunData
from geomsafe.reports.scores import GOLD_COMPLIANCE

JUDGES = [
    "key", "first", "second", "n", "kappa", "agreement", "both", "only_first", "only_second", "neither", "undecided",
    "undecided_first", "undecided_second",
]  # fmt: skip
GOLD, KEYWORDS = "gold", "keyword-29"
UNDECIDED = "undecided"
COMPLIANCE = GOLD_COMPLIANCE | {"compliance"}
_SPOKEN_BY_REFUSAL_JUDGES = COMPLIANCE | {"refusal", UNDECIDED}

# Arm key -> the verdicts of all its answers.
Groups = Mapping[str, Sequence[Answers]]


def judge_rows(study: Study) -> list[dict[str, Any]]:
    """Return the agreement of each pair of judges on what is compliance.

    What is neither refusal nor compliance, such as incoherent answers, is no compliance. Answers that one of the two
    left undecided are counted on their own and are in none of the other numbers.

    Args:
        study: arms and runs.

    Returns:
        For every pair, gold first where it spoke: one row for theta_0, each arm, and all of them together (key "all").
    """
    groups = {start: _answers(study.first, start) for start in STARTS}
    for arm in study.arms:
        groups[study.name(arm)] = [one for run in arm.runs.values() for one in _answers(study.runs[run], arm.weights)]
    groups["all"] = [one for key, answers in groups.items() if key != "theta_base" for one in answers]
    judges = refusal_judges([one for answers in groups.values() for one in answers])
    rows = [_row(key, pair, answers) for pair in combinations(judges, 2) for key, answers in groups.items()]
    return [row for row in rows if row]


def refusal_judges(answers: Sequence[Answers]) -> list[str]:
    """Name the judges that tell refusal from compliance, gold first, the others in their order.

    Args:
        answers: verdicts; judges of coherence, match or quality are among them.

    Returns:
        The names.
    """
    found: dict[str, None] = {}
    for one in answers:
        for judge, said in one.verdicts.items():
            # Gold reads refusals also where it finds none, as it may on harmless prompts.
            if judge not in found and (judge == GOLD or not _SPOKEN_BY_REFUSAL_JUDGES.isdisjoint(said)):
                found[judge] = None
    return sorted(found, key=lambda judge: judge != GOLD)


def other_judges(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the judges that are neither keyword lists nor the grammar of a world.

    Args:
        rows: of the table of judges.

    Returns:
        The names, such as those of judge models.
    """
    names = dict.fromkeys(row[place] for row in rows for place in ("first", "second"))
    return [name for name in names if name not in {GOLD, "oracle"} and not name.startswith("keyword-")]


def _answers(run: RunData, weights: str) -> list[Answers]:
    return [run.answers[weights, one.suite] for one in run.evaluations(weights, "harmful")]


def _row(key: str, pair: tuple[str, str], answers: Sequence[Answers]) -> dict[str, Any]:
    said = [
        (first, second)
        for one in answers
        for first, second in zip(*(one.verdicts.get(judge, ()) for judge in pair), strict=False)
        if first and second
    ]
    if not said:
        return {}
    decided = [
        (first in COMPLIANCE, second in COMPLIANCE) for first, second in said if UNDECIDED not in {first, second}
    ]
    row = {
        "key": key, "first": pair[0], "second": pair[1], "n": len(decided), "undecided": len(said) - len(decided),
        "undecided_first": sum(first == UNDECIDED for first, _ in said),
        "undecided_second": sum(second == UNDECIDED for _, second in said),
    }  # fmt: skip
    if decided:
        row |= judge_agreement([first for first, _ in decided], [second for _, second in decided])._asdict()
    return row
