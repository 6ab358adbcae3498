"""MT-Bench's questions and what is fixed about answering them; see `mtbench`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from geomsafe.data.files import read_table
from geomsafe.errors import DataError

TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
"""At which each category is answered: `temperature_config` of common.py (FastChat 007ecd07)."""

REFERENCED = frozenset({"math", "reasoning", "coding"})
"""Categories that are judged against GPT-4's answer: `NEED_REF_CATS` of common.py."""

ANSWER_TOKENS = 1024
"""Longest answer to a question: `--max-tokens` of gen_api_answer.py (FastChat 00bb41fe)."""

PUBLISHED = "use the file that FastChat publishes"


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: the published number.
        category: such as "writing".
        turns: what the user says first and second.
        references: GPT-4's answers, for categories that are judged against them.
    """

    id: int
    category: str
    turns: tuple[str, str]
    references: tuple[str, str] | None


class MtBenchCase(NamedTuple):
    """One answer to rate.

    Attributes:
        question: what was asked.
        turn: 1 or 2.
        answers: the model's answers up to this turn.
    """

    question: Question
    turn: int
    answers: tuple[str, ...]


def mtbench_questions(folder: Path) -> list[Question]:
    """Read the questions, with references where the category is judged against them.

    Args:
        folder: holds `question.jsonl` and `reference_answer/gpt-4.jsonl`.

    Returns:
        The questions in the order of the file.

    Raises:
        DataError: a file is missing or broken, or a question has not two turns, no known category or no reference.
    """
    references = {
        row["question_id"]: _pair(_first_choice(row["choices"]), row["question_id"])
        for row in published_rows(folder / "reference_answer" / "gpt-4.jsonl", ("question_id", "choices"))
    }
    questions = []
    for row in published_rows(folder / "question.jsonl", ("question_id", "category", "turns")):
        number, category = row["question_id"], row["category"]
        if category not in TEMPERATURES:
            raise DataError(f"MT-Bench question {number}: category '{category}' is none of {', '.join(TEMPERATURES)}")
        if category in REFERENCED and number not in references:
            raise DataError(f"MT-Bench question {number} ({category}) has no answer in reference_answer/gpt-4.jsonl")
        reference = references[number] if category in REFERENCED else None
        questions.append(Question(number, category, _pair(row["turns"], number), reference))
    return questions


def published_rows(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Read a published file.

    Args:
        path: a .jsonl.
        columns: what every row has to have.

    Returns:
        The rows.

    Raises:
        DataError: it is missing or broken, or a row lacks a column.
    """
    table = read_table(path)
    for row in table.rows:
        for column in columns:
            if row.values.get(column) is None:
                raise DataError(
                    f"{table.title} {row.place}: '{column}' is missing: use the file that FastChat publishes"
                )
    return [dict(row.values) for row in table.rows]


def _first_choice(choices: Any) -> Any:
    """Return the turns of the first of several answers, None where there are none."""
    first = choices[0] if isinstance(choices, list) and choices else None
    return first.get("turns") if isinstance(first, dict) else None


def _pair(turns: Any, number: int) -> tuple[str, str]:
    if not isinstance(turns, list) or len(turns) != 2 or not all(isinstance(turn, str) for turn in turns):
        raise DataError(f"MT-Bench question {number} has not two turns of text: {PUBLISHED}")
    return turns[0], turns[1]
