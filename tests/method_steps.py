"""A few optimizer steps with a method, on tiny float64 models: what the tests of gradient methods share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from gradient_cases import padded, some_examples
from reference import slow_example_gradients
from torch import Tensor, nn

from geomsafe.methods import Method, Schedule

SCHEDULE = Schedule(total_steps=10, steps_per_epoch=5, lr=1e-2)
ANCHOR = some_examples(1, seed=11)
"""The one example whose gradient methods look at."""

TASK = some_examples(6, seed=12)
Gradients = dict[str, Tensor]


def anchor_batch() -> dict[str, Tensor]:
    """`ANCHOR` as a batch."""
    return padded(ANCHOR)


def safety_gradient(model: Any) -> Gradients:
    """The anchor's gradient by one plain backward pass, token-mean."""
    return {name: rows[0] for name, rows in slow_example_gradients(model, ANCHOR, "mean").items()}


def task_gradients(model: Any, step: int) -> None:
    """Fill `.grad` with a task that goes against the anchor in some steps and along it in others."""
    model.zero_grad()
    batch = padded(TASK[step % 3 : step % 3 + 3])
    wanted = model(**batch).loss
    against = model(**anchor_batch()).loss
    (wanted + (0.5 if step % 3 == 2 else -0.5) * against).backward()


def gradients_of(model: nn.Module) -> Gradients:
    """Copies of all `.grad` that exist, by name."""
    return {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW whose eps is large enough that rounding in a vanishing gradient is not blown up to a whole step."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=SCHEDULE.lr, eps=1e-3, weight_decay=0.1)


def train_with(model: Any, method: Method, steps: int = 10) -> list[dict[str, float]]:
    """Take steps with a method and return its log."""
    optimizer = adam(model)
    method.start(model, optimizer, SCHEDULE)
    logs = []
    for step in range(1, steps + 1):
        task_gradients(model, step)
        log = method.on_gradient(model, step)
        optimizer.step()
        logs.append(log | method.after_step(model, step))
    return logs


def train_by_hand(model: Any, change: Callable[[Any, Gradients, int], Gradients], steps: int = 10) -> Any:
    """Take the same steps on a copy, with gradients that `change` returns, given model, gradients and step."""
    other = copy.deepcopy(model)
    optimizer = adam(other)
    for step in range(1, steps + 1):
        task_gradients(other, step)
        for name, gradient in change(other, gradients_of(other), step).items():
            other.get_parameter(name).grad.copy_(gradient)
        optimizer.step()
    return other


def largest_difference(first: nn.Module, second: nn.Module) -> float:
    """The largest difference of two models' weights."""
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return max(float((one - other).detach().abs().max()) for one, other in pairs)
