"""Scoring one set of weights: ask, answer, judge, and write one line a prompt.

An evaluation counts as done when its description is there, fits the model as it is now and hashes the answers;
then its answers are used as they stand and only judged, so that an interrupted evaluation goes on where it
stopped: at the suite, and through its journal at the prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from geomsafe.errors import ConfigError, RecordError
from geomsafe.evaluation.asked import Asked, ask_suite
from geomsafe.evaluation.decoding import Completion
from geomsafe.evaluation.engines import Engine, LocalEngine
from geomsafe.evaluation.journal import Journal
from geomsafe.evaluation.judges import JudgeSpec
from geomsafe.evaluation.judging import count_verdicts, judge_rows, same_judge
from geomsafe.evaluation.store import cache_folder, read_completions, write_completions
from geomsafe.evaluation.stored import Stored, read_stored
from geomsafe.evaluation.suites import Suite
from geomsafe.evaluation.verdicts import BatchJudge
from geomsafe.models import Loaded
from geomsafe.records import Evaluation

START = "theta_0"

Progress = Callable[[str, int, int], None]
"""Called with ("<weights>: <suite>", prompts done, prompts in all)."""


class Scored(NamedTuple):
    """An evaluation with its rows, and the judges that are still to speak on it."""

    stored: Stored
    later: list[BatchJudge]


def labelled(progress: Progress | None, label: str) -> Callable[[int, int], None]:
    """Return a report of (done, in all) under one label, which goes nowhere without a progress to go to."""
    return lambda done, total: None if progress is None else progress(label, done, total)


def evaluate_model(
    loaded: Loaded,
    suites: Sequence[Suite],
    out: Path,
    weights: str,
    *,
    max_new_tokens: int = 512,
    batch_size: int = 128,
    limit: int | None = None,
    system_prompt: str | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
    judges: Iterable[JudgeSpec] | None = None,
) -> list[Evaluation]:
    """Score a model as it is now on every suite, greedily; see `evaluate_engine`.

    Args:
        loaded: the model with the weights to score in it.
        suites: what to score, names unique.
        out: run directory; rows go to its `evaluations/`.
        weights: name of the weight set, "theta_0", "final", "ema", "step-000120".
        max_new_tokens: longest completion in tokens.
        batch_size: most prompts that run together.
        limit: only the first prompts of each suite.
        system_prompt: system turn before prompts that have none of their own.
        cache: where completions of theta_0 are kept (default: `store.cache_folder()`).
        progress: called as prompts are done.
        judges: judges of refusal, for suites that name none.

    Returns:
        One evaluation a suite, `file` relative to `out`.
    """
    engine = LocalEngine(loaded, max_new_tokens, batch_size, system_prompt)
    scored = evaluate_engine(engine, suites, out, weights, limit=limit, cache=cache, progress=progress, judges=judges)
    return [one.stored.evaluation for one in scored]


def evaluate_engine(
    engine: Engine,
    suites: Sequence[Suite],
    out: Path,
    weights: str,
    *,
    limit: int | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
    judges: Iterable[JudgeSpec] | None = None,
    whole_answers: bool = False,
) -> list[Scored]:
    """Score what an engine answers on every suite, by the judges that need no model of their own.

    Args:
        engine: what answers.
        suites: what to score, names unique.
        out: run directory; rows go to its `evaluations/`.
        weights: name of the weight set.
        limit: only the first prompts of each suite, where the suite has no smaller limit.
        cache: where completions of theta_0 are kept (default: `store.cache_folder()`).
        progress: called as prompts are done.
        judges: judges of refusal, for suites that name none.
        whole_answers: let every answer run to its end also where its verdicts are settled before.

    Returns:
        One evaluation a suite, `file` relative to `out`, and the judges that are still to speak: see `judge_later`.

    Raises:
        ConfigError: two suites share a name.
    """
    twice = sorted(name for name, count in Counter(suite.name for suite in suites).items() if count > 1)
    if twice:
        raise ConfigError(f"two suites are named '{twice[0]}': their files would overwrite each other, rename one")
    usual = None if judges is None else tuple(judges)
    kept = cache if cache is not None else cache_folder()
    # Everything is rendered before anything is generated: a prompt that cannot be asked fails at once.
    asked = [
        ask_suite(
            engine,
            suite,
            usual,
            limit,
            whole_answers,
            out / "evaluations" / f"{weights}--{suite.name}.jsonl.attempts",
            labelled(progress, f"{weights}: {suite.name}: {suite.attack.name}"),
        )
        for suite in suites
    ]
    done: list[Scored] = []
    for one in asked:
        report = labelled(progress, f"{weights}: {one.suite.name}")
        identity = engine.identity(one.questions) | {"early_stop": one.stop_rules}
        wanted = one.describe(engine, weights)
        before = _answered(out, wanted, identity)
        if before is not None:
            completions = _completions_of(before)
            report(len(completions), len(completions))
            stored = _judged(wanted, before.identity, completions, one, before)
            if stored != before:
                stored.write(out)
        else:
            with Journal(out / f"{wanted.file}.partial", identity) as journal:
                completions = _complete(engine, one, identity, journal, kept if weights == START else None, report)
                # A server says of itself what it is only while it answers.
                stored = _judged(one.describe(engine, weights), identity, completions, one, None)
                stored.write(out)
                journal.remove()
        done.append(Scored(stored, one.later))
    return done


def _complete(
    engine: Engine,
    asked: Asked,
    identity: dict[str, Any],
    journal: Journal,
    cache: Path | None,
    report: Callable[[int, int], None],
) -> list[Completion]:
    """Return the completions, from cache and journal where they are there."""
    count = len(asked.questions)
    kept = read_completions(cache, identity) if cache is not None else None
    if kept is not None and len(kept) == count:
        report(count, count)
        return kept
    left = [index for index in range(count) if index not in journal.entries]

    def ended(place: int, completion: Completion) -> None:
        journal.add(left[place], asdict(completion))
        report(len(journal.entries), count)

    if journal.entries:
        report(len(journal.entries), count)
    if left:
        engine.answer([asked.questions[index] for index in left], left, asked.settled, ended)
    completions = [Completion(**journal.entries[index]) for index in range(count)]
    if cache is not None:
        write_completions(cache, identity, completions)
    return completions


def _judged(
    wanted: Evaluation,
    identity: dict[str, Any],
    completions: Sequence[Completion],
    asked: Asked,
    before: Stored | None,
) -> Stored:
    """Return the evaluation with the verdicts of its judges; of later ones those that are there already."""
    rows = [asked.row(index, completion) for index, completion in enumerate(completions)]
    rows = judge_rows(rows, asked.judges)
    settings = wanted.settings
    if before is not None and "observed" in before.evaluation.settings:
        settings = settings | {"observed": before.evaluation.settings["observed"]}
    for judge in asked.later if before is not None else ():
        recorded = before.evaluation.settings["judges"].get(judge.name) if before is not None else None
        if before is not None and same_judge(recorded, judge):
            for row, old in zip(rows, before.rows, strict=True):
                if judge.name in old["verdicts"]:
                    row["verdicts"][judge.name] = old["verdicts"][judge.name]
            settings = settings | {"judges": settings["judges"] | {judge.name: recorded}}
    scores = count_verdicts(rows, [*asked.judges, *asked.later])
    return Stored(wanted.model_copy(update={"scores": scores, "settings": settings}), identity, rows)


def _answered(out: Path, wanted: Evaluation, identity: dict[str, Any]) -> Stored | None:
    """Return what lies there, None unless it holds these answers; whole ones serve also where some could stop early."""
    path = (out / wanted.file).with_suffix(".json")
    if not path.is_file():
        return None
    try:
        found = read_stored(path)
    except RecordError:
        return None
    same = found.identity == identity or found.identity == identity | {"early_stop": None}
    return found if same and len(found.rows) == wanted.n else None


def _completions_of(stored: Stored) -> list[Completion]:
    return [
        Completion(row["completion"], row["completion_tokens"], row["finished"], row["stopped_early"])
        for row in stored.rows
    ]
