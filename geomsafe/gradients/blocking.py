"""How many examples go through the model together, so that a pass keeps within memory.

What a pass holds is bounded from shapes: for every position the inputs of all layers and the
gradients at their outputs, and for every target the outputs over the vocabulary. Where that
is above the budget, it is measured on the longest example. A set that is larger is cut into
blocks; where examples of different blocks must meet (Gram matrices), every two blocks share a
pass, or factors wait on disk.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from geomsafe.data.encoding import IGNORED
from geomsafe.errors import ConfigError
from geomsafe.gradients.memory import free_bytes

AUTO = "auto"

UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
SAVED = 3
"""What a pass holds, at most, as a multiple of the inputs and outputs of linear layers; about twice what it does."""

IN_FLIGHT = 1.25
"""What a pass holds over what its forward pass saves: gradients on their way, slices, row products."""


def parse_memory(text: str | int) -> int:
    """Return the bytes of a memory size such as "2GiB" or a number.

    Raises:
        ConfigError: the text is not a size, or not positive.
    """
    found = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]iB|B|)\s*", str(text))
    size = int(float(found[1]) * UNITS[found[2]]) if found and found[1].count(".") <= 1 else 0
    if size <= 0:
        raise ConfigError(f"memory_budget '{text}' is no size: write for example 2GiB or 512MiB, or auto")
    return size


def budget_of(text: str | int, device: torch.device) -> int:
    """Return the bytes of a budget; "auto" is half of what is free on the device."""
    return free_bytes(device) // 2 if text == AUTO else parse_memory(text)


def bytes_per_token(model: Any) -> tuple[int, int]:
    """Return a bound on what one position and one target take in a pass, in bytes."""
    width = 0
    head = model.get_output_embeddings()
    outputs = None if head is None else head.weight
    for weight in {id(w): w for w in model.parameters()}.values():
        if weight.dim() == 2 and weight is not outputs:
            width += sum(weight.shape) if min(weight.shape) < 16384 else min(weight.shape)
        elif weight.dim() == 3:
            width += sum(weight.shape[1:])
    itemsize = next(model.parameters()).element_size()
    vocabulary = 0 if outputs is None else max(outputs.shape)
    return SAVED * width * itemsize, vocabulary * (itemsize + 2 * max(4, itemsize))


def plan_blocks(
    model: Any, labels: Tensor, budget: int, measure: Callable[[int], int], *, pairs: bool
) -> list[list[int]]:
    """Cut examples into blocks that fit.

    Args:
        model: the model.
        labels: (examples, tokens).
        budget: bytes for what one pass holds.
        measure: what a forward pass saves of one example, by its place; called once, where the bound from shapes
            is above the budget.
        pairs: whether two blocks must fit together, when there is more than one.

    Returns:
        Places of the examples of each block, in order; one example alone may exceed the budget.
    """
    position, target = bytes_per_token(model)
    predicts = labels[:, 1:] != IGNORED
    last = predicts * torch.arange(1, predicts.shape[1] + 1, device=labels.device)
    need = last.max(dim=1).values.cpu() * position + predicts.sum(dim=1).cpu() * target
    longest, count = int(need.argmax()), len(labels)
    if count == 1 or count * int(need[longest]) <= budget:
        return [list(range(count))]
    largest = max(1, int(IN_FLIGHT * measure(longest)))
    if count * largest <= budget:
        return [list(range(count))]
    size = max(1, budget // largest // (2 if pairs else 1))
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]


def meetings(blocks: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the examples of each pass, so that every two examples share one."""
    if len(blocks) == 1:
        return [list(blocks[0])]
    return [[*one, *other] for one, other in combinations(blocks, 2)]
