"""MT-Bench: 80 two-turn questions, each answer rated from 1 to 10 by a judge (Zheng et al. 2306.05685).

The files are the published ones (lm-sys/FastChat, fastchat/llm_judge/data), found by the user: `question.jsonl`,
`reference_answer/gpt-4.jsonl`, and `judge_prompts.jsonl` beside them or one folder up. What the prompts, temperatures
and readers of ratings are is taken from there and from `fastchat/llm_judge/common.py`.

What is not covered: comparing two models pairwise. Ratings depend on the judge: the published numbers are GPT-4's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from geomsafe.data.rows import Message
from geomsafe.evaluation.decoding import Completion
from geomsafe.evaluation.mtbench_judge import MtBenchJudge, Rating
from geomsafe.evaluation.mtbench_questions import (
    ANSWER_TOKENS,
    TEMPERATURES,
    MtBenchCase,
    Question,
    mtbench_questions,
)
from geomsafe.evaluation.server import ChatServer

__all__ = [
    "TEMPERATURES",
    "Answer",
    "MtBenchCase",
    "MtBenchJudge",
    "Place",
    "Question",
    "Rating",
    "mtbench_answers",
    "mtbench_cases",
    "mtbench_questions",
    "mtbench_summary",
    "served_answer",
]

Place = tuple[int, int]
"""(question id, turn): turns are 1 and 2."""

Answer = Callable[[Sequence[list[Message]], Sequence[float], Callable[[int, Completion], None]], None]
"""Answers conversations, each at its temperature, and calls (place of the conversation, answer) as each is there."""


def mtbench_answers(
    questions: Sequence[Question],
    answer: Answer,
    done: Callable[[Place, Completion], None],
    kept: Mapping[Place, Completion] | None = None,
    temperatures: Mapping[str, float] = TEMPERATURES,
) -> dict[Place, Completion]:
    """Have both turns of every question answered; the second turn sees the model's own first answer.

    Args:
        questions: the questions.
        answer: the model, local or served.
        done: called once an answer as it comes, so that it can be kept.
        kept: answers that are there already; they are not asked for again.
        temperatures: of each category.

    Returns:
        The answers of all places, those kept included.
    """
    found = dict(kept or {})
    for turn in (1, 2):
        open_ = [question for question in questions if (question.id, turn) not in found]

        def keep(place: int, completion: Completion, turn: int = turn, open_: list[Question] = open_) -> None:
            where = (open_[place].id, turn)
            found[where] = completion
            done(where, completion)

        if open_:
            said = [_conversation(question, turn, found) for question in open_]
            answer(said, [temperatures[question.category] for question in open_], keep)
    return found


def mtbench_cases(questions: Sequence[Question], answers: Mapping[Place, Completion]) -> list[MtBenchCase]:
    """Return what is to be rated: every turn of every question.

    Args:
        questions: the questions.
        answers: an answer to every turn.

    Returns:
        Two cases a question, in order.
    """
    return [
        MtBenchCase(question, turn, tuple(answers[question.id, earlier].text for earlier in range(1, turn + 1)))
        for question in questions
        for turn in (1, 2)
    ]


def served_answer(server: ChatServer, max_new_tokens: int = ANSWER_TOKENS, seed: int | None = None) -> Answer:
    """Return a served model as `mtbench_answers` wants it.

    Args:
        server: the model.
        max_new_tokens: longest answer.
        seed: of the server's sampling, where it knows one.

    Returns:
        The function that answers.
    """

    def answer(
        conversations: Sequence[list[Message]], temperatures: Sequence[float], done: Callable[[int, Completion], None]
    ) -> None:
        server.answer(conversations, max_new_tokens=max_new_tokens, temperature=temperatures, seed=seed, done=done)

    return answer


def mtbench_summary(cases: Sequence[MtBenchCase], ratings: Sequence[Rating]) -> dict[str, Any]:
    """Average the ratings.

    Args:
        cases: what was rated.
        ratings: one a case, in the same order.

    Returns:
        {n, undecided, mean} over all cases, and the same under `turns` ("1", "2") and `categories`. `n` counts the
        ratings that the mean is taken over, `undecided` those without a number; the mean of none is None.
    """
    rated = list(zip(cases, ratings, strict=True))
    categories = dict.fromkeys(case.question.category for case in cases)
    return {
        **_mean([rating for _, rating in rated]),
        "turns": {
            str(turn): _mean([rating for case, rating in rated if case.turn == turn])
            for turn in sorted({case.turn for case in cases})
        },
        "categories": {
            category: _mean([rating for case, rating in rated if case.question.category == category])
            for category in categories
        },
    }


def _mean(ratings: Sequence[Rating]) -> dict[str, Any]:
    scores = [rating.score for rating in ratings if rating.score is not None]
    return {"n": len(scores), "undecided": len(ratings) - len(scores), "mean": fmean(scores) if scores else None}


def _conversation(question: Question, turn: int, answers: Mapping[Place, Completion]) -> list[Message]:
    first = {"role": "user", "content": question.turns[0]}
    if turn == 1:
        return [first]
    said = {"role": "assistant", "content": answers[question.id, 1].text}
    return [first, said, {"role": "user", "content": question.turns[1]}]
