"""Reading the prompts of a batch, each beginning that several of them share once.

Chat templates, system prompts and common phrasings make prompts begin alike. The batch is read in a few passes:
each but the last goes to a depth at which only the distinct beginnings are read, and their keys and values are
then handed to every prompt that has them. The depths are those that read the fewest tokens, a pass counting as
`PASS` of them. The last pass reads what is left of every prompt, padded on the left.

Padding then stands between beginning and rest; it is masked and takes no position. A layer that attends to a
window counts places, not positions, so models with such layers read each prompt whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

PASS = {"cpu": 64}
ACCELERATOR_PASS = 1024
"""What one more forward pass costs, in tokens; an accelerator reads many in the time that it takes to start."""

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(rows, new) tokens, (rows, all so far) mask and (rows, new) positions to (rows, vocabulary) last logits."""


class Prefilled(NamedTuple):
    """A batch that is read: (rows, vocabulary) logits, (rows, places) mask, (rows, 1) position of the last token."""

    logits: Tensor
    mask: Tensor
    positions: Tensor


def prefill(
    prompts: Sequence[Sequence[int]], forward: Forward, cache: Any, share: bool, device: torch.device
) -> Prefilled:
    """Read prompts into a cache.

    Args:
        prompts: token ids, none empty.
        forward: one pass over the cache.
        cache: an empty key-value cache; holds one row a prompt afterwards.
        share: whether beginnings may be read once.
        device: of the tokens.

    Returns:
        Logits behind each prompt, and where it stands in the cache.
    """
    depths = shared_depths(prompts, PASS.get(device.type, ACCELERATOR_PASS)) if share else []
    read = 0
    heads: list[tuple[int, ...]] = []
    for depth in depths:
        below = list(dict.fromkeys(tuple(ids[:depth]) for ids in prompts))
        if read:
            cache.batch_select_indices(_places(below, heads, read, device))
        tokens = torch.tensor([head[read:] for head in below], device=device)  # (beginnings, depth - read)
        positions = torch.arange(read, depth, device=device).expand(len(below), -1)
        forward(tokens, torch.ones(len(below), depth, dtype=torch.long, device=device), positions)
        read, heads = depth, below
    if read:
        cache.batch_select_indices(_places(prompts, heads, read, device))
    longest = max(map(len, prompts)) - read
    rest = [list(ids[read:]) for ids in prompts]
    tokens = torch.tensor([[0] * (longest - len(ids)) + ids for ids in rest], device=device)
    mask = torch.tensor([[1] * read + [0] * (longest - len(ids)) + [1] * len(ids) for ids in rest], device=device)
    # Padding sits at position 0; it is masked, and GPT-2 looks positions up in a table.
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, read:]
    return Prefilled(forward(tokens, mask, positions), mask, positions[:, -1:])


def shared_depths(prompts: Sequence[Sequence[int]], one_pass: int) -> list[int]:
    """Choose the depths at which distinct beginnings are read.

    The cost of depths d_1 < ... < d_k is sum_i (one_pass + distinct(d_i) (d_i - d_(i-1))) + rows (longest - d_k),
    with distinct(d) the number of different beginnings of d tokens; the least is found by dynamic programming.

    Args:
        prompts: token ids, none empty.
        one_pass: cost of a pass in tokens.

    Returns:
        Rising depths, all below the shortest prompt's length; empty where nothing is gained.
    """
    distinct = [0] + [len({tuple(ids[:depth]) for ids in prompts}) for depth in range(1, min(map(len, prompts)))]
    least, before = [0] * len(distinct), [0] * len(distinct)
    for depth in range(1, len(distinct)):
        least[depth], before[depth] = min(
            (least[start] + one_pass + distinct[depth] * (depth - start), start) for start in range(depth)
        )
    longest = max(map(len, prompts))
    depth = min(range(len(distinct)), key=lambda depth: least[depth] + len(prompts) * (longest - depth))
    depths: list[int] = []
    while depth:
        depths.insert(0, depth)
        depth = before[depth]
    return depths


def _places(rows: Sequence[Sequence[int]], heads: Sequence[tuple[int, ...]], read: int, device: torch.device) -> Tensor:
    """Return (rows,) the place in the cache of each row's beginning."""
    place = {head: index for index, head in enumerate(heads)}
    return torch.tensor([place[tuple(ids[:read])] for ids in rows], device=device)
