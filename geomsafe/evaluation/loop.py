"""The batch loop under `decoding`: one forward pass a token, rows leave as they end."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from geomsafe.errors import NonFiniteError
from geomsafe.evaluation.batching import may_share_beginnings
from geomsafe.evaluation.choosing import Choosing
from geomsafe.evaluation.prefill import prefill

Enough = Callable[[int, list[int]], bool]
"""Whether the row at a place needs no more tokens than those generated."""


def decode_batch(
    model: Any,
    prompts: dict[int, list[int]],
    limits: Sequence[int],
    stops: frozenset[int],
    choosing: Choosing,
    numbers: Sequence[int],
    enough: Enough | None,
    ended: Callable[[int, list[int]], None],
) -> None:
    """Decode one batch, left-padded.

    Args:
        model: a causal LM whose layers keep keys and values.
        prompts: token ids by place.
        limits: most tokens by place.
        stops: tokens that end an answer.
        choosing: how a token is chosen.
        numbers: by place, what decides the draws beside the seed.
        enough: asked now and then whether a row may leave before its end.
        ended: called once a row with its place and its generated tokens, end token included.

    Raises:
        NonFiniteError: logits are NaN or infinite: whatever came out would be no answer.
    """
    device, base = model.device, plain_model(model)
    accepted = inspect.signature(base.forward).parameters
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
    cache = DynamicCache(config=base.config)

    def forward(tokens: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        # Models without position_ids (ALiBi) read positions off the mask.
        placed = {"position_ids": positions} if "position_ids" in accepted else {}
        out = model(input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=True, **placed, **last_only)
        last: Tensor = out.logits[:, -1]
        return last

    share = may_share_beginnings(base)
    logits, mask, positions = prefill(list(prompts.values()), forward, cache, share=share, device=device)
    stop = torch.tensor(sorted(stops), dtype=torch.long, device=device)
    generated: dict[int, list[int]] = {place: [] for place in prompts}
    alive = list(prompts)
    length, look = 0, _FIRST_LOOK
    while True:
        if not bool(torch.isfinite(logits.amax())):
            raise NonFiniteError(
                "the model gives no finite logits: load it in float32 or bfloat16, or check its weights"
            )
        chosen = choosing.choose(logits, [numbers[place] for place in alive], length)
        stopped = torch.isin(chosen, stop).tolist()
        length += 1
        looking = enough if enough is not None and length == look else None
        if length == look:
            look += max(1, look // 4)
        staying: list[int] = []
        for row, (place, token) in enumerate(zip(alive, chosen.tolist(), strict=True)):
            own = generated[place]
            own.append(token)
            if stopped[row] or length >= limits[place] or (looking is not None and looking(place, own)):
                ended(place, own)
            else:
                staying.append(row)
        if not staying:
            return
        if len(staying) < len(alive):
            alive = [alive[row] for row in staying]
            kept = torch.tensor(staying, dtype=torch.long, device=device)
            chosen, mask, positions = chosen[kept], mask[kept], positions[kept]
            cache.batch_select_indices(kept)
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=-1)
        positions = positions + 1
        logits = forward(chosen[:, None], mask, positions)


# Refusals show within the first words; later looks grow apart, so that reading what is written stays linear in the
# length and a row runs at most a quarter too long.
_FIRST_LOOK = 2


def decode_with_generate(
    model: Any, prompt: Sequence[int], limit: int, stops: frozenset[int], choosing: Choosing, number: int
) -> list[int]:
    """Decode one prompt alone through `generate`: a recurrent state would run over padding.

    Args:
        model: a causal LM.
        prompt: token ids.
        limit: most tokens.
        stops: tokens that end an answer.
        choosing: how a token is chosen.
        number: what decides the draws beside the seed.

    Returns:
        The generated tokens, end token included.
    """
    base = plain_model(model)
    found = base.generation_config
    drawn = {} if choosing.greedy else {"temperature": choosing.temperature, "top_p": choosing.top_p, "top_k": 0}
    if drawn:
        torch.manual_seed(choosing.seed_of(number))
    # `generate` fills what a call leaves open from the model's own config, processors included.
    base.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        ids = torch.tensor([list(prompt)], device=model.device)
        out = base.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=not choosing.greedy,
            max_new_tokens=limit,
            eos_token_id=sorted(stops) or None,
            pad_token_id=min(stops, default=0),
            **drawn,
        )
    finally:
        base.generation_config = found
    answer: list[int] = out[0, len(prompt) :].tolist()
    return answer


def plain_model(model: Any) -> Any:
    """Return the transformers model inside a peft model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
