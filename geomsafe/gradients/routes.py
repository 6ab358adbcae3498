"""Inner products of per-example gradients, by the cheaper of two exact routes.

pairs   <G_i, G_j> = sum over rows t of i, t' of j of (left_t . left_t') (right_t . right_t')
        about rows^2 (d0 + d1) multiply-adds with the symmetry used; never forms a gradient.
slices  G_i is formed a few rows of the weight at a time, and K += slice slice^T
        rows d0 d1 + examples^2 d0 d1 multiply-adds; the slice stays in the cache.

The first wins for short texts and wide layers, the second for many tokens and few examples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from geomsafe.gradients.uses import Dense, Lookup, Outer, Rows, Use, same_expert

SLICE_ELEMENTS = 1 << 20
"""Elements of a gradient slice formed at a time, for each thread: 4 MiB in float32, a core's share of cache."""

MOST_ELEMENTS = 1 << 22
"""Elements of a slice at most: larger places are given back to the system each time."""

SLICE_EXAMPLES = 64
"""Examples on one side of a product of slices: blocks above the diagonal are not computed."""

APART = 272
"""Elements between the slices of two examples."""

PAIR_ROWS = 2048
"""Rows on one side of a block of row pairs, at most: 16 MiB in float32."""

PAIR_PARTS = 8
"""Parts that rows are cut into at least, so that only (1 + 1/8)/2 of all pairs is computed."""

PAIR_SPEED = 1.2
"""Speed of large square products against thin ones, measured on two AVX-512 cores."""

SHARED_ROWS = 4096
"""Rows whose input products are kept for the next weight with the same input, at most: 64 MiB in float32."""


class SharedProducts:
    """Row products of the last input: query, key and value (gate and up) read the same one."""

    def __init__(self) -> None:
        self._key: object = None
        self._blocks: dict[tuple[int, int], Tensor] = {}

    def block(self, key: object, rows: Tensor, first: tuple[int, int], second: tuple[int, int]) -> Tensor:
        """Return rows[first] rows[second]^T, remembered where the key says that it comes again."""
        if key is None or len(rows) > SHARED_ROWS:
            return rows[slice(*first)] @ rows[slice(*second)].T
        if key != self._key:
            self._key, self._blocks = key, {}
        place = (first[0], second[0])
        if place not in self._blocks:
            self._blocks[place] = rows[slice(*first)] @ rows[slice(*second)].T
        return self._blocks[place]

    def holds(self, key: object) -> bool:
        """Return whether products of this input are at hand."""
        return key is not None and key == self._key


def gram_of(
    uses: Sequence[Use], height: int, width: int, shared: SharedProducts, metric: Tensor | None = None
) -> tuple[Tensor, str]:
    """Inner products of all pairs of per-example gradients of one weight.

    Args:
        uses: every use of the weight in the pass, in the precision to compute in.
        height: d0, the weight's first axis (of one expert in a fused weight).
        width: d1, the elements behind it.
        shared: row products remembered between weights of one pass.
        metric: P >= 0 of the weight's shape for <G_i, P G_j>; elementwise, so it takes slices.

    Returns:
        (examples, examples) float64 symmetric, on the device of the uses; and the route's name.

    Raises:
        ValueError: there is no use.
    """
    total: Tensor | None = None
    routes = []
    for index, group in same_expert(uses).items():
        inner = metric if metric is None or index is None else metric[index]
        route = _route(group, height, width, shared, inner)
        part = _pairs(group, shared) if route == "pairs" else _slices(group, height, width, inner)
        total = part if total is None else total.add_(part)
        routes.append(route)
    if total is None:
        raise ValueError("a weight without uses has no gradient to take products of")
    return _symmetric(total), "+".join(sorted(set(routes)))


def pairs_cost(rows: int, height: int, width: int, shared: bool = False) -> float:
    """Return the multiply-adds of the route over row pairs, in units of thin products."""
    return rows**2 * (1 + 1 / PAIR_PARTS) / 2 * (height + (0 if shared else width)) / PAIR_SPEED


def slices_cost(rows: int, examples: int, height: int, width: int) -> float:
    """Return the multiply-adds of the route over gradient slices."""
    return float((rows + _example_pairs(examples)) * height * width)


