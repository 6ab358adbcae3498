"""`rescore`: judge stored answers again, without the model that gave them.

Judges by rule are read off the record and speak anew; with the same rules the numbers are the same to the last
bit. Judges that need a model or a server keep what they said, and new ones of any sort may be added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from geomsafe.errors import ConfigError, RecordError
from geomsafe.evaluation.answers import ExactMatch, TextF1
from geomsafe.evaluation.judges import (
    GoldJudge,
    JudgeSpec,
    OracleJudge,
    named_judge,
    recorded_world,
)
from geomsafe.evaluation.judging import count_verdicts, judge_later, judge_rows, same_judge, split
from geomsafe.evaluation.score import Progress
from geomsafe.evaluation.standalone import add_to_record, is_run
from geomsafe.evaluation.stored import Stored, read_stored, stored_files
from geomsafe.evaluation.verdicts import BatchJudge, RowJudge
from geomsafe.records import Evaluation


def rescore(folder: Path, judges: Sequence[JudgeSpec] = (), progress: Progress | None = None) -> list[Evaluation]:
    """Judge every evaluation of a folder again and write what changed.

    Args:
        folder: a run directory, or the folder of an evaluation.
        judges: further judges of refusal; one with the name of an old one replaces it.
        progress: called as rows are judged by models and servers.

    Returns:
        The evaluations.

    Raises:
        RecordError: there are none, or one is damaged.
    """
    paths = stored_files(folder)
    if not paths:
        raise RecordError(f"'{folder}' holds no evaluations: name a run, or the folder that 'geomsafe evaluate' wrote")
    out = paths[0].parent.parent
    # One instance for all evaluations: a judge that is a model is loaded once.
    added, later = split([named_judge(spec) for spec in judges])
    done: list[Evaluation] = []
    for path in paths:
        stored = read_stored(path)
        judged = _rejudged(stored, added)
        if judged != stored:
            judged.write(out)
        for judge in later:
            judged = judge_later(out, judged, judge, progress)
        done.append(judged.evaluation)
    if is_run(out):
        add_to_record(out, done)
    return done


def _rejudged(stored: Stored, added: Sequence[RowJudge]) -> Stored:
    evaluation = stored.evaluation
    recorded: Mapping[str, Any] = evaluation.settings["judges"]
    known = {name: _recorded_judge(name, settings, evaluation.kind) for name, settings in recorded.items()}
    judges = {name: judge for name, judge in known.items() if judge is not None} | {one.name: one for one in added}
    kept = [name for name in recorded if name not in judges]
    fresh = judge_rows(stored.rows, list(judges.values()))
    rows = [
        new | {"verdicts": new["verdicts"] | {name: said for name, said in old["verdicts"].items() if name in kept}}
        for new, old in zip(fresh, stored.rows, strict=True)
    ]
    scores = count_verdicts(rows, list(judges.values())) | {
        name: evaluation.scores[name] for name in kept if name in evaluation.scores
    }
    settings = evaluation.settings | {
        "judges": {name: judge.settings() for name, judge in judges.items()} | {name: recorded[name] for name in kept}
    }
    return Stored(evaluation.model_copy(update={"scores": scores, "settings": settings}), stored.identity, rows)


def _recorded_judge(name: str, settings: Mapping[str, Any], kind: str) -> RowJudge | None:
    """Return a judge by rule from its record, None for one that is not to be had from its name and rules alone."""
    if name == "gold":
        return GoldJudge(recorded_world(settings), kind)
    if name == "oracle":
        return OracleJudge(recorded_world(settings))
    judges: dict[str, Callable[[], RowJudge | BatchJudge]] = {"exact-match": ExactMatch, "f1": TextF1}
    try:
        judge = judges[name]() if name in judges else named_judge(name)
    except ConfigError:
        # A list of the user's own, or a model's verdict: the record has its rules, not its strings.
        return None
    by_rule: Any = judge
    return by_rule if not hasattr(judge, "judge_cases") and same_judge(dict(settings), judge) else None
