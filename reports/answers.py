"""Judged answers without their text: what rates are made of, small enough to hold for a whole sweep."""

from __future__ import annotations

from pathlib import Path
from sys import intern
from typing import Any, NamedTuple

from geomsafe.errors import RecordError
from geomsafe.records import read_jsonl
from geomsafe.reports.visible import visible

# Tags by which prompts are told apart; others, such as a focus word of its own for each prompt, are let go.
TAGS = ("category", "type", "kind")


class Answers(NamedTuple):
    """One evaluation: (prompts,) ids and clusters, and each judge's (prompts,) verdicts, None where it gave none.

    `tags` holds those of `TAGS` that some prompt has, each (prompts,), None where a prompt has it not.
    """

    ids: tuple[str, ...]
    clusters: tuple[str, ...]
    verdicts: dict[str, tuple[str | None, ...]]
    tags: dict[str, tuple[str | None, ...]]


def read_answers(path: Path) -> Answers:
    """Read the verdicts of an evaluation file and let go of prompts and completions.

    Args:
        path: the .jsonl.

    Returns:
        The verdicts, in the order of the file.

    Raises:
        RecordError: the file is missing, a line is torn, or a row has no id, cluster or verdicts.
    """
    ids: list[str] = []
    clusters: list[str] = []
    verdicts: dict[str, list[str | None]] = {}
    tags: dict[str, list[str | None]] = {}
    count = 0
    try:
        for count, row in enumerate(read_jsonl(path)):
            # Few strings make up millions of rows: one copy of each is kept.
            ids.append(intern(str(row["id"])))
            clusters.append(intern(str(row["cluster"])))
            for judge, said in row["verdicts"].items():
                _put(verdicts, visible(judge), count, said["value"] if said else None)
            for tag in TAGS:
                if (found := row.get("tags", {}).get(tag)) is not None:
                    _put(tags, tag, count, visible(str(found)))
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"'{path}' line {count + 1} is no judged answer: {error!r}; score the run again") from None
    return Answers(tuple(ids), tuple(clusters), _padded(verdicts, len(ids)), _padded(tags, len(ids)))


def _put(columns: dict[str, list[str | None]], name: str, row: int, value: Any) -> None:
    column = columns.setdefault(name, [])
    column += [None] * (row - len(column))
    column.append(None if value is None else intern(str(value)))


def _padded(columns: dict[str, list[str | None]], rows: int) -> dict[str, tuple[str | None, ...]]:
    return {name: (*column, *[None] * (rows - len(column))) for name, column in columns.items()}
