"""Judges over rows: verdicts by rule at once, those of models and servers later, and their counts.

A row that was stopped early holds the beginning of its answer. Only judges that were settled on it may speak of
it; one that reads whole answers is refused, and one that is only for answers that are no refusals passes it by.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from geomsafe.errors import ConfigError
from geomsafe.evaluation.identity import deciding
from geomsafe.evaluation.journal import Journal
from geomsafe.evaluation.stopping import Settling
from geomsafe.evaluation.stored import Row, Stored, answers_sha256
from geomsafe.evaluation.verdicts import BatchJudge, Case, Graded, Judged, RowJudge

Judge = RowJudge | BatchJudge


def reads_refusals(judge: object) -> bool:
    """Return whether a judge has to do with refusals; one that has not passes over answers that stopped as such."""
    return bool(getattr(judge, "reads_refusals", True))


def split(judges: Sequence[Judge]) -> tuple[list[RowJudge], list[BatchJudge]]:
    """Return the judges that need nothing but a row, and those that need a model or a server."""
    later: list[Any] = [judge for judge in judges if hasattr(judge, "judge_cases")]
    by_row: list[Any] = [judge for judge in judges if not hasattr(judge, "judge_cases")]
    return by_row, later


def judge_rows(rows: Iterable[Row], judges: Sequence[RowJudge]) -> list[Row]:
    """Let judges speak that need nothing but the row.

    Args:
        rows: evaluation rows.
        judges: the judges.

    Returns:
        The rows with the verdicts of these judges, and of no others.
    """
    return [row | {"verdicts": _verdicts(row, judges)} for row in rows]


def judge_later(
    out: Path, stored: Stored, judge: BatchJudge, progress: Callable[[str, int, int], None] | None = None
) -> Stored:
    """Let a judge speak that needs a model or a server, and write what it says; what it said already stays.

    Args:
        out: the run directory.
        stored: the evaluation.
        judge: the judge; where it fails half-way, its verdicts so far are kept for the next attempt.
        progress: called with ("<weights>: <suite>: <judge>", rows judged, rows in all).

    Returns:
        The evaluation with the verdicts in rows and scores.
    """
    evaluation = stored.evaluation
    if judge.name in evaluation.scores and same_judge(evaluation.settings["judges"].get(judge.name), judge):
        return stored
    _check_whole(stored.rows, judge)
    label = f"{evaluation.weights}: {evaluation.suite}: {judge.name}"
    asked = [row["index"] for row in stored.rows if not row["stopped_early"]]
    by_index = {row["index"]: row for row in stored.rows}
    path = out / f"{evaluation.file}.{judge.name.replace(':', '-')}.partial"
    with Journal(path, {"answers": answers_sha256(stored.rows), "judge": deciding(judge.settings())}) as journal:
        left = [index for index in asked if index not in journal.entries]

        def verdict(place: int, judged: Judged | None) -> None:
            journal.add(left[place], {"verdict": None if judged is None else as_json(judged)})
            if progress is not None:
                progress(label, len(journal.entries), len(asked))

        judge.judge_cases([case_of(by_index[index]) for index in left], verdict)
        said = {index: entry["verdict"] for index, entry in journal.entries.items()}
        rows = [row | {"verdicts": _with(row["verdicts"], judge.name, said.get(row["index"]))} for row in stored.rows]
        scores = evaluation.scores | count_verdicts(rows, [judge])
        judges = evaluation.settings["judges"] | {judge.name: judge.settings()}
        judged = evaluation.model_copy(update={"scores": scores, "settings": evaluation.settings | {"judges": judges}})
        done = Stored(judged, stored.identity, rows)
        done.write(out)
        journal.remove()
    return done


def same_judge(recorded: dict[str, Any] | None, judge: Judge) -> bool:
    """Return whether a judge's record is that of `judge`; what it only observes while judging plays no part."""
    return recorded is not None and deciding(recorded) == deciding(judge.settings())


def count_verdicts(rows: Iterable[Row], judges: Sequence[Judge]) -> dict[str, dict[str, int]]:
    """Count the values that each judge gave.

    Args:
        rows: evaluation rows.
        judges: the judges; one that judged no row is left out.

    Returns:
        Judge -> value -> rows, values in the judge's order, those never given as 0.
    """
    counts: dict[str, Counter[str]] = {judge.name: Counter() for judge in judges}
    for row in rows:
        for name, judged in row["verdicts"].items():
            if name in counts:
                counts[name][judged["value"]] += 1
    return {
        judge.name: {value: counts[judge.name][value] for value in dict.fromkeys((*judge.values, *counts[judge.name]))}
        for judge in judges
        if counts[judge.name]
    }


def case_of(row: Row) -> Case:
    """Return what judges of whole batches read of a row."""
    return Case(row["prompt"], row["reference"], row["completion"], row["finished"])


def as_json(judged: Judged | Graded) -> dict[str, Any]:
    """Return a verdict as rows hold it, what it leaves open left out."""
    return {key: value for key, value in judged._asdict().items() if value is not None}


def _verdicts(row: Row, judges: Sequence[RowJudge]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for judge in judges:
        if row["stopped_early"]:
            if not reads_refusals(judge):
                continue
            _check_whole([row], judge)
        judged = judge.judge_row(row["prompt"], row["reference"], row["completion"])
        if judged is not None:
            said[judge.name] = as_json(judged)
    return said


def _with(verdicts: dict[str, Any], name: str, said: dict[str, Any] | None) -> dict[str, Any]:
    others = {key: value for key, value in verdicts.items() if key != name}
    return others if said is None else others | {name: said}


def _check_whole(rows: Sequence[Row], judge: Judge) -> None:
    """Refuse a judge that would read half an answer as a whole one.

    Raises:
        ConfigError: it is not settled on an answer that was stopped early.
    """
    if not reads_refusals(judge):
        return
    for row in rows:
        if row["stopped_early"] and not (isinstance(judge, Settling) and judge.settled(row["completion"])):
            raise ConfigError(
                f"judge '{judge.name}' needs whole answers, and that to prompt {row['index'] + 1} was stopped early, "
                "when the keyword judges of its evaluation were settled: evaluate again with --whole-answers"
            )
