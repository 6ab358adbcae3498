"""MT-Bench of a model that is loaded: it answers both turns, a served judge rates them.

    measurements/<weights>--mt-bench.answers.jsonl   each answer as it comes; kept, so that another judge can rate them
    measurements/<weights>--<name>.partial.jsonl     each rating as it comes; removed at the end

Temperatures are the published ones by category. A draw depends on the seed and on what was asked, so that
an interrupted run goes on to the answers that it would have had.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from geomsafe.data import render, token_ids
from geomsafe.data.rows import Message
from geomsafe.errors import DataError
from geomsafe.evaluation.choosing import Choosing
from geomsafe.evaluation.decoding import Completion, complete, context_length
from geomsafe.evaluation.heldout import ratio_error
from geomsafe.evaluation.identity import deciding, decoding_settings, ids_sha256
from geomsafe.evaluation.journal import Journal
from geomsafe.evaluation.measure_spec import MtBenchSpec
from geomsafe.evaluation.measuring import Kind, Taken, Work
from geomsafe.evaluation.mtbench import (
    TEMPERATURES,
    Answer,
    MtBenchCase,
    MtBenchJudge,
    Place,
    Question,
    Rating,
    mtbench_answers,
    mtbench_cases,
    mtbench_summary,
)
from geomsafe.evaluation.mtbench_questions import ANSWER_TOKENS
from geomsafe.records import content_sha256

TURNS = (1, 2)


@dataclass(frozen=True)
class MtBenchMeasure:
    """The mean rating from 1 to 10, in all, by turn and by category; whole questions are the units of its error."""

    name: str
    spec: MtBenchSpec
    questions: list[Question]
    judge: MtBenchJudge
    kind: Kind = "mt-bench"

    @property
    def source(self) -> str:
        """The folder of the published files."""
        return self.spec.folder

    def identity(self, work: Work) -> dict[str, Any]:
        """Return how the questions are answered, and who judges; a first turn that fills the context fails here."""
        firsts = [_ids([_user(question.turns[0])], work) for question in self.questions]
        decoding = decoding_settings(work.loaded, work.max_new_tokens or ANSWER_TOKENS, work.system_prompt)
        judge = deciding(self.judge.settings())
        return {
            "answers": decoding
            | {
                "decoding": "by category",
                "temperatures": {question.category: TEMPERATURES[question.category] for question in self.questions},
                "seed": work.seed,
                "questions_sha256": content_sha256([one.id, one.category, one.turns] for one in self.questions),
                "ids_sha256": ids_sha256(firsts),
            },
            "references_sha256": content_sha256([one.id, one.references] for one in self.questions),
            "limit": self.spec.limit,
            "judge": judge,
        }

    def take(self, work: Work, identity: Mapping[str, Any]) -> Taken:
        """Return the ratings, after answering and rating what is not answered and rated yet."""
        answers = self._answered(work, {"model": identity["model"], **identity["answers"]})
        cases = mtbench_cases(self.questions, answers)
        ratings = self._rated(work, identity, cases, answers)
        said = [answers[case.question.id, case.turn] for case in cases]
        summary = mtbench_summary(cases, ratings)
        groups = {"mean": summary} | {f"turn {turn}": found for turn, found in summary["turns"].items()}
        groups |= summary["categories"]
        rated = [(case, rating.score) for case, rating in zip(cases, ratings, strict=True) if rating.score is not None]
        return Taken(
            values={metric: found["mean"] for metric, found in groups.items()},
            errors={metric: _error(rated, metric) for metric in groups},
            n={metric: found["n"] for metric, found in groups.items()},
            counts={
                "questions": len(self.questions),
                "undecided": summary["undecided"],
                "cut": sum(not answer.finished for answer in said),
                "no room": sum(_no_room(answer) for answer in said),
            },
            higher_is_better=dict.fromkeys(groups, True),
            settings={"judge": self.judge.settings()},
            rows=[_row(*row) for row in zip(cases, said, ratings, strict=True)],
        )

    def _answered(self, work: Work, identity: dict[str, Any]) -> dict[Place, Completion]:
        numbers = {(question.id, turn): index for index, (question, turn) in enumerate(self._turns())}
        places = list(numbers)
        with Journal(work.path("mt-bench", ".answers.jsonl"), identity) as journal:
            kept = {places[index]: Completion(**entry) for index, entry in journal.entries.items()}

            def keep(place: Place, completion: Completion) -> None:
                journal.add(numbers[place], asdict(completion))
                work.report(len(journal.entries), 2 * len(places))

            work.report(len(kept), 2 * len(places))
            return mtbench_answers(self.questions, local_answer(work), keep, kept)

    def _rated(
        self,
        work: Work,
        identity: Mapping[str, Any],
        cases: Sequence[MtBenchCase],
        answers: Mapping[Place, Completion],
    ) -> list[Rating]:
        judged = {"identity": dict(identity), "answers_sha256": content_sha256(case.answers for case in cases)}
        with Journal(work.path(self.name, ".partial.jsonl"), judged) as journal:
            left = [index for index in range(len(cases)) if index not in journal.entries]

            def rated(place: int, rating: Rating) -> None:
                journal.add(left[place], rating._asdict())
                work.report(len(answers) + len(journal.entries), 2 * len(cases))

            if left:
                self.judge.judge_cases([cases[index] for index in left], rated)
            return [Rating(**journal.entries[index]) for index in range(len(cases))]

    def _turns(self) -> list[tuple[Question, int]]:
        return [(question, turn) for question in self.questions for turn in TURNS]


def local_answer(work: Work) -> Answer:
    """Return a loaded model as `mtbench_answers` wants it.

    A later turn that leaves no room in the model's context gets an empty answer, which is not finished: what fills it
    is the model's own first answer, not the question.

    Args:
        work: the model and how it is run.

    Returns:
        The function that answers; it raises DataError for a first turn that fills the context.
    """
    loaded = work.loaded

    def answer(
        conversations: Sequence[list[Message]], temperatures: Sequence[float], done: Callable[[int, Completion], None]
    ) -> None:
        ids = [_ids(turns, work) for turns in conversations]
        for place in range(len(ids)):
            if not ids[place]:
                done(place, Completion("", 0, False))
        for temperature in sorted(set(temperatures)):
            asked = [place for place, heat in enumerate(temperatures) if heat == temperature and ids[place]]

            def ended(at: int, completion: Completion, asked: list[int] = asked) -> None:
                done(asked[at], completion)

            complete(
                loaded.model,
                loaded.tokenizer,
                [ids[place] for place in asked],
                work.max_new_tokens or ANSWER_TOKENS,
                work.answers_together,
                ended,
                choosing=Choosing(temperature, seed=work.seed),
                # Not the place: it depends on what was answered before an interruption.
                numbers=[int(ids_sha256([ids[place]])[:12], 16) for place in asked],
            )

    return answer


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _ids(turns: list[Message], work: Work) -> list[int]:
    """Return the tokens of a conversation; none where a later turn fills the context.

    Raises:
        DataError: the first turn does.
    """
    system = [{"role": "system", "content": work.system_prompt}] if work.system_prompt else []
    ids = token_ids(render([*system, *turns], work.loaded.tokenizer, generation_prompt=True), work.loaded.tokenizer)
    context = context_length(work.loaded.model)
    if context is None or len(ids) < context:
        return ids
    if len(turns) > 1:
        return []
    raise DataError(
        f"an MT-Bench question has {len(ids)} tokens, the model's context is {context}: MT-Bench needs a longer one "
        f"('{' '.join(turns[0]['content'][:40].split())} ...')"
    )


def _no_room(answer: Completion) -> bool:
    return answer.tokens == 0 and not answer.finished


def _error(rated: Sequence[tuple[MtBenchCase, float]], metric: str) -> float | None:
    """Return the standard error of a mean over the cases that it names, None where it has none."""
    chosen = [
        (case.question.id, score)
        for case, score in rated
        if metric in {"mean", f"turn {case.turn}", case.question.category}
    ]
    if not chosen:
        return None
    return ratio_error(
        np.array([score for _, score in chosen]), np.ones(len(chosen)), [str(question) for question, _ in chosen]
    )


def _row(case: MtBenchCase, answer: Completion, rating: Rating) -> dict[str, Any]:
    return {
        "question_id": case.question.id,
        "category": case.question.category,
        "turn": case.turn,
        "prompt": case.question.turns[case.turn - 1],
        "answer": answer.text,
        "tokens": answer.tokens,
        "finished": answer.finished,
        "score": rating.score,
        "rule": rating.rule,
        "judgement": rating.judgement,
    }
