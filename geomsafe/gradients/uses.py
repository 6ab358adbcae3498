"""How one use of a weight in a forward pass gives each example's gradient of that weight.

The gradient of example i is a short sum over the rows (positions) that belong to i:

    Outer    G_i = sum over rows r of i of  left_r right_r^T     (linear layers)
    Lookup   G_i = sum over rows r of i of  onehot(id_r) grad_r^T (embeddings)
    Dense    G_i itself                                           (norm weights, biases, the loop)

Rows without gradient are left out: padding, and positions after the last target. Everything
asked of gradients (inner products, dots, sums) is computed from these factors; the slice
(examples, rows of the weight, columns) is formed only a piece at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Which example each row belongs to; rows of one example need not be neighbours."""

    example: Tensor  # (rows,) int64
    examples: int

    @cached_property
    def ordered(self) -> bool:
        """Whether rows come example by example."""
        return bool((self.example[1:] >= self.example[:-1]).all())

    @cached_property
    def counts(self) -> list[int]:
        """Rows of each example."""
        return torch.bincount(self.example, minlength=self.examples).tolist()

    @cached_property
    def even(self) -> int:
        """Rows of every example where all have equally many in order, else 0."""
        first = self.counts[0]
        return first if self.ordered and all(count == first for count in self.counts) else 0

    def members(self, start: int, stop: int, dtype: torch.dtype) -> tuple[int, Tensor]:
        """Return which example each of some rows belongs to: first example, one-hot (rows, examples from there)."""
        part = self.example[start:stop]
        first = int(part.min())
        hot = torch.zeros((len(part), int(part.max()) - first + 1), dtype=dtype, device=part.device)
        return first, hot.scatter_(1, (part - first)[:, None], 1.0)

    def placed(self, at: Tensor, examples: int) -> Rows:
        """Return the same rows with their examples at their places `at` among more of them."""
        return Rows(at.to(self.example.device)[self.example], examples)

    def sums(self, values: Tensor) -> Tensor:
        """Return sums of values (rows, ...) over the rows of each example: (examples, ...)."""
        if self.even:
            return values.view(self.examples, self.even, *values.shape[1:]).sum(dim=1)
        result = values.new_zeros((self.examples, *values.shape[1:]))
        return result.index_add_(0, self.example, values)

    def padded(self, values: Tensor) -> Tensor:
        """Return values (rows, width) as (examples, most rows of an example, width), zeros behind."""
        if self.even:
            return values.view(self.examples, self.even, -1)
        result = values.new_zeros((self.examples, max(self.counts), values.shape[1]))
        result[self.example, self._place] = values
        return result

    @cached_property
    def _place(self) -> Tensor:
        order = torch.argsort(self.example, stable=True)
        counts = torch.bincount(self.example, minlength=self.examples)
        starts = counts.cumsum(0) - counts
        place = torch.empty_like(self.example)
        place[order] = torch.arange(len(order), device=order.device) - starts[self.example[order]]
        return place


