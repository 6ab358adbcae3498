"""MT-Bench's judge: the published prompts for single answers, and how a rating is read; see `mtbench`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from geomsafe.data.rows import Message
from geomsafe.errors import DataError
from geomsafe.evaluation.judge_templates import fill
from geomsafe.evaluation.mtbench_questions import PUBLISHED, REFERENCED, TEMPERATURES, MtBenchCase, published_rows
from geomsafe.evaluation.server import ChatServer

JUDGE_TOKENS = 2048
"""Longest answer of the judge: `run_judge_single` of common.py."""

RATINGS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))
"""Where a rating is read: the second where the first finds none, as in common.py."""


class Rating(NamedTuple):
    """What the judge says.

    Attributes:
        score: from 1 to 10; None where the judge gave no such number.
        rule: where the number was found, or what is wrong.
        judgement: the judge's own words.
    """

    score: float | None
    rule: str
    judgement: str


class MtBenchJudge:
    """A served model that rates single answers with the published prompts, at temperature 0."""

    def __init__(self, server: ChatServer, folder: Path) -> None:
        """Read the prompts.

        Args:
            server: the judge.
            folder: holds `judge_prompts.jsonl`, or lies beside it.

        Raises:
            DataError: the file is missing or lacks a prompt.
        """
        path = folder / "judge_prompts.jsonl"
        path = path if path.is_file() else folder.resolve().parent / "judge_prompts.jsonl"
        rows = published_rows(path, ("name", "system_prompt", "prompt_template"))
        self._prompts = {row["name"]: (row["system_prompt"], row["prompt_template"]) for row in rows}
        wanted = {prompt_name(category, turn) for category in TEMPERATURES for turn in (1, 2)}
        missing = sorted(wanted - set(self._prompts))
        if missing:
            raise DataError(f"'{path}' has no prompt '{missing[0]}': {PUBLISHED}")
        self._sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self._server = server

    def judge_cases(self, cases: Sequence[MtBenchCase], rated: Callable[[int, Rating], None]) -> None:
        """Rate every case.

        Args:
            cases: what to rate.
            rated: called once a case with its place, as soon as its rating is there.

        Raises:
            ServerError: the server fails; ratings that came before were handed over.
        """  # noqa: DOC502 - ChatServer raises it
        self._server.answer(
            [self.messages(case) for case in cases],
            max_new_tokens=JUDGE_TOKENS,
            done=lambda place, answer: rated(place, read_rating(answer.text)),
        )

    def messages(self, case: MtBenchCase) -> list[Message]:
        """Return the turns that put a case to the judge."""
        system, template = self._prompts[prompt_name(case.question.category, case.turn)]
        first, second = case.question.turns
        values = {"question": first, "answer": case.answers[0], "question_1": first, "question_2": second}
        values |= {f"answer_{number}": text for number, text in enumerate(case.answers, start=1)}
        values |= {f"ref_answer_{number}": text for number, text in enumerate(case.question.references or (), start=1)}
        return [{"role": "system", "content": system}, {"role": "user", "content": fill(template, **values)}]

    def settings(self) -> dict[str, Any]:
        """Return server and prompts; `observed` fills as answers come, all else stays the same."""
        return {
            "type": "mt-bench",
            "judge_prompts_sha256": self._sha256,
            **self._server.settings(max_new_tokens=JUDGE_TOKENS),
        }


def prompt_name(category: str, turn: int) -> str:
    """Return the name of the judge prompt for a turn of a question of a category."""
    return f"single-{'math-' if category in REFERENCED else ''}v1{'-multi-turn' if turn == 2 else ''}"


def read_rating(judgement: str) -> Rating:
    """Read the first [[rating]], or the first [rating] where there is none.

    Args:
        judgement: the judge's words.

    Returns:
        The rating; a number outside 1 to 10 is none (the published script would count it).
    """
    for pattern, rule in zip(RATINGS, ("[[rating]]", "[rating]"), strict=True):
        found = pattern.search(judgement)
        if found is not None:
            score = float(found[1])
            if 1 <= score <= 10:
                return Rating(score, rule, judgement)
            return Rating(None, f"{rule} is {found[1]}, not from 1 to 10", judgement)
    return Rating(None, "no rating", judgement)
