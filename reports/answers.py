"""Judged answers without their text: what rates are made of, small enough to hold for a whole sweep."""

from __future__ import annotations

from pathlib import Path
from sys import intern
from typing import NamedTuple

from geomsafe.errors import RecordError
from geomsafe.records import read_jsonl


class Answers(NamedTuple):
    """One evaluation: (prompts,) ids and clusters, and each judge's (prompts,) verdicts, None where it gave none."""

    ids: tuple[str, ...]
    clusters: tuple[str, ...]
    verdicts: dict[str, tuple[str | None, ...]]


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
    count = 0
    try:
        for count, row in enumerate(read_jsonl(path)):
            # Few strings make up millions of rows: one copy of each is kept.
            ids.append(intern(str(row["id"])))
            clusters.append(intern(str(row["cluster"])))
            for judge, said in row["verdicts"].items():
                column = verdicts.setdefault(judge, [])
                column += [None] * (count - len(column))
                column.append(intern(str(said["value"])) if said else None)
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"'{path}' line {count + 1} is no judged answer: {error!r}; score the run again") from None
    padded = {judge: (*column, *[None] * (len(ids) - len(column))) for judge, column in verdicts.items()}
    return Answers(tuple(ids), tuple(clusters), padded)
