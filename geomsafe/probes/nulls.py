"""Nulls that need no answers of their own: random tokens, the refusals' text elsewhere, an untrained twin.

What a spectrum or an overlap of the safety set is compared with; docs/numbers.md says which null answers what.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any

import torch

from geomsafe.data.encoding import IGNORED
from geomsafe.gradients.memory import free_bytes
from geomsafe.probes.examples import ProbeExample

RANDOM_TOKENS = "random-tokens"
UNTRAINED = "untrained"
BENIGN_LENGTH = "benign-length"
LOSS_MATCHED = "loss-matched"
SAME_TEXT = "same-text"

NULLS = (RANDOM_TOKENS, UNTRAINED, BENIGN_LENGTH, LOSS_MATCHED)
"""Nulls whose spectra stand beside those of the probe sets."""


def random_tokens(
    like: Sequence[ProbeExample], vocabulary: int, left_out: Collection[int], seed: int
) -> list[ProbeExample]:
    """Draw examples with the same prompt and answer lengths, every token uniform and independent.

    Args:
        like: the safety examples.
        vocabulary: number of token ids.
        left_out: ids that are never drawn: padding and other special tokens.
        seed: of the draw.

    Returns:
        One example for each, each a cluster of its own.
    """
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.tensor([index for index in range(vocabulary) if index not in left_out])
    made = []
    for example in like:
        drawn = torch.randint(len(allowed), (len(example.input_ids),), generator=generator)
        ids, start = allowed[drawn].tolist(), len(example.prompt_tokens)
        made.append(ProbeExample(example.id, example.id, ids, [IGNORED] * start + ids[start:]))
    return made


def same_text(benign: Sequence[ProbeExample], like: Sequence[ProbeExample]) -> list[ProbeExample]:
    """Put each refusal's text behind a benign prompt.

    Args:
        benign: examples whose prompts are used, in the order of the safety examples; may be fewer.
        like: the safety examples, whose answers are used, token by token.

    Returns:
        One example a pair.
    """
    made = []
    for prompt, refusal in zip(benign, like, strict=False):
        before, answer = prompt.prompt_tokens, refusal.answer
        made.append(ProbeExample(prompt.id, prompt.cluster, before + answer, [IGNORED] * len(before) + answer))
    return made


def untrained_twin(model: Any, seed: int) -> Any:
    """Build the same architecture with weights that its own initialisation draws.

    Args:
        model: a transformers model, or a peft model, of which the base is meant.
        seed: of the weights; torch's random state is left as it was.

    Returns:
        A model of the same class, dtype and device, in evaluation mode.
    """
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    weight = next(base.parameters())
    with torch.random.fork_rng(devices=[]):
        # Only the CPU's generator, which is what draws: torch.manual_seed would seed accelerators for good.
        torch.default_generator.manual_seed(seed)
        twin = type(base)(copy.deepcopy(base.config))
    return twin.to(device=weight.device, dtype=weight.dtype).eval()


def room_for_twin(model: Any) -> str | None:
    """Return why a twin of a model does not fit into memory beside it, None where it does."""
    weights = list(model.parameters())
    needed = sum(weight.numel() * weight.element_size() for weight in weights)
    free = free_bytes(weights[0].device)
    # Half: its gradients and activations want room as well.
    if 2 * needed <= free:
        return None
    return f"a second model of {needed / 2**30:.1f} GiB does not fit into half of the free {free / 2**30:.1f} GiB"
