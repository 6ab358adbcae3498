"""Batched decoding whose finished rows leave the batch, greedy or sampled.

`generate` keeps finished rows in the batch until the longest one ends, and their padding is
computed like text. Here a row leaves at its end token, or where `settled` says that nothing it
could still say matters, its keys and values are dropped from the cache, and the batch shrinks. In
float64 greedy tokens equal those of `generate(do_sample=False)` on each prompt alone; in lower
precision a padded batch can round differently and flip a near tie. Sampled tokens depend on the
seed and the prompt's number alone, never on the batch.

Greedy means the largest logit and nothing else: processors that a generation config asks for
(a repetition penalty, suppressed tokens) are not applied, in either engine, and
`ignored_processors` names them for the record.

What is not covered: beams; models whose state is no key-value cache go through `generate` with
the same settings, one prompt at a time, and never end early.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from geomsafe.data import Conversation, encode
from geomsafe.errors import DataError
from geomsafe.evaluation.batching import goes_alone
from geomsafe.evaluation.choosing import GREEDY, Choosing
from geomsafe.evaluation.loop import decode_batch, decode_with_generate, plain_model
from geomsafe.evaluation.memory import release_memory, rows_that_fit
from geomsafe.gradients.undisturbed import undisturbed

Progress = Callable[[int, int], None]
"""Called with (prompts done, prompts in all)."""


@dataclass(frozen=True)
class Completion:
    """One answer.

    Attributes:
        text: the answer without special tokens, the opening it was given included.
        tokens: number of generated tokens, the end token not counted.
        finished: True when an end token came, False when the length limit or `settled` did.
        stopped_early: True when `settled` ended it: the text is the beginning of a longer answer.
    """

    text: str
    tokens: int
    finished: bool
    stopped_early: bool = False


def generate_greedy(
    model: Any,
    tokenizer: Any,
    prompts_ids: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int,
    progress: Progress | None = None,
    stop_ids: frozenset[int] | None = None,
) -> list[Completion]:
    """Answer prompts greedily; `complete` without what only scoring needs.

    Args:
        model: a causal LM (or peft model) of transformers.
        tokenizer: its tokenizer.
        prompts_ids: token ids of each prompt, generation prompt included, not padded.
        max_new_tokens: longest answer, end token included.
        batch_size: most rows that run together.
        progress: called after every row that ends.
        stop_ids: tokens that end an answer (default: `stop_token_ids(model, tokenizer)`).

    Returns:
        One completion a prompt, in the order of the prompts.
    """
    answers: dict[int, Completion] = {}

    def ended(place: int, completion: Completion) -> None:
        answers[place] = completion
        if progress is not None:
            progress(len(answers), len(prompts_ids))

    complete(model, tokenizer, prompts_ids, max_new_tokens, batch_size, ended, stop_ids=stop_ids)
    return [answers[place] for place in range(len(prompts_ids))]


def complete(
    model: Any,
    tokenizer: Any,
    prompts_ids: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int,
    ended: Callable[[int, Completion], None],
    *,
    choosing: Choosing = GREEDY,
    numbers: Sequence[int] | None = None,
    openings: Sequence[Sequence[int]] | None = None,
    settled: Callable[[str], bool] | None = None,
    stop_ids: frozenset[int] | None = None,
) -> None:
    """Answer prompts and hand over each answer when it ends; modes and torch's random state are left as they were.

    Args:
        model: a causal LM (or peft model) of transformers.
        tokenizer: its tokenizer.
        prompts_ids: token ids of each prompt, generation prompt and opening included, not padded.
        max_new_tokens: longest answer, end token included, opening not counted; a prompt near the end of the model's
            context gets as many as fit.
        batch_size: most rows that run together; fewer where memory does not hold them. Prompts of like length share
            a batch, the longest go first: what does not fit in memory fails at once, not after an hour.
        ended: called once a prompt with its place in `prompts_ids` and its completion.
        choosing: greedy or sampled.
        numbers: (prompts,) numbers that decide the draws beside the seed (default: the places).
        openings: (prompts,) the last tokens of each prompt that count as the beginning of its answer.
        settled: whether an answer that begins with a text needs no more of it; the row then leaves.
        stop_ids: tokens that end an answer (default: `stop_token_ids(model, tokenizer)`).

    Raises:
        ValueError: a prompt is empty or fills the context, or batch size or length is not positive.
        OutOfMemoryError: not even one row fits.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise ValueError(f"max_new_tokens ({max_new_tokens}) and batch_size ({batch_size}) must be positive")
    stops = stop_token_ids(model, tokenizer) if stop_ids is None else stop_ids
    limits = [_room(model, ids, max_new_tokens) for ids in prompts_ids]
    begun = openings if openings is not None else [()] * len(prompts_ids)
    draws = numbers if numbers is not None else range(len(prompts_ids))

    def enough(place: int, generated: list[int]) -> bool:
        return settled is not None and settled(_text(tokenizer, [*begun[place], *generated]))

    done: set[int] = set()

    def hand_over(place: int, generated: list[int]) -> None:
        done.add(place)
        finished = bool(generated) and generated[-1] in stops
        tokens = generated[:-1] if finished else generated
        early = not finished and len(generated) < limits[place]
        ended(place, Completion(_text(tokenizer, [*begun[place], *tokens]), len(tokens), finished, early))

    pending = sorted(range(len(prompts_ids)), key=lambda place: (-len(prompts_ids[place]), place))
    with undisturbed(model), torch.no_grad():
        if not supports_dynamic_cache(model):
            for place in pending:
                ids, limit = prompts_ids[place], limits[place]
                hand_over(place, decode_with_generate(model, ids, limit, stops, choosing, draws[place]))
            return
        watch = enough if settled is not None else None
        while pending:
            longest = len(prompts_ids[pending[0]]) + max_new_tokens
            alone = goes_alone(plain_model(model), longest)
            size = 1 if alone else min(batch_size, rows_that_fit(model, longest))
            batch = {place: list(prompts_ids[place]) for place in pending[:size]}
            fitted = True
            try:
                decode_batch(model, batch, limits, stops, choosing, draws, watch, hand_over)
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                fitted = False
            if not fitted:
                # Outside the handler, whose traceback holds the tensors. What ended before stays ended.
                batch_size = len(batch) // 2
                release_memory()
                warnings.warn(f"memory does not hold {len(batch)} rows: going on with {batch_size}", stacklevel=2)
            pending = [place for place in pending if place not in done]