@dataclass(frozen=True, eq=False)
class Outer:
    """A matrix product: G_i = sum over rows r of example i of left_r right_r^T."""

    rows: Rows
    left: Tensor  # (rows, d0): what varies along the weight's first axis
    right: Tensor  # (rows, d1)
    output: int  # the axis of the weight that faces the layer's output
    index: int | None = None  # expert, in a fused weight (experts, d0, d1)
    shared: object = None  # equal for uses of one pass with equal rows and equal input

    def to(self, dtype: torch.dtype) -> Outer:
        """Return the factors in another precision."""
        left, right = self.left.to(dtype), self.right.to(dtype)
        return Outer(self.rows, left, right, self.output, self.index, self.shared)

    def placed(self, at: Tensor, examples: int) -> Outer:
        """Return the use with its examples at their places `at` among more of them."""
        # An address names an input within one pass only; among uses of several passes it names nothing.
        return replace(self, rows=self.rows.placed(at, examples), shared=None)

    def slice(self, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Return rows start..stop of the weight's gradient: (examples, stop - start, d1)."""
        left, right = self._padded
        return torch.bmm(left[:, start:stop], right, out=out)

    @cached_property
    def _padded(self) -> tuple[Tensor, Tensor]:
        # (examples, d0, rows) and (examples, rows, d1)
        return self.rows.padded(self.left).transpose(1, 2).contiguous(), self.rows.padded(self.right)

    def dots(self, direction: Tensor) -> Tensor:
        """Return <G_i, D> for D (d0, d1): (examples,) float64."""
        return self.rows.sums(((self.left @ direction) * self.right).sum(dim=1).double())

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Return sum_i w_i G_i for weights (examples,): (d0, d1)."""
        left, right = self.chosen(weights)
        return left.T @ right

    def chosen(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return factors (rows, d0) and (rows, d1) of sum_i w_i G_i, without rows of weight zero."""
        scale = weights.to(self.left)[self.rows.example]
        kept = scale.nonzero()[:, 0]
        return self.left[kept] * scale[kept, None], self.right[kept]


@dataclass(frozen=True, eq=False)
class Lookup:
    """Rows of a table read by id: G_i[id_r] += grad_r for the rows r of example i."""

    rows: Rows
    ids: Tensor  # (rows,) int64
    grad: Tensor  # (rows, d1)
    height: int  # rows of the table
    output: int = 1
    index: int | None = None

    def to(self, dtype: torch.dtype) -> Lookup:
        """Return the factors in another precision."""
        return Lookup(self.rows, self.ids, self.grad.to(dtype), self.height, self.output, self.index)

    def placed(self, at: Tensor, examples: int) -> Lookup:
        """Return the use with its examples at their places `at` among more of them."""
        return replace(self, rows=self.rows.placed(at, examples))

    def slice(self, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Return rows start..stop of the table's gradient: (examples, stop - start, d1)."""
        inside = ((self.ids >= start) & (self.ids < stop)).nonzero()[:, 0]
        height = stop - start
        flat = self.grad.new_zeros((self.rows.examples * height, self.grad.shape[1]))
        flat.index_add_(0, self.rows.example[inside] * height + self.ids[inside] - start, self.grad[inside])
        found = flat.view(self.rows.examples, height, -1)
        return found if out is None else out.copy_(found)

    def dots(self, direction: Tensor) -> Tensor:
        """Return <G_i, D> for D (height, d1): (examples,) float64."""
        return self.rows.sums((direction[self.ids] * self.grad).sum(dim=1).double())

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Return sum_i w_i G_i for weights (examples,): (height, d1)."""
        result = self.grad.new_zeros((self.height, self.grad.shape[1]))
        return result.index_add_(0, self.ids, self.grad * weights.to(self.grad)[self.rows.example, None])

    def chosen(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return factors (ids, d0) and (ids, d1) of sum_i w_i G_i: one row for each id that is read."""
        scale = weights.to(self.grad)[self.rows.example]
        kept = scale.nonzero()[:, 0]
        read, place = torch.unique(self.ids[kept], return_inverse=True)
        left = self.grad.new_zeros((len(read), self.height))
        left[torch.arange(len(read), device=left.device), read] = 1
        right = self.grad.new_zeros((len(read), self.grad.shape[1]))
        return left, right.index_add_(0, place, self.grad[kept] * scale[kept, None])


@dataclass(frozen=True, eq=False)
class Dense:
    """Gradients as they are, for weights that are small or that no other rule covers."""

    values: Tensor  # (examples, *shape of the weight)
    output: int = 0
    index: int | None = None

    def to(self, dtype: torch.dtype) -> Dense:
        """Return the gradients in another precision."""
        return Dense(self.values.to(dtype), self.output, self.index)

    def placed(self, at: Tensor, examples: int) -> Dense:
        """Return the gradients with their examples at their places `at` among more of them, zero elsewhere."""
        values = self.values.new_zeros((examples, *self.values.shape[1:]))
        values[at.to(values.device)] = self.values
        return replace(self, values=values)

    def slice(self, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Return rows start..stop of the gradients, seen as matrices: (examples, stop - start, columns)."""
        found = self.values.reshape(len(self.values), self.values.shape[1], -1)[:, start:stop]
        return found if out is None else out.copy_(found)

    def dots(self, direction: Tensor) -> Tensor:
        """Return <G_i, D> for D of the weight's shape: (examples,) float64."""
        return (self.values * direction).flatten(start_dim=1).sum(dim=1, dtype=torch.float64)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Return sum_i w_i G_i for weights (examples,), in the weight's shape."""
        total: Tensor = torch.tensordot(weights.to(self.values), self.values, dims=1)
        return total


Use = Outer | Lookup | Dense


def same_expert(uses: Sequence[Use]) -> dict[int | None, list[Use]]:
    """Return uses by the expert they belong to; gradients of different experts are orthogonal."""
    groups: dict[int | None, list[Use]] = {}
    for use in uses:
        groups.setdefault(use.index, []).append(use)
    return groups
