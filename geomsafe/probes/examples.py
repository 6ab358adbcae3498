"""Probe examples, and examples as padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from geomsafe.data.encoding import IGNORED


class Example(Protocol):
    """What a probe needs of an example; `geomsafe.data.Encoded` has it."""

    @property
    def input_ids(self) -> Sequence[int]:
        """Token ids, not padded."""

    @property
    def labels(self) -> Sequence[int]:
        """Token ids of the answer and -100 elsewhere, not shifted."""


@dataclass(frozen=True)
class ProbeExample:
    """A prompt with an answer, in tokens, and what it may depend on."""

    id: str  # of the prompt
    cluster: str  # examples of one cluster are not independent of each other
    input_ids: list[int]
    labels: list[int]  # the answer's tokens, -100 elsewhere

    @property
    def prompt_tokens(self) -> list[int]:
        """The tokens before the answer."""
        return self.input_ids[: answer_start(self.labels)]

    @property
    def answer(self) -> list[int]:
        """The tokens of the answer, end token included."""
        return self.input_ids[answer_start(self.labels) :]


def answer_start(labels: Sequence[int]) -> int:
    """Return the position of the first target token."""
    return next(position for position, label in enumerate(labels) if label != IGNORED)


def padded(examples: Sequence[Example], pad_id: int) -> dict[str, Tensor]:
    """Pad examples on the right into one batch.

    Args:
        examples: the examples, in their order.
        pad_id: token id of padding.

    Returns:
        `input_ids`, `attention_mask` and `labels`, each (examples, tokens).
    """
    width = max(len(example.input_ids) for example in examples)
    filled = {"input_ids": pad_id, "attention_mask": 0, "labels": IGNORED}
    batch = {key: torch.full((len(examples), width), fill, dtype=torch.int64) for key, fill in filled.items()}
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        batch["input_ids"][row, :length] = torch.as_tensor(example.input_ids)
        batch["labels"][row, :length] = torch.as_tensor(example.labels)
        batch["attention_mask"][row, :length] = 1
    return batch
