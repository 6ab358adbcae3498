"""Multiple-choice items: what stands before the options, the options, and which is right.

Recognised by their columns, whatever the file's format (`read_table`):

    prompt, options, answer                      as it is
    question, choices or A, B, C, D ..., answer  MMLU (Hendrycks et al. 2009.03300)
    question, choices {text, label}, answerKey   ARC (Clark et al. 1803.05457)
    ctx, endings, label                          HellaSwag (Zellers et al. 1905.07830)
    question, mc1_targets                        TruthfulQA, one right answer (Lin et al. 2109.07958)

Prompts are written as in lm-evaluation-harness 0.4, without few-shot examples. In a CSV, a cell with several options
holds JSON.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from geomsafe.data.columns import CLUSTER_COLUMNS, actual_name
from geomsafe.data.files import Row, Table, read_table
from geomsafe.data.rows import as_text, prompt_id
from geomsafe.data.turns import cell_text
from geomsafe.errors import DataError

LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class Choice:
    """One multiple-choice item.

    Attributes:
        id: 16 hexadecimal digits of the SHA-256 of prompt and options.
        prompt: what stands before an option.
        options: the continuations to choose from, at least two, none empty.
        correct: place of the right one, counted from 0.
        cluster: items of one cluster are not independent of each other; its own id if the source says nothing.
    """

    id: str
    prompt: str
    options: tuple[str, ...]
    correct: int
    cluster: str


def make_choice(prompt: str, options: list[str], correct: int, cluster: str | None = None) -> Choice:
    """Return an item under the id of its content.

    Args:
        prompt: what stands before an option.
        options: the continuations.
        correct: place of the right one, counted from 0.
        cluster: what it belongs to; None for itself alone.

    Returns:
        The item.

    Raises:
        DataError: prompt or an option is empty, there are fewer than two options, or none at `correct`.
    """
    if not prompt.strip():
        raise DataError("the prompt is empty")
    if len(options) < 2:
        raise DataError(f"{len(options)} option(s): a choice needs at least two")
    if not all(option.strip() for option in options):
        raise DataError(f"option {[bool(option.strip()) for option in options].index(False) + 1} is empty")
    if not 0 <= correct < len(options):
        raise DataError(f"the right answer is {correct}, but the {len(options)} options count from 0")
    identity = prompt_id("\x00".join([prompt, *options]))
    return Choice(identity, prompt, tuple(options), correct, cluster or identity)


def load_choices(
    path: Path, *, letters: bool | None = None, preamble: str = "", limit: int | None = None
) -> list[Choice]:
    """Load multiple-choice items from a local file.

    Args:
        path: a .csv, .tsv, .json, .jsonl or .parquet file in one of the layouts above.
        letters: list the options under letters in the prompt and choose between the letters; False chooses between
            the options' own texts. None is as the layout is usually read: letters for MMLU, texts for the others.
        preamble: text before every prompt, such as instructions or solved examples.
        limit: only the first items.

    Returns:
        The items, in order.

    Raises:
        DataError: the file cannot be read, has no known columns, or a row is broken; names file, row and column.
    """
    table = read_table(path)
    read, usual = _reader(table)
    cluster_column = next((found for name in CLUSTER_COLUMNS if (found := actual_name(table, name))), None)
    lettered = usual if letters is None else letters
    items = []
    for row in table.rows[:limit]:
        asked = read(table, row)
        asked = replace(asked, options=[option.strip() for option in asked.options])
        cluster = as_text(row.values.get(cluster_column)) if cluster_column else None
        try:
            prompt, options = _with_letters(asked) if lettered else (asked.plain, asked.options)
            items.append(make_choice(preamble + prompt, options, asked.correct, cluster))
        except DataError as error:
            raise DataError(f"{table.title} {row.place}: {error}: mend the row") from None
    return items


@dataclass(frozen=True)
class _Asked:
    """A row as read: the question, the prompt as texts are chosen behind it, the options and the right one."""

    question: str
    plain: str
    options: list[str]
    correct: int


_Reader = Callable[[Table, Row], _Asked]


def _reader(table: Table) -> tuple[_Reader, bool]:
    """Return what reads the table's rows, and whether its options usually stand under letters.

    Raises:
        DataError: no layout has these columns.
    """
    names = {name.lower() for name in table.columns}
    layouts: list[tuple[set[str], _Reader, bool]] = [
        ({"ctx", "endings", "label"}, _hellaswag, False),
        ({"question", "mc1_targets"}, _truthfulqa, False),
        ({"question", "choices", "answerkey"}, _arc, False),
        ({"question", "choices", "answer"}, _mmlu, True),
        ({"question", "a", "b", "answer"}, _mmlu, True),
        ({"prompt", "options", "answer"}, _plain, False),
    ]
    for needed, read, lettered in layouts:
        if needed <= names:
            return read, lettered
    raise DataError(
        f"{table.title} has no multiple-choice columns that geomsafe knows (columns: {', '.join(table.columns[:8])}): "
        "rename them to prompt, options, answer"
    )


def _plain(table: Table, row: Row) -> _Asked:
    prompt, (options, labels) = _text(table, row, "prompt"), _options(table, row, "options")
    return _Asked(prompt, prompt, options, _place(table, row, "answer", options, labels))


def _mmlu(table: Table, row: Row) -> _Asked:
    question = _text(table, row, "question").strip()
    if actual_name(table, "choices"):
        options, labels = _options(table, row, "choices")
    else:
        columns = takewhile(bool, (actual_name(table, letter) for letter in LETTERS))
        options, labels = [cell_text(table, row, str(name)) for name in columns], []
    return _Asked(question, f"{question}\nAnswer:", options, _place(table, row, "answer", options, labels))


def _arc(table: Table, row: Row) -> _Asked:
    question, (options, labels) = _text(table, row, "question"), _options(table, row, "choices")
    correct = _place(table, row, "answerkey", options, labels)
    return _Asked(question, f"Question: {question}\nAnswer:", options, correct)


def _hellaswag(table: Table, row: Row) -> _Asked:
    endings, labels = _options(table, row, "endings")
    if {"ctx_a", "ctx_b", "activity_label"} <= {name.lower() for name in table.columns}:
        first, second = _text(table, row, "ctx_a"), _text(table, row, "ctx_b")
        context = f"{_text(table, row, 'activity_label')}: {first} {second.capitalize()}"
    else:
        context = _text(table, row, "ctx")
    prompt = _without_marks(context)
    options = [_without_marks(ending) for ending in endings]
    return _Asked(prompt, prompt, options, _place(table, row, "label", options, labels))


def _truthfulqa(table: Table, row: Row) -> _Asked:
    question, given = _text(table, row, "question"), _parsed(_cell(table, row, "mc1_targets"))
    options, labels = [], []
    if isinstance(given, dict):
        # On the hub two lists, in the authors' own file {option: 0 or 1}.
        options, labels = given.get("choices", [*given]), given.get("labels", [*given.values()])
    if len(options) != len(labels) or labels.count(1) != 1:
        raise DataError(f"{table.title} {row.place}: column 'mc1_targets' has not one option with label 1")
    return _Asked(question, f"Q: {question}\nA:", [str(option) for option in options], labels.index(1))


def _without_marks(text: str) -> str:
    """Return the text without what WikiHow's layout has left in HellaSwag, as lm-evaluation-harness does."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _with_letters(asked: _Asked) -> tuple[str, list[str]]:
    if not all(asked.options) or len(asked.options) > len(LETTERS):
        raise DataError(f"{len(asked.options)} options, or an empty one: up to {len(LETTERS)} can stand under letters")
    names = list(LETTERS[: len(asked.options)])
    listed = "".join(f"{name}. {option}\n" for name, option in zip(names, asked.options, strict=True))
    return f"{asked.question}\n{listed}Answer:", names


