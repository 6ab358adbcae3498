"""Early stop: the weights after a given step, as a set beside the last iterate.

The plainest control of all: it moved less far because it trained less. It is the iterate of the same run, so its
learning rate is where the whole run's schedule had it; a run of its own with that many steps would have decayed.
With LoRA the factors are kept, not their product: the set is that iterate to the bit.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from geomsafe.config import Settings
from geomsafe.errors import ConfigError, TrainingError
from geomsafe.methods.base import Method, Schedule, Swap
from geomsafe.methods.shadow import Shadow, restore_tensors


class EarlyStopOptions(Settings):
    """Options of `early-stop`: exactly one of the two."""

    step: int | None = Field(default=None, ge=1, description="optimizer step whose weights are kept")
    share: float | None = Field(default=None, gt=0, le=1, description="the same as a share of all steps, rounded up")

    @model_validator(mode="after")
    def _exactly_one(self) -> EarlyStopOptions:
        if (self.step is None) == (self.share is None):
            raise ValueError("give either step= or share=, as in early-stop:share=0.5")
        return self


class EarlyStop(Method):
    """Keep the iterate of one step."""

    name: ClassVar[str] = "early-stop"
    Options: ClassVar[type[Settings]] = EarlyStopOptions
    options: EarlyStopOptions

    def __init__(self, options: Settings | None = None) -> None:
        super().__init__(options)
        self._step = 0
        self._kept: Shadow | None = None
        self._reached = torch.zeros((), dtype=torch.int64)

    @property
    def stands_beside(self) -> bool:
        """True: it only copies weights."""
        return True

    def start(self, model: nn.Module, optimizer: torch.optim.Optimizer | None, schedule: Schedule) -> None:
        """Find the step.

        Args:
            model: the model that is trained.
            optimizer: not used.
            schedule: the length of the run.

        Raises:
            ConfigError: the run is shorter than that.
        """
        self._step = self._stop(schedule)
        if self._step > schedule.total_steps:
            raise ConfigError(
                f"method {self.label}: step={self._step} is beyond the run's {schedule.total_steps} steps"
            )
        self._kept = Shadow(model, products=False)
        self._reached.zero_()

    def after_step(self, model: nn.Module, step: int) -> dict[str, float]:
        """Keep the weights when the step has come.

        Args:
            model: the model after the optimizer step.
            step: the step that was taken.

        Returns:
            On that step `kept` = 1.
        """
        if step != self._step or self._kept is None:
            return {}
        self._kept.fold(model, 1.0)
        self._reached.fill_(step)
        return {"kept": 1.0}

    def weight_sets(self) -> dict[str, Swap]:
        """Return the kept weights under the method's label."""
        return {self.label: self._placed}

    def step_of(self, name: str, last: int) -> int:
        """Return the step that was kept."""
        return self._step

    def state_dict(self) -> dict[str, Tensor]:
        """Return the kept weights and their step, 0 before it."""
        kept = self._kept.tensors if self._kept is not None else {}
        return {"reached": self._reached} | {f"kept.{name}": tensor for name, tensor in kept.items()}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Continue from saved weights.

        Args:
            tensors: what `state_dict` returned.
        """
        restore_tensors(self.label, self.state_dict(), tensors)

    def describe(self, schedule: Schedule) -> dict[str, Any]:
        """Return the record's entry, with `at_step`.

        Args:
            schedule: the length of the run.

        Returns:
            As `Method.describe`.
        """
        return super().describe(schedule) | {"weight_set": self.label, "at_step": self._stop(schedule)}

    def _stop(self, schedule: Schedule) -> int:
        return self.options.step or math.ceil((self.options.share or 1.0) * schedule.total_steps)

    def _placed(self, model: nn.Module) -> Any:
        if self._kept is None or not self._reached:
            raise TrainingError(f"method {self.label}: step {self._step} has not been reached")
        return self._kept.placed(model)