def _example_pairs(examples: int) -> float:
    blocks = -(-examples // SLICE_EXAMPLES)
    return examples**2 * (1 + 1 / blocks) / 2 if blocks else 0


def _route(group: Sequence[Use], height: int, width: int, shared: SharedProducts, metric: Tensor | None) -> str:
    if metric is not None or any(isinstance(use, Dense) for use in group):
        return "slices"
    outers = [use for use in group if isinstance(use, Outer)]
    examples = next(use.rows.examples for use in group if not isinstance(use, Dense))
    if not outers:
        return "pairs"
    pairs = slices = 0.0
    for use in outers:
        count = len(use.left)
        widest = max(use.rows.counts) * examples
        pairs += pairs_cost(count, height, width, shared.holds(use.shared))
        slices += slices_cost(widest, 0, height, width)
    pairs *= len(outers)
    slices += slices_cost(0, examples, height, width)
    return "pairs" if pairs <= slices else "slices"


def _slices(group: Sequence[Use], height: int, width: int, metric: Tensor | None) -> Tensor:
    first = group[0]
    values = first.values if isinstance(first, Dense) else first.right if isinstance(first, Outer) else first.grad
    examples = len(first.values) if isinstance(first, Dense) else first.rows.examples
    elements = min(MOST_ELEMENTS, SLICE_ELEMENTS * torch.get_num_threads())
    step = min(height, max(1, elements // (examples * width)))
    root = None if metric is None else metric.reshape(height, width).sqrt().to(values)
    # One place for all slices. Examples stand a little apart: at a power of two they would share cache lines.
    space = values.new_empty((examples, step * width + APART))
    total = torch.zeros((examples, examples), dtype=torch.float64, device=values.device)
    for start in range(0, height, step):
        stop = min(start + step, height)
        flat = space[:, : (stop - start) * width]
        part = flat.view(examples, stop - start, width)
        first.slice(start, stop, out=part)
        for use in group[1:]:
            part += use.slice(start, stop)
        if root is not None:
            part *= root[start:stop]
        for place in range(0, examples, SLICE_EXAMPLES):
            end = min(place + SLICE_EXAMPLES, examples)
            total[place:end, :end] += (flat[place:end] @ flat[:end].T).double()
    return total.tril() + total.tril(-1).T


def _pairs(group: Sequence[Use], shared: SharedProducts) -> Tensor:
    total: Tensor | None = None
    for place, one in enumerate(group):
        part = _within(one, shared)
        for other in group[:place]:
            cross = _across(one, other)
            part = part + cross + cross.T
        total = part if total is None else total + part
    if total is None:
        raise ValueError("no use to take products of")
    return total


def _within(use: Use, shared: SharedProducts) -> Tensor:
    if isinstance(use, Dense):
        raise TypeError("gradients that are formed have no row pairs")
    rows = use.rows
    examples = rows.examples
    total = torch.zeros((examples, examples), dtype=torch.float64, device=rows.example.device)
    parts = _parts(len(rows.example))
    for place, second in enumerate(parts):
        for first in parts[: place + 1]:
            # Whole blocks below the diagonal stand for their mirror images too.
            block = _row_products(use, shared, second, first)
            found = _fold(block, rows, second, first)
            total += found
            if first != second:
                total += found.T
    return total


def _parts(rows: int) -> list[tuple[int, int]]:
    size = max(1, min(PAIR_ROWS, -(-rows // PAIR_PARTS)))
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]


def _row_products(
    use: Outer | Lookup, shared: SharedProducts, first: tuple[int, int], second: tuple[int, int]
) -> Tensor:
    if isinstance(use, Lookup):
        grad = use.grad[slice(*first)] @ use.grad[slice(*second)].T
        return grad.mul_(use.ids[slice(*first), None] == use.ids[None, slice(*second)])
    facing, other = (use.left, use.right) if use.output == 0 else (use.right, use.left)
    block = facing[slice(*first)] @ facing[slice(*second)].T
    return block.mul_(shared.block(use.shared, other, first, second))


def _fold(block: Tensor, rows: Rows, first: tuple[int, int], second: tuple[int, int]) -> Tensor:
    # Sums a block of row pairs over the rows of each pair of examples: (examples, examples) float64.
    result = torch.zeros((rows.examples, rows.examples), dtype=torch.float64, device=block.device)
    (top, tall), (left, wide) = rows.members(*first, block.dtype), rows.members(*second, block.dtype)
    found = tall.T @ (block @ wide)
    result[top : top + found.shape[0], left : left + found.shape[1]] = found.double()
    return result


def _across(one: Use, other: Use) -> Tensor:
    # (examples, examples): <gradient of i through one use, gradient of j through another>, not symmetric.
    if isinstance(one, Dense) or isinstance(other, Dense):
        raise TypeError("gradients that are formed have no row pairs")
    examples = one.rows.examples
    total = torch.zeros((examples, examples), dtype=torch.float64, device=one.rows.example.device)
    for start in range(0, len(one.rows.example), PAIR_ROWS):
        for begin in range(0, len(other.rows.example), PAIR_ROWS):
            first, second = slice(start, start + PAIR_ROWS), slice(begin, begin + PAIR_ROWS)
            block = _cross_products(one, other, first, second)
            (top, tall) = one.rows.members(first.start, first.stop, block.dtype)
            (left, wide) = other.rows.members(second.start, second.stop, block.dtype)
            found = (tall.T @ (block @ wide)).double()
            total[top : top + found.shape[0], left : left + found.shape[1]] += found
    return total


def _cross_products(one: Outer | Lookup, other: Outer | Lookup, first: slice, second: slice) -> Tensor:
    if isinstance(one, Outer) and isinstance(other, Outer):
        return (one.left[first] @ other.left[second].T) * (one.right[first] @ other.right[second].T)
    if isinstance(one, Lookup) and isinstance(other, Lookup):
        alike = one.ids[first, None] == other.ids[None, second]
        return (one.grad[first] @ other.grad[second].T) * alike
    if isinstance(one, Outer) and isinstance(other, Lookup):
        return one.left[first][:, other.ids[second]] * (one.right[first] @ other.grad[second].T)
    return _cross_products(other, one, second, first).T


def _symmetric(gram: Tensor) -> Tensor:
    return (gram + gram.T) / 2
