"""What one pass sees of the measured weights, and how a call becomes per-example gradients.

The output of every call that uses a measured weight passes through an identity that autograd
calls back with the gradient there. With the call's input that is all a weight's per-example
gradient is made of. Weights themselves are frozen, so autograd never forms their gradients,
which alone makes the backward pass a third cheaper than a plain one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, rms_norm

from geomsafe.gradients.uses import Dense, Lookup, Outer, Rows, Use

Deliver = Callable[[str, Use], None]
"""Called in the backward pass with a weight's name and one of its uses."""

WORTH = 8
"""Rows without gradient are left out where they are more than one in this many."""

ROWS = "_geomsafe_rows"
"""Attribute of a tensor whose rows were picked: the position of the batch that each came from."""


@dataclass
class Layout:
    """Which example each position of the batch belongs to, and which positions carry gradient."""

    examples: int
    tokens: int
    alive: Tensor  # (examples x tokens,) bool: not padding, and not behind the last target
    predicts: Tensor  # (examples, tokens) bool: the next token is a target

    def positions(self, tensor: Tensor) -> Tensor | None:
        """Return the position (example x tokens + token) or the example-major row of each row of a layer's input.

        A tensor made by picking rows carries its own positions; None where rows cannot be told apart.
        """
        count = tensor.shape[:-1].numel()
        tag: Tensor | None = getattr(tensor, ROWS, None)
        if tag is not None and len(tag) == count:
            return tag
        if tensor.dim() >= 3 and tensor.shape[0] == self.examples:
            return torch.arange(count, device=tensor.device)
        if tensor.dim() == 2 and count == self.examples * self.tokens:
            return torch.arange(count, device=tensor.device)
        return None


def tag_positions(tensor: Tensor, positions: Tensor) -> Tensor:
    """Return the tensor, which now knows the positions its rows were picked from."""
    setattr(tensor, ROWS, positions)
    return tensor


@dataclass
class Pending:
    """One call that used measured weights; becomes uses when its output's gradient is known."""

    weight: str | None
    bias: str | None
    kind: str  # "linear", "product", "embedding", "layer_norm", "rms_norm"
    positions: Tensor
    per_example: int  # rows of one example where positions are plain, else 0
    index: int | None = None
    size: int = 0  # rows of an embedding's table
    shape: tuple[int, ...] = ()  # normalised shape
    epsilon: float | None = None
    skipped: int | None = None  # padding_idx


