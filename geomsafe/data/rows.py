"""What every data set becomes: conversations to train on, prompts to score and probe with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from geomsafe.records import content_sha256

Message = dict[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}"""


@dataclass(frozen=True)
class Conversation:
    """One training example; the loss is taken on its last turn, the assistant's.

    Attributes:
        messages: turns; a system turn may come first, the last is the assistant's.
        cluster: examples of one cluster are not independent of each other.
        row: 1 for the first row of its source.
        tags: what else the source says about it, such as a category.
    """

    messages: list[Message]
    cluster: str
    row: int
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """The last user turn."""
        return next(turn["content"] for turn in reversed(self.messages) if turn["role"] == "user")

    @property
    def answer(self) -> str:
        """The last turn, the assistant's."""
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class Prompt:
    """One prompt to generate from.

    Attributes:
        id: 16 hexadecimal digits of the SHA-256 of system turn and text.
        text: the user's turn.
        system: the system turn, if the source has one.
        reference: the right answer, if the source has one; never a benchmark's attack target.
        cluster: prompts of one cluster are not independent of each other: the source's, else that of its
            near-duplicates, else its own id.
        tags: what else the source says about it: category, label, type.
        target: what an attack wants the model to say, if a benchmark gives it; never an answer.
    """

    id: str
    text: str
    system: str | None
    reference: str | None
    cluster: str
    tags: dict[str, str] = field(default_factory=dict)
    target: str | None = None


@dataclass(frozen=True)
class ConversationSet:
    """A training set.

    Attributes:
        rows: in the order of the source.
        source: the name or file that the user gave.
        sha256: hash of the messages in order.
        notes: what was decided in reading it, for the record.
    """

    rows: list[Conversation]
    source: str
    sha256: str
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class PromptSet:
    """A set of prompts.

    Attributes:
        rows: in the order of the source.
        source: the name or file that the user gave.
        sha256: hash of texts, system turns and references in order.
        notes: what was decided in reading it, for the record.
    """

    rows: list[Prompt]
    source: str
    sha256: str
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)


def conversation_set(rows: list[Conversation], source: str, notes: list[str]) -> ConversationSet:
    """Return the rows with their hash."""
    return ConversationSet(rows, source, content_sha256(row.messages for row in rows), notes)


def prompt_set(rows: list[Prompt], source: str, notes: list[str]) -> PromptSet:
    """Return the rows with their hash."""
    return PromptSet(rows, source, content_sha256([row.text, row.system, row.reference] for row in rows), notes)


def prompt_id(text: str, system: str | None = None) -> str:
    """Return 16 hexadecimal digits that name a prompt by its content."""
    return hashlib.sha256(f"{system or ''}\x00{text}".encode()).hexdigest()[:16]


def split_sha(row: Conversation | Prompt) -> str:
    """Return the hash that decides on which side of a split a row falls.

    It depends on the last user turn alone, case and spacing folded, so that a prompt which occurs twice, with
    two answers, is never on both sides.
    """
    text = row.prompt if isinstance(row, Conversation) else row.text
    return hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()


RowT = TypeVar("RowT", Conversation, Prompt)


def hold_out(rows: Sequence[RowT], count: int) -> tuple[list[RowT], list[RowT]]:
    """Split off about `count` rows by content hash, whatever their order in the file.

    Rows of equal prompt stay together, so that a few more than `count` may be held out.

    Args:
        rows: all rows.
        count: rows to hold out.

    Returns:
        (kept, held out), both in the order of `rows`.
    """
    hashes = [split_sha(row) for row in rows]
    chosen = set(sorted(hashes)[:count])
    kept = [row for row, digest in zip(rows, hashes, strict=True) if digest not in chosen]
    held = [row for row, digest in zip(rows, hashes, strict=True) if digest in chosen]
    return kept, held


def as_text(value: Any) -> str | None:
    """Return a cell as text: None where there is nothing, numbers as they are written."""
    if value is None or value != value:  # NaN is how data frames say nothing
        return None
    if isinstance(value, bool | int | float):
        return str(value)
    return value if isinstance(value, str) else None
