"""The pass itself: a model is frozen, watched, run forward and backward, and left as it was.

Positions behind the last target are cut off, outputs are computed only where a target is
predicted, and each weight's per-example gradient is handed on as soon as its last use has
been seen, so that what it takes is freed while the backward pass goes on.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import CheckpointError

from geomsafe.data.encoding import IGNORED
from geomsafe.errors import DataError, ModelError, TrainingError
from geomsafe.gradients.losses import token_losses
from geomsafe.gradients.norms import expanded_norms
from geomsafe.gradients.rules import Watching
from geomsafe.gradients.smooth import plain_experts
from geomsafe.gradients.undisturbed import undisturbed
from geomsafe.gradients.uses import Dense, Use
from geomsafe.gradients.watch import Layout, Watch, tag_positions

KEYS = ("input_ids", "attention_mask", "labels")

Take = Callable[[str, list[Use]], None]
"""Called once a weight, with all of its uses in the pass; none where the loss does not reach it."""


def example_gradients(
    model: Any,
    batch: Mapping[str, Tensor],
    targets: Mapping[str, nn.Parameter],
    take: Take,
    *,
    dtype: torch.dtype,
    rows: Sequence[int],
) -> tuple[Tensor, set[str]]:
    """Run one pass and hand on every weight's token-summed per-example gradients.

    Args:
        model: a causal LM inside `gradient_targets`.
        batch: `input_ids`, `attention_mask`, `labels` (examples, tokens).
        targets: name -> weight to measure.
        take: receives each name once, with its uses in `dtype`.
        dtype: precision in which products are formed.
        rows: the examples' numbers in the user's batch, for messages.

    Returns:
        Token-summed losses (examples,) float64 in nats, and the names that took a loop over
        examples because no rule covers how the model uses them.

    A loss that is not finite is a TrainingError.
    """
    with undisturbed(model), plain_experts(model), torch.enable_grad():
        with frozen(model, targets.values()):
            losses, unseen = _watched(model, _cut(batch), targets, take, dtype, rows)
        looped = _reached(model, batch, targets, unseen)
        for name in unseen:
            if name not in looped:
                take(name, [])
        _loop(model, batch, {name: targets[name] for name in looped}, take, dtype)
    return losses, looped


def _watched(
    model: Any,
    batch: Mapping[str, Tensor],
    targets: Mapping[str, nn.Parameter],
    take: Take,
    dtype: torch.dtype,
    rows: Sequence[int],
) -> tuple[Tensor, list[str]]:
    waiting: dict[str, list[Use]] = {name: [] for name in targets}

    def deliver(name: str, use: Use) -> None:
        waiting[name].append(use)
        if len(waiting[name]) == watch.expected[name]:
            take(name, waiting.pop(name))

    layout = layout_of(batch, next(model.parameters()).device)
    watch = Watch({id(weight): name for name, weight in targets.items()}, layout, deliver, dtype)
    with expanded_norms(model, watch), Watching(watch), chosen_outputs(model, layout):
        losses = token_losses(model, batch).losses
    _check_finite(losses, rows)
    if losses.requires_grad:
        _backward(losses.sum())
    # A use whose output the loss does not depend on never comes back: what has come is all there is.
    for name in [name for name, uses in waiting.items() if uses and name not in watch.uncovered]:
        take(name, waiting.pop(name))
    return losses.detach().cpu().double(), list(waiting)


def _backward(total: Tensor) -> None:
    try:
        total.backward()  # type: ignore[no-untyped-call]
    except CheckpointError:
        raise ModelError(
            "a module runs its forward pass again in the backward pass (torch.utils.checkpoint), in eval mode too: "
            "switch its checkpointing off while gradients are measured"
        ) from None


def layout_of(batch: Mapping[str, Tensor], device: torch.device) -> Layout:
    """Return which positions of a batch predict a target and which carry gradient."""
    labels, mask = batch["labels"].to(device), batch["attention_mask"].to(device)
    predicts = torch.zeros_like(labels, dtype=torch.bool)
    predicts[:, :-1] = labels[:, 1:] != IGNORED
    behind = predicts.flip(1).cumsum(dim=1).flip(1) > 0
    examples, tokens = labels.shape
    return Layout(examples, tokens, (behind & (mask != 0)).flatten(), predicts)


def _cut(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # What comes after the last target changes no loss: a causal model does not look ahead.
    columns = (batch["labels"][:, 1:] != IGNORED).any(dim=0).nonzero()
    examples, width = batch["labels"].shape
    width = min(width, int(columns.max()) + 2)
    cut = {key: batch[key][:, :width] for key in KEYS}
    if width != examples:
        return cut
    # As many tokens as examples: one column of padding more, or tensors (tokens, examples, ..) look like the batch.
    fill = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}
    return {key: pad(tensor, (0, 1), value=fill[key]) for key, tensor in cut.items()}


@contextlib.contextmanager
def frozen(model: nn.Module, others: Any = ()) -> Iterator[None]:
    """Switch every weight's gradient off for the body."""
    weights = [*model.parameters(), *others]
    flags = [(weight, weight.requires_grad) for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(False)
        yield
    finally:
        for weight, flag in flags:
            weight.requires_grad_(flag)


@contextlib.contextmanager
def chosen_outputs(model: Any, layout: Layout) -> Iterator[None]:
    """Let the output layer see only positions that predict a target, as one row of (1, targets, width)."""
    head = model.get_output_embeddings()

    def choose(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden = args[0]
        if hidden.shape[:-1] != layout.predicts.shape:
            return None
        chosen = hidden[layout.predicts].unsqueeze(0)
        return (tag_positions(chosen, layout.predicts.flatten().nonzero()[:, 0]), *args[1:])

    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        handle.remove()


def _check_finite(losses: Tensor, rows: Sequence[int]) -> None:
    for row, loss in zip(rows, losses.tolist(), strict=True):
        if not math.isfinite(loss):
            raise TrainingError(f"example {row}: its loss is {loss}; the weights have diverged")


def _reached(
    model: Any, batch: Mapping[str, Tensor], targets: Mapping[str, nn.Parameter], unseen: Sequence[str]
) -> set[str]:
    # Of the weights that were not seen, those the loss depends on all the same.
    if not unseen:
        return set()
    weights = [targets[name] for name in unseen]
    with only(model, weights):
        total = token_losses(model, batch).losses.sum()
        if not total.requires_grad:
            return set()
        found = torch.autograd.grad(total, weights, allow_unused=True)
    return {name for name, gradient in zip(unseen, found, strict=True) if gradient is not None}


def _loop(
    model: Any, batch: Mapping[str, Tensor], targets: Mapping[str, nn.Parameter], take: Take, dtype: torch.dtype
) -> None:
    # The exact slow path: one example after another.
    if not targets:
        return
    weights = list(targets.values())
    kept: list[list[Tensor]] = [[] for _ in weights]
    with only(model, weights):
        for row in range(len(batch["labels"])):
            one = {key: batch[key][row : row + 1] for key in KEYS}
            total = token_losses(model, one).losses.sum()
            found = (
                torch.autograd.grad(total, weights, allow_unused=True) if total.requires_grad else [None] * len(weights)
            )
            for place, (weight, gradient) in enumerate(zip(weights, found, strict=True)):
                kept[place].append((torch.zeros_like(weight) if gradient is None else gradient).to(dtype))
    for name, gradients in zip(targets, kept, strict=True):
        take(name, [Dense(torch.stack(gradients))])


@contextlib.contextmanager
def only(model: nn.Module, weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Take gradients of these weights and of no others while the body runs."""
    with frozen(model, weights):
        for weight in weights:
            weight.requires_grad_(True)
        yield


def check_batch(batch: Mapping[str, Tensor]) -> Tensor:
    """Return the target tokens of each example.

    Raises:
        DataError: the batch lacks a key, is empty, has unequal shapes or an example without target tokens.
    """
    missing = sorted(set(KEYS) - set(batch))
    if missing:
        raise DataError(
            f"the batch has no '{missing[0]}': give input_ids, attention_mask and labels (examples, tokens)"
        )
    shapes = {key: tuple(batch[key].shape) for key in KEYS}
    if len(set(shapes.values())) > 1 or len(shapes["labels"]) != 2:
        raise DataError(f"the batch's tensors have shapes {shapes}: all must be (examples, tokens)")
    if 0 in shapes["labels"]:
        raise DataError("the batch is empty: gradients need at least one example")
    tokens = (batch["labels"][:, 1:] != IGNORED).sum(dim=1).cpu()
    for row, count in enumerate(tokens.tolist()):
        if count == 0:
            raise DataError(f"example {row} has no target token: all of its labels behind the first are {IGNORED}")
    return tokens
