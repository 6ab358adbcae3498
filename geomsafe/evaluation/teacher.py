"""Teacher-forced readings of a model on answers that are given: logits, losses, divergence from another model.

Nothing is generated. Rows are padded on the right and masked; equal batches pad alike, so that a model compared with
itself differs by exactly nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from geomsafe.data import Encoded, collate
from geomsafe.data.encoding import IGNORED
from geomsafe.gradients.undisturbed import undisturbed


def answer_logits(model: Any, rows: Sequence[Encoded], batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits and targets at the answer positions of each row.

    Args:
        model: a causal LM, left as found.
        rows: examples with labels.
        batch_size: rows read together.

    Yields:
        Per row, in order: (positions, vocabulary) logits on the CPU in at least float32, and (positions,) the tokens
        that stand there.
    """
    with undisturbed(model), torch.no_grad():
        for start in range(0, len(rows), batch_size):
            batch = collate(rows[start : start + batch_size], pad_id=0)
            labels = batch["labels"][:, 1:]
            inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
            logits = model(**inputs, use_cache=False).logits[:, :-1]
            for row, targets in zip(logits, labels, strict=True):
                kept = targets != IGNORED
                found = row[kept.to(row.device)].cpu()
                yield found if found.dtype == torch.float64 else found.float(), targets[kept]


def answer_losses(model: Any, rows: Sequence[Encoded], batch_size: int) -> Tensor:
    """Compute the negative log-likelihood of each row's answer.

    Args:
        model: a causal LM, left as found.
        rows: examples with labels.
        batch_size: rows read together.

    Returns:
        (rows, 2) float64: sum of -log p over the answer's tokens in nats, and the number of tokens.
    """
    found = [
        (-_log_softmax(logits).gather(-1, targets[:, None]).sum(), float(len(targets)))
        for logits, targets in answer_logits(model, rows, batch_size)
    ]
    return torch.tensor(found, dtype=torch.float64).reshape(-1, 2)


class Divergence:
    """Forward KL divergence D(start || model) at given answers, full vocabulary, in nats.

    D = sum over tokens v of p_start(v) (log p_start(v) - log p_model(v)), at each answer position; the answers are
    data, the same for both models. The start's logits are kept on the CPU: positions x vocabulary x 4 bytes.
    """

    def __init__(self, start: Any, rows: Sequence[Encoded], batch_size: int, first: int | None = None) -> None:
        """Read the start.

        Args:
            start: the model that the divergence is taken from, left as found.
            rows: examples with labels.
            batch_size: rows read together, also later.
            first: only the first positions of each answer; None for all.
        """
        self._rows = rows
        self._batch_size = batch_size
        self._first = first
        self._start = [logits[:first].clone() for logits, _ in answer_logits(start, rows, batch_size)]

    def of(self, model: Any) -> Tensor:
        """Compute the divergence of a model.

        Args:
            model: a causal LM with the start's vocabulary, left as found.

        Returns:
            (positions,) float64, all rows one after another; never negative but for rounding.
        """
        return torch.cat(self.by_row(model))

    def by_row(self, model: Any) -> list[Tensor]:
        """Compute the same row by row.

        Args:
            model: as in `of`.

        Returns:
            (rows,) of (positions,) float64: as many as the answer has, `first` at most.
        """
        return [
            _divergence(start, logits[: self._first])
            for start, (logits, _) in zip(self._start, answer_logits(model, self._rows, self._batch_size), strict=True)
        ]


def _divergence(start: Tensor, other: Tensor) -> Tensor:
    ours, theirs = _log_softmax(start), _log_softmax(other)
    return (ours.exp() * (ours - theirs)).sum(dim=-1)


def _log_softmax(logits: Tensor) -> Tensor:
    # Near the start a divergence is a small difference of large numbers: float32 leaves three figures of it.
    return logits.double().log_softmax(dim=-1)
