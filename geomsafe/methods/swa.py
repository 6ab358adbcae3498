"""Stochastic weight averaging: the uniform mean of the iterates of the last part of training.

    theta_swa = 1/n sum of theta_t over steps t > start * total, every k-th, the last one among them

Izmailov et al., arXiv 1803.05407, average the last quarter and raise the learning rate there to a constant or a
cycle; here the learning rate is the run's own, so that the average is a reading of the same path. The mean is
kept as a recursion, theta_swa <- theta_swa + (theta - theta_swa) / n, which is the mean in exact arithmetic.
With LoRA delta W is averaged and the set is saved merged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from geomsafe.config import Settings
from geomsafe.errors import TrainingError
from geomsafe.methods.adapters import adapted_layers
from geomsafe.methods.base import Method, Schedule, Swap
from geomsafe.methods.shadow import Shadow, restore_tensors


class SwaOptions(Settings):
    """Options of `swa`."""

    start: float = Field(0.75, ge=0, lt=1, description="share of all steps before averaging (Izmailov et al.: 0.75)")
    every: int = Field(1, ge=1, description="average every N steps, counted back from the last")


class Swa(Method):
    """Keep the uniform mean of the tail beside training."""

    name: ClassVar[str] = "swa"
    Options: ClassVar[type[Settings]] = SwaOptions
    options: SwaOptions

    def __init__(self, options: Settings | None = None) -> None:
        super().__init__(options)
        self._mean: Shadow | None = None
        self._total_steps = 0
        self._count = torch.zeros((), dtype=torch.int64)

    @property
    def stands_beside(self) -> bool:
        """True: it only copies weights."""
        return True

    def start(self, model: nn.Module, optimizer: torch.optim.Optimizer | None, schedule: Schedule) -> None:
        """Make room for the mean.

        Args:
            model: the model that is trained.
            optimizer: not used.
            schedule: gives the last step.
        """
        self._total_steps = schedule.total_steps
        self._mean = Shadow(model, products=any(True for _ in adapted_layers(model)))
        self._count.zero_()

    def after_step(self, model: nn.Module, step: int) -> dict[str, float]:
        """Take the iterate into the mean where it belongs there.

        Args:
            model: the model after the optimizer step.
            step: the step that was taken.

        Returns:
            On steps that count: `averaged`, how many iterates the mean has by now, and from the
            second on `gap` = ||theta - mean||_2 before.
        """
        if not self._counts(step):
            return {}
        self._count += 1
        gap = self._kept.fold(model, 1 / int(self._count))
        return {"averaged": float(self._count)} | ({"gap": gap} if self._count > 1 else {})

    def weight_sets(self) -> dict[str, Swap]:
        """Return the mean under the method's label."""
        return {self.label: self._placed}

    def displacement(self, name: str) -> Iterator[tuple[str, Tensor]] | None:
        """Return the mean of products: LoRA starts at delta W = 0, so this is its displacement."""
        return iter(self._kept.tensors.items()) if self._kept.products else None

    def state_dict(self) -> dict[str, Tensor]:
        """Return the mean and how many iterates it has."""
        return {"count": self._count} | {f"mean.{name}": tensor for name, tensor in self._kept.tensors.items()}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Continue from a saved mean.

        Args:
            tensors: what `state_dict` returned.
        """
        restore_tensors(self.label, self.state_dict(), tensors)

    def describe(self, schedule: Schedule) -> dict[str, Any]:
        """Return the record's entry.

        Args:
            schedule: the length of the run.

        Returns:
            As `Method.describe`; effective_window_steps is the length of the tail.
        """
        counted = sum(map(self._counts, range(1, schedule.total_steps + 1)))
        return super().describe(schedule) | {
            "effective_window_steps": counted * self.options.every,
            "weight_set": self.label,
        }

    def _placed(self, model: nn.Module) -> Any:
        if not self._count:
            raise TrainingError(
                f"method {self.label}: no iterate has been averaged yet, the first is that of step "
                f"{math.floor(self.options.start * self._total_steps) + 1} or later"
            )
        return self._kept.placed(model)

    def _counts(self, step: int) -> bool:
        return step > self.options.start * self._total_steps and (self._total_steps - step) % self.options.every == 0

    @property
    def _kept(self) -> Shadow:
        if self._mean is None:
            raise TrainingError(f"method {self.label}: the mean exists once training has begun")
        return self._mean