def stop_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end an answer: those of generation config, config, tokenizer and template.

    A template may close a turn with another token than the tokenizer's end of text (ChatML on a base
    model); fine-tuning teaches that token, so decoding has to know it.

    Args:
        model: a causal LM of transformers.
        tokenizer: its tokenizer.

    Returns:
        Token ids; empty where nothing ends an answer but its length.
    """
    found: set[int] = set()
    for owner in (getattr(model, "generation_config", None), getattr(model, "config", None), tokenizer):
        ids = getattr(owner, "eos_token_id", None)
        if ids is not None:
            found.update([ids] if isinstance(ids, int) else ids)
    end = _end_of_turn(tokenizer)
    return frozenset(found if end is None else found | {end})


def _end_of_turn(tokenizer: Any) -> int | None:
    """Return the special token with which the chat template ends an answer, None without one."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello"}]
    try:
        answer = encode(Conversation(turns, cluster="", row=0), tokenizer, max_length=4096).input_ids
    except DataError:
        # It writes no whole conversation, but a prompt can be written with it.
        return None
    last = answer[-1]
    return last if last in {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} else None


def context_length(model: Any) -> int | None:
    """Return the largest number of positions the model was made for, None where it has no limit."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(length) if length else None


def ignored_processors(model: Any) -> dict[str, Any]:
    """Return what a generation config asks for that plain greedy decoding does not do.

    Args:
        model: a causal LM of transformers.

    Returns:
        Names and values of the processors left out, e.g. {"repetition_penalty": 1.05}; lists as text.
    """
    config = getattr(model, "generation_config", None)
    neutral: dict[str, tuple[Any, ...]] = {
        "repetition_penalty": (None, 1.0),
        "no_repeat_ngram_size": (None, 0),
        "bad_words_ids": (None,),
        "suppress_tokens": (None,),
        "begin_suppress_tokens": (None,),
        "sequence_bias": (None,),
        "forced_bos_token_id": (None,),
        "forced_eos_token_id": (None,),
        "min_length": (None, 0),
        "min_new_tokens": (None, 0),
        "exponential_decay_length_penalty": (None,),
        "guidance_scale": (None, 1, 1.0),
    }
    asked = {name: getattr(config, name, None) for name in neutral}
    active = {name: value for name, value in asked.items() if value not in neutral[name]}
    return {name: value if isinstance(value, int | float) else str(value) for name, value in active.items()}


def supports_dynamic_cache(model: Any) -> bool:
    """Return whether every layer's state is a key-value cache from which rows can be dropped."""
    base = plain_model(model)
    if not base._supports_default_dynamic_cache() or base.config.is_encoder_decoder:
        return False
    if "mamba" in type(base).__name__.lower():
        return False
    try:
        layers = DynamicCache(config=base.config).layers
    except (KeyError, AttributeError):
        return False
    return all(type(layer) in {DynamicLayer, DynamicSlidingWindowLayer} for layer in layers)


def _room(model: Any, ids: Sequence[int], max_new_tokens: int) -> int:
    if not ids:
        raise ValueError("a prompt has no tokens: render it with the chat template first")
    context = context_length(model)
    if context is None:
        return max_new_tokens
    if len(ids) >= context:
        raise ValueError(f"a prompt of {len(ids)} tokens fills the context of {context}: shorten it")
    return min(max_new_tokens, context - len(ids))


def _text(tokenizer: Any, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=True))
