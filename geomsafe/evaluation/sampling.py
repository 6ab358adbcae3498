"""Answers sampled from a model: what it would say, in the proportions in which it would say it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from geomsafe.evaluation.decoding import context_length, stop_token_ids, supports_dynamic_cache
from geomsafe.gradients.undisturbed import undisturbed


def sample_answers(
    model: Any, tokenizer: Any, prompts_ids: Sequence[Sequence[int]], max_new_tokens: int, batch_size: int, seed: int
) -> list[list[int]]:
    """Draw one answer a prompt from the model's own distribution: temperature 1, no cut of its tail.

    Args:
        model: a causal LM of transformers; its modes and torch's random state are left as they were.
        tokenizer: its tokenizer.
        prompts_ids: token ids of each prompt, generation prompt included, not padded.
        max_new_tokens: longest answer, end token included; a batch near the end of the model's context gets as many
            as fit behind its longest prompt, and at least one.
        batch_size: rows that run together; they are left-padded to one length. Models whose state is no key-value
            cache would run over the padding: they take one prompt at a time.
        seed: of the draws; the draws of a prompt also depend on the batch it is in.

    Returns:
        Token ids of each answer, in the order of the prompts, its end token included where one came.
    """
    stops = stop_token_ids(model, tokenizer)
    plain = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=sorted(stops) or None,
        pad_token_id=min(stops, default=0),
    )  # type: ignore[no-untyped-call]
    found, answers = model.generation_config, []
    together = batch_size if supports_dynamic_cache(model) else 1
    # `generate` fills what a call leaves open from the model's own config, processors included.
    model.generation_config = plain
    try:
        with undisturbed(model), torch.no_grad():
            torch.manual_seed(seed)
            for start in range(0, len(prompts_ids), together):
                answers += _drawn(model, prompts_ids[start : start + together], stops, max_new_tokens)
    finally:
        model.generation_config = found
    return answers


def _drawn(model: Any, prompts: Sequence[Sequence[int]], stops: frozenset[int], max_new_tokens: int) -> list[list[int]]:
    longest = max(map(len, prompts))
    context = context_length(model)
    room = max_new_tokens if context is None else max(1, min(max_new_tokens, context - longest))
    padding = [longest - len(ids) for ids in prompts]
    tokens = torch.tensor([[0] * pad + list(ids) for pad, ids in zip(padding, prompts, strict=True)])
    mask = torch.tensor([[0] * pad + [1] * len(ids) for pad, ids in zip(padding, prompts, strict=True)])
    drawn = model.generate(input_ids=tokens.to(model.device), attention_mask=mask.to(model.device), max_new_tokens=room)
    return [_up_to_stop(row, stops) for row in drawn[:, longest:].tolist()]


def _up_to_stop(answer: list[int], stops: frozenset[int]) -> list[int]:
    end = next((place for place, token in enumerate(answer) if token in stops), len(answer) - 1)
    return answer[: end + 1]
