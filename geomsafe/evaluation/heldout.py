"""Held-out loss: how well a model predicts the answers of conversations that it was not trained on.

    loss       = sum over examples of L_i / sum over examples of T_i      nats per answer token
    perplexity = exp(loss)

L_i is the negative log-likelihood of example i's answer, T_i its tokens, the end of the turn included. Long answers
weigh more, as in training. The tokens of an answer are not independent, and neither are examples of one cluster: the
standard error is that of a ratio of sums over clusters (delta method),

    se = sqrt(C / (C - 1) * sum over clusters of (sum of L_i - loss * sum of T_i)^2) / sum of T_i

with C clusters (Miller 2411.00640 for a mean by cluster; Cochran, Sampling Techniques, chapter 6, for a ratio).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geomsafe.data import Conversation, ConversationSet, encode_all
from geomsafe.evaluation.teacher import answer_losses
from geomsafe.models import Loaded


@dataclass(frozen=True)
class HeldOut:
    """Loss on held-out conversations.

    Attributes:
        loss: nats per answer token, at least 0.
        perplexity: exp(loss), at least 1; infinite where that is too large for a float.
        standard_error: of the loss, by cluster; None with one cluster.
        tokens: answer tokens.
        examples: conversations with answer tokens.
        clusters: independent groups of examples.
        truncated: examples whose answer is cut at the length limit; the rest of it is not in the loss.
        dropped: conversations whose prompt alone fills the limit, not among the examples.
    """

    loss: float
    perplexity: float
    standard_error: float | None
    tokens: int
    examples: int
    clusters: int
    truncated: int
    dropped: int


def held_out_loss(
    loaded: Loaded,
    conversations: ConversationSet | Sequence[Conversation],
    *,
    max_length: int = 2048,
    batch_size: int = 8,
    system_prompt: str | None = None,
) -> HeldOut:
    """Measure the loss on the last answer of every conversation, written with the model's chat template.

    Args:
        loaded: the model, left as found.
        conversations: what it should predict.
        max_length: longest example in tokens; longer ones are cut from the right.
        batch_size: examples that run together, longest first.
        system_prompt: system turn for conversations that have none.

    Returns:
        The loss with its standard error and counts.
    """
    given = conversations.rows if isinstance(conversations, ConversationSet) else conversations
    encoded = encode_all(conversations, loaded.tokenizer, max_length, system_prompt)
    order = sorted(range(len(encoded)), key=lambda index: -len(encoded.rows[index].input_ids))
    found = answer_losses(loaded.model, [encoded.rows[index] for index in order], batch_size)
    sums, tokens = found.numpy().T
    clusters = [given[encoded.kept[index]].cluster for index in order]
    loss = float(sums.sum() / tokens.sum())
    return HeldOut(
        loss=loss,
        perplexity=math.exp(loss) if loss < math.log(float(np.finfo(np.float64).max)) else math.inf,
        standard_error=ratio_error(sums, tokens, clusters),
        tokens=int(tokens.sum()),
        examples=len(encoded),
        clusters=len(set(clusters)),
        truncated=encoded.truncated,
        dropped=encoded.dropped,
    )


def ratio_error(sums: NDArray[np.float64], sizes: NDArray[np.float64], clusters: Sequence[str]) -> float | None:
    """Compute the standard error of sum(sums) / sum(sizes) with whole clusters as units.

    Args:
        sums: (examples,) numerators.
        sizes: (examples,) denominators; all 1 for a mean.
        clusters: (examples,) what each belongs to.

    Returns:
        The standard error, None with one cluster.
    """
    _, place = np.unique(np.asarray(clusters), return_inverse=True)
    groups = int(place.max()) + 1
    if groups < 2:
        return None
    residuals = np.bincount(place, weights=sums - sizes * (sums.sum() / sizes.sum()), minlength=groups)
    return float(math.sqrt(groups / (groups - 1) * (residuals**2).sum()) / sizes.sum())
