"""Ways to the inner products of all pairs of per-example gradients, each ready to be timed.

A contender is a function of (model, batch) that returns the work to time. The work returns the
Gram matrix it has found, of token-summed gradients in total over parameters, or None where it does not compute one.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from workload import Batch

from geomsafe.gradients import (
    Basis,
    Dots,
    Gram,
    Sketch,
    gradient_gram,
    gradient_pass,
    gradient_sketch,
    token_losses,
)

Work = Callable[[], Tensor | None]
SKETCH = 1024
BUDGET = os.environ.get("BENCHMARK_MEMORY_BUDGET", "2GiB")  # of ours; 2GiB is the default of the package


@dataclass(frozen=True)
class Contender:
    """A way to per-example gradient geometry and what it gives."""

    name: str
    gives: str
    make: Callable[[Any, Batch], Work]
    gradients_held: float = 0.0  # copies of the model, an example, that it keeps in memory
    most_parameters: float = float("inf")  # not run on larger models: it would take minutes a pass


def plain(model: Any, batch: Batch) -> Work:
    """One ordinary batched forward and backward pass with weight gradients: what all are compared with."""

    def work() -> None:
        token_losses(model, batch).losses.sum().backward()
        model.zero_grad(set_to_none=True)

    return work


def without_weight_gradients(model: Any, batch: Batch) -> Work:
    """The backward pass through activations alone: part of every exact method's price."""

    def work() -> None:
        embedded = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_(True)
        for weight in model.parameters():
            weight.requires_grad_(False)
        hidden = model(inputs_embeds=embedded, attention_mask=batch["attention_mask"], use_cache=False).logits
        targets = batch["labels"][:, 1:]
        chosen = targets != -100
        torch.nn.functional.cross_entropy(hidden[:, :-1][chosen], targets[chosen], reduction="sum").backward()
        for weight in model.parameters():
            weight.requires_grad_(True)

    return work


def ours_gram(model: Any, batch: Batch) -> Work:
    """Take the exact Gram matrix of every parameter."""
    return lambda: gradient_gram(model, batch, reduction="sum", memory_budget=BUDGET).total()


def ours_sketch(model: Any, batch: Batch) -> Work:
    """Take a sketch of every parameter's gradients; the Gram matrix is an estimate."""

    def work() -> None:
        gradient_sketch(model, batch, dim=SKETCH, reduction="sum", memory_budget=BUDGET)

    return work


def ours_everything(model: Any, batch: Batch) -> Work:
    """Take what a probe takes in one pass: Gram, a direction, a sketch, left bases of two halves."""
    direction = {name: torch.ones_like(weight) for name, weight in model.named_parameters()}
    half = len(batch["input_ids"]) // 2
    wanted = {
        "gram": Gram(),
        "dots": Dots(direction),
        "sketch": Sketch(SKETCH, 0),
        "first": Basis(rank=20, examples=range(half)),
        "second": Basis(rank=20, examples=range(half, 2 * half)),
    }
    return lambda: gradient_pass(model, batch, wanted, reduction="sum", memory_budget=BUDGET)["gram"].total()


def loop(model: Any, batch: Batch) -> Work:
    """One backward pass an example, gradients kept, then a matrix product a parameter."""
    weights = [*model.parameters()]

    def work() -> Tensor:
        rows = []
        for row in range(len(batch["input_ids"])):
            loss = token_losses(model, {key: value[row : row + 1] for key, value in batch.items()}).losses.sum()
            rows.append(torch.autograd.grad(loss, weights))
        return _sum_of_grams(torch.stack([row[i] for row in rows]) for i in range(len(weights)))

    return work


def vmap_grad(model: Any, batch: Batch) -> Work:
    """torch.func: vmap over examples of grad. Eager attention, since fused kernels have no batching rule."""
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("eager")
    weights = {name: weight.detach() for name, weight in twin.named_parameters()}

    def loss(weights: dict[str, Tensor], ids: Tensor, labels: Tensor) -> Tensor:
        logits = functional_call(twin, weights, (ids[None],), {"use_cache": False}).logits[0, :-1].float()
        return torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum")

    def work() -> Tensor:
        rows = vmap(grad(loss), in_dims=(None, 0, 0))(weights, batch["input_ids"], batch["labels"])
        return _sum_of_grams(rows[name] for name in [*rows])

    return work


def _sum_of_grams(stacks: Any) -> Tensor:
    total = torch.zeros(())
    for rows in stacks:
        flat = rows.flatten(1)
        total = total + (flat @ flat.T).double().cpu()
    return total


OURS = (
    Contender("geomsafe, exact Gram", "Gram, exact", ours_gram),
    Contender("geomsafe, sketch", f"sketch of {SKETCH}", ours_sketch),
    Contender("geomsafe, one probe's pass", "Gram, dots, sketch, left bases of two halves", ours_everything),
)
TEXTBOOK = (
    Contender("backward without weight gradients", "nothing", without_weight_gradients),
    Contender("loop over examples", "Gram, exact", loop, gradients_held=1.2),
    Contender("torch.func vmap(grad)", "Gram, exact", vmap_grad, gradients_held=1.2),
)
