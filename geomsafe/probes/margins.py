"""Log-probabilities of openings after prompts: refusal margin and first-token log-odds.

Teacher forced, batched, nothing generated. Prompts of equal length share a batch, so that
none is padded. A prompt is read once; its keys and values then serve every opening.
Models whose state is no key-value cache read prompt and opening together.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from geomsafe.gradients.undisturbed import undisturbed
from geomsafe.probes.openings import Opening, starts

EPSILON = 1e-8
"""Keeps the log-odds finite at probability 0 and 1 (Arditi et al., arXiv 2406.11717, their code)."""

ROWS_PER_EXAMPLE = 4
"""Rows of openings beside one example of a gradient batch: without a backward pass, rows are cheap."""


class Margins(NamedTuple):
    """How strongly each prompt is answered by refusing; nats, rising = safer."""

    margin: Tensor | None  # (prompts,) float64; None where there is no compliance opening
    log_odds: Tensor  # (prompts,) float64


def refusal_margins(
    model: Any,
    prompts: Sequence[Sequence[int]],
    refusals: Sequence[Opening],
    compliance: Sequence[Opening],
    batch_size: int,
) -> Margins:
    """Measure how much likelier refusal openings are than compliance openings.

    margin = logsumexp over R of log p(r|x) - logsumexp over C of log p(c|x);
    log_odds = log(p + eps) - log(1 - p + eps), p the probability that the first token is one
    that a refusal of R begins with. Neither saturates as the refusal's likelihood does.

    Args:
        model: a causal LM, left exactly as found.
        prompts: token ids, generation prompt included.
        refusals: R, at least one opening.
        compliance: C; may be empty.
        batch_size: prompts read together, at most.

    Returns:
        Margin and log-odds by prompt.
    """
    firsts = sorted({opening[:1] for opening in refusals})
    asked = [*refusals, *compliance, *firsts]
    found = opening_log_probs(model, prompts, asked, batch_size)
    ours, theirs = found[:, : len(refusals)], found[:, len(refusals) : -len(firsts)]
    first = found[:, -len(firsts) :]
    probability = first.exp().sum(dim=1).clamp(max=1.0)
    log_odds = (probability + EPSILON).log() - (1 - probability + EPSILON).log()
    margin = ours.logsumexp(dim=1) - theirs.logsumexp(dim=1) if compliance else None
    return Margins(margin, log_odds)


def opening_log_probs(
    model: Any, prompts: Sequence[Sequence[int]], openings: Sequence[Opening], batch_size: int
) -> Tensor:
    """Compute log p(opening | prompt) for every pair.

    Args:
        model: a causal LM, left exactly as found.
        prompts: token ids, not padded, none empty.
        openings: token tuples, none empty.
        batch_size: prompts read together, at most.

    Returns:
        (prompts, openings) float64 on the CPU, log-softmax taken in float64.
    """
    # An opening that begins a longer one is read off the longer one's way.
    leaves = _longest(openings)
    place = [(next(i for i, leaf in enumerate(leaves) if starts(leaf, opening)), len(opening)) for opening in openings]
    wide = max(map(len, leaves))
    padded = torch.tensor([[*leaf, *[0] * (wide - len(leaf))] for leaf in leaves])
    together = max(1, min(batch_size, ROWS_PER_EXAMPLE * batch_size // len(leaves)))
    result = torch.empty((len(prompts), len(openings)), dtype=torch.float64)
    device = next(model.parameters()).device
    with undisturbed(model), torch.no_grad():
        for rows in equal_lengths(prompts, together):
            ids = torch.tensor([list(prompts[row]) for row in rows], device=device)
            ways = _ways(model, ids, padded.to(device))
            for column, (leaf, length) in enumerate(place):
                result[rows, column] = ways[:, leaf, length - 1]
    return result


def _longest(openings: Sequence[Opening]) -> list[Opening]:
    once = list(dict.fromkeys(openings))
    return [o for o in once if not any(starts(other, o) for other in once if other != o)]


def equal_lengths(prompts: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Return batches of at most `size` rows in which all prompts have one length, so that none is padded."""
    by_length: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(row)
    return [rows[start : start + size] for rows in by_length.values() for start in range(0, len(rows), size)]


def _ways(model: Any, ids: Tensor, leaves: Tensor) -> Tensor:
    # Log-probability of every beginning of every leaf: (prompts, leaves, tokens of a leaf), on the CPU.
    (prompts, _), (count, wide) = ids.shape, leaves.shape
    out = model(input_ids=ids, use_cache=True, **_last(model, 1))
    first = _log_softmax(out.logits[:, -1])[:, leaves[:, 0].cpu()]
    each = first[:, :, None]
    if wide > 1:
        known = leaves[None, :, :-1].expand(prompts, -1, -1).reshape(prompts * count, wide - 1)
        cache = out.past_key_values
        if _is_plain(cache):
            cache.batch_repeat_interleave(count)
            logits = model(input_ids=known, past_key_values=cache, use_cache=True).logits
        else:
            whole = torch.cat([ids.repeat_interleave(count, dim=0), known], dim=1)
            logits = model(input_ids=whole, use_cache=False, **_last(model, wide - 1)).logits[:, 1 - wide :]
        following = leaves[None, :, 1:].expand(prompts, -1, -1).reshape(prompts * count, wide - 1, 1).cpu()
        later = _log_softmax(logits).gather(-1, following).reshape(prompts, count, wide - 1)
        each = torch.cat([each, later], dim=-1)
    return each.cumsum(dim=-1)


def _log_softmax(logits: Tensor) -> Tensor:
    wide = logits.cpu().double() if logits.device.type == "mps" else logits.double()
    return wide.log_softmax(dim=-1).cpu()


def _last(model: Any, positions: int) -> dict[str, int]:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return {"logits_to_keep": positions} if "logits_to_keep" in inspect.signature(base.forward).parameters else {}


def _is_plain(cache: Any) -> bool:
    return isinstance(cache, DynamicCache) and all(
        type(layer) in {DynamicLayer, DynamicSlidingWindowLayer} for layer in cache.layers
    )