class _Seen(torch.autograd.Function):
    """The identity, which tells the watch what came in and which gradient came back."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, read: Tensor, watch: Watch, pending: Pending) -> Tensor:
        ctx.save_for_backward(read)
        ctx.watch, ctx.pending = watch, pending
        # Handed on as the same tensor and not as a view of it, which a model may not change in place.
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (read,) = ctx.saved_tensors
        ctx.watch.arrived(ctx.pending, read, gradients[0])
        return gradients[0], None, None, None


@dataclass
class Watch:
    """What one pass has seen so far."""

    names: Mapping[int, str]  # id of a weight -> its name
    layout: Layout
    deliver: Deliver
    dtype: torch.dtype
    uncovered: set[str] = field(default_factory=set)
    expected: dict[str, int] = field(default_factory=dict)
    parts: dict[int, tuple[str, int, Tensor]] = field(default_factory=dict)  # id of weight[e] -> name, e, itself

    def name(self, tensor: Any) -> str | None:
        """Return the name of a measured weight, or None."""
        return self.names.get(id(tensor)) if isinstance(tensor, Tensor) else None

    def expect(self, *names: str | None) -> None:
        """Count uses that the backward pass may bring."""
        for name in names:
            if name is not None:
                self.expected[name] = self.expected.get(name, 0) + 1

    def see(self, output: Tensor, read: Tensor, pending: Pending) -> Tensor:
        """Return the output of a call that used measured weights, watched."""
        self.expect(pending.weight, pending.bias)
        if not output.requires_grad:
            # The first measured layer: the backward pass ends here.
            output = output.detach().requires_grad_().clone()
        seen: Tensor = _Seen.apply(output, read, self, pending)  # type: ignore[no-untyped-call]
        return seen

    def arrived(self, pending: Pending, read: Tensor, gradient: Tensor) -> None:
        """Turn one call's input and output gradient into uses, and hand them on."""
        with torch.no_grad():
            for name, use in self._uses(pending, read.detach(), gradient.detach()):
                if name not in self.uncovered:
                    self.deliver(name, use)

    def _uses(self, pending: Pending, read: Tensor, gradient: Tensor) -> Iterator[tuple[str, Use]]:
        flat = gradient.reshape(-1, gradient.shape[-1])  # (rows, d_out)
        if pending.kind in ("layer_norm", "rms_norm"):
            yield from self._norm(pending, read, flat)
            return
        if pending.skipped is not None:
            # The padding id of an embedding has no gradient, by definition.
            flat = flat.masked_fill((read.reshape(-1) == pending.skipped)[:, None], 0.0)
        kept, everywhere = self._kept(pending, flat)
        example = self._examples(pending)
        rows = Rows(example if kept is None else example[kept], self.layout.examples)
        flat = flat if kept is None else flat[kept]
        if pending.bias is not None:
            yield pending.bias, Dense(rows.sums(flat.to(self.dtype)), index=None)
        if pending.weight is None:
            return
        if pending.kind == "embedding":
            ids = read.reshape(-1) if kept is None else read.reshape(-1)[kept]
            yield pending.weight, Lookup(rows, ids, flat.to(self.dtype), pending.size)
            return
        inputs = read.reshape(-1, read.shape[-1])
        inputs = (inputs if kept is None else inputs[kept]).to(self.dtype)
        shared = (read.data_ptr(), read.shape, read.stride(), everywhere) if everywhere else None
        left, right = (flat.to(self.dtype), inputs) if pending.kind == "linear" else (inputs, flat.to(self.dtype))
        yield pending.weight, Outer(rows, left, right, 0 if pending.kind == "linear" else 1, pending.index, shared)

    def _kept(self, pending: Pending, gradient: Tensor) -> tuple[Tensor | None, str]:
        # (indices of rows with gradient, None for all; a word for that choice if it is a usual one).
        # Rows whose gradient is zero add nothing. Most rows show in one column that theirs is not.
        empty = (gradient[:, 0] == 0).nonzero()[:, 0]
        if len(empty):
            empty = empty[(gradient[empty] == 0).all(dim=1)]
        # To leave out a few rows costs more, in copies, than to carry their zeros along.
        if len(empty) * WORTH <= len(gradient):
            return None, "all"
        kept = torch.ones(len(gradient), dtype=torch.bool, device=gradient.device)
        kept[empty] = False
        usual = pending.per_example == self.layout.tokens and bool((kept == self.layout.alive).all())
        return kept.nonzero()[:, 0], "alive" if usual else ""

    def _norm(self, pending: Pending, read: Tensor, flat: Tensor) -> Iterator[tuple[str, Use]]:
        rows = Rows(self._examples(pending), self.layout.examples)
        gradient = flat.to(self.dtype)
        if pending.bias is not None:
            yield pending.bias, Dense(rows.sums(gradient))
        if pending.weight is not None:
            wide, shape = read.to(self.dtype), list(pending.shape)
            if pending.kind == "rms_norm":
                epsilon = torch.finfo(read.dtype).eps if pending.epsilon is None else pending.epsilon
                scaled = rms_norm(wide, shape, eps=epsilon)
            else:
                scaled = layer_norm(wide, shape, eps=1e-5 if pending.epsilon is None else pending.epsilon)
            yield pending.weight, Dense(rows.sums(gradient * scaled.reshape(gradient.shape)))

    def _examples(self, pending: Pending) -> Tensor:
        # Plain positions run example by example, whatever the number of rows of one.
        step = pending.per_example or self.layout.tokens
        return pending.positions // step
