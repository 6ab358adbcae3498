"""Evaluations on disk: the rows, and beside them what they are.

    evaluations/<weights>--<suite>.jsonl   one row a prompt: what was asked, answered and said of the answer
    evaluations/<weights>--<suite>.json    identity, settings, scores, and a hash of the rows but for verdicts

Verdicts are left out of the hash since they can be given anew from the rest; answers cannot.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geomsafe.errors import RecordError
from geomsafe.records import Evaluation, content_sha256, read_jsonl, write_atomic, write_jsonl

SCHEMA = "geomsafe.evaluation/2"

Row = dict[str, Any]


@dataclass(frozen=True)
class Stored:
    """An evaluation with its rows.

    Attributes:
        evaluation: what it is; `file` is relative to the run directory.
        identity: what decided the answers.
        rows: in the order of the prompts.
    """

    evaluation: Evaluation
    identity: dict[str, Any]
    rows: list[Row]

    def write(self, out: Path) -> None:
        """Write rows and description, each whole or not at all.

        Args:
            out: the run directory.
        """
        path = out / self.evaluation.file
        write_jsonl(path, self.rows)
        described = {
            "schema": SCHEMA,
            "identity": self.identity,
            "answers_sha256": answers_sha256(self.rows),
            "evaluation": self.evaluation.model_dump(mode="json"),
        }
        write_atomic(path.with_suffix(".json"), json.dumps(described, indent=2, ensure_ascii=False) + "\n")


def read_stored(path: Path) -> Stored:
    """Read an evaluation.

    Args:
        path: its .json.

    Returns:
        The evaluation with its rows.

    Raises:
        RecordError: a file is missing or damaged, or of another version.
    """
    remedy = "score the model again"
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        evaluation = Evaluation.model_validate(described["evaluation"])
        schema, answers, identity = described["schema"], described["answers_sha256"], described["identity"]
    except OSError as error:
        raise RecordError(f"'{path}' cannot be read ({error}): {remedy}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(f"'{path}' describes no evaluation of this version ({error!r}): {remedy}") from None
    if schema != SCHEMA:
        raise RecordError(f"'{path}' is of version '{schema}', this geomsafe reads '{SCHEMA}': {remedy}")
    rows = list(read_jsonl(path.with_suffix(".jsonl")))
    if answers != answers_sha256(rows):
        raise RecordError(f"the answers in '{path.with_suffix('.jsonl')}' are not those that were scored: {remedy}")
    return Stored(evaluation, identity, rows)


def stored_files(folder: Path) -> list[Path]:
    """Return the descriptions of the evaluations in a run directory, or in its `evaluations/`, by name."""
    inner = folder / "evaluations"
    found = (inner if inner.is_dir() else folder).glob("*--*.json")
    return sorted(path for path in found if not path.name.endswith(".measure.json"))


def answers_sha256(rows: list[Row]) -> str:
    """Return the SHA-256 of rows without their verdicts."""
    return content_sha256({key: value for key, value in row.items() if key != "verdicts"} for row in rows)