def _cell(table: Table, row: Row, column: str) -> Any:
    return row.values.get(actual_name(table, column) or column)


def _text(table: Table, row: Row, column: str) -> str:
    return cell_text(table, row, actual_name(table, column) or column)


def _parsed(value: Any) -> Any:
    """Return a cell of a CSV that holds JSON as what it says, any other cell as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in {"[", "{"}:
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def _options(table: Table, row: Row, column: str) -> tuple[list[str], list[str]]:
    """Return the options of a cell and their labels, if it has any.

    Raises:
        DataError: it holds no list of texts.
    """
    value, labels = _parsed(_cell(table, row, column)), []
    if isinstance(value, dict) and {"text", "label"} <= set(value):
        value, labels = value["text"], [str(label) for label in value["label"]]
    texts = [as_text(option) for option in value] if isinstance(value, list) else []
    options = [text for text in texts if text is not None]
    if not texts or len(options) != len(texts) or (labels and len(labels) != len(options)):
        raise DataError(
            f"{table.title} {row.place}: column '{column}' is not a list of options: "
            'write ["...", "..."] or {"text": ["...", "..."], "label": ["A", "B"]}'
        )
    return options, labels


def _place(table: Table, row: Row, column: str, options: list[str], labels: list[str]) -> int:
    """Return the place of the right option: by its label, its number from 0, its letter or its text, in this order.

    Raises:
        DataError: the cell names none of them.
    """
    said = _text(table, row, column).strip()
    names = labels or list(LETTERS[: len(options)])
    if said in names:
        return names.index(said)
    if said.isdecimal() and int(said) < len(options):
        return int(said)
    if said in options:
        return options.index(said)
    raise DataError(
        f"{table.title} {row.place}: column '{column}' says '{said}', which is no option: "
        f"write a number from 0 to {len(options) - 1}, one of {', '.join(names)}, or the option's text"
    )
