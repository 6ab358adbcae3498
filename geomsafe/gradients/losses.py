"""The negative log-likelihood of each example, summed over its target tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geomsafe.data.encoding import IGNORED


class TokenLosses(NamedTuple):
    """Token-summed losses of the examples of one batch."""

    losses: Tensor  # (examples,) in nats, float32 (float64 for a float64 model), carries the graph
    tokens: Tensor  # (examples,) int64, number of target tokens


def token_losses(model: Any, batch: Mapping[str, Tensor]) -> TokenLosses:
    """Run the model on a batch and sum -log p(target) over each example's own targets.

    The loss is computed here and not by transformers, whose loss averages over the
    batch, returns float32 even for a float64 model, and adds a mixture's router loss.

    Args:
        model: a causal LM; called without a cache, in whatever mode it is in.
        batch: `input_ids`, `attention_mask`, `labels` (examples, tokens) on any device;
            labels are not shifted, `IGNORED` outside the answer. Padding on either side.

    Returns:
        Losses and token counts, one an example.
    """
    scores, targets, chosen = _target_scores(model, batch)
    each = torch.nn.functional.cross_entropy(scores, targets[chosen], reduction="none")
    # Placed and then summed along rows: scattered addition has no fixed order on CUDA.
    placed = each.new_zeros(targets.shape)
    placed[chosen] = each
    return TokenLosses(placed.sum(dim=1), chosen.sum(dim=1))


def target_log_probs(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Run the model on a batch and give its distribution at each position that predicts a target.

    Args:
        model: as in `token_losses`, and so is `batch`.
        batch: the examples.

    Returns:
        (targets of all examples in order, vocabulary) log-probabilities, float32 (float64 for a float64
        model), with the graph.
    """
    return torch.log_softmax(_target_scores(model, batch)[0], dim=-1)


def _target_scores(model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits (targets, vocabulary), and labels (examples, tokens - 1) with a mask of the targets among them."""
    device = next(model.parameters()).device
    ids, mask, labels = (batch[key].to(device) for key in ("input_ids", "attention_mask", "labels"))
    inputs = {"input_ids": ids, "attention_mask": mask}
    if bool((mask[:, 0] == 0).any()):
        # Left padding: positions count real tokens, or absolute position embeddings shift.
        inputs["position_ids"] = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
    logits = model(**inputs, use_cache=False).logits
    targets = labels[:, 1:]
    chosen = targets != IGNORED
    # Only positions that predict a target are upcast: logits in float32 are the largest tensor here.
    # Where a pass has told the output layer which they are, logits hold nothing else: (1, targets, vocabulary).
    scores = logits[:, :-1][chosen] if logits.shape[:-1] == labels.shape else logits[0]
    if scores.dtype != torch.float64:
        scores = scores.float()
    return scores, targets, chosen
