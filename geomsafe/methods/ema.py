"""Exponential moving average of the weights (Kim et al., arXiv 2508.12531), and its readings.

    theta_ema <- (1 - eta) theta_ema + eta theta,    theta_ema = theta_0 at step 0

`eta` is the weight of the *new* iterate; 1 / eta steps is the window. Two modes:

- shadow: theta is trained as without EMA, theta_ema is a second set of weights.
- feedback: after averaging theta <- theta_ema, and the next step starts there. Every step,
  this is exactly a learning rate of lr x eta, for any optimizer whose update is
  -lr u(gradients): (1 - eta) theta + eta (theta - lr u) = theta - eta lr u, decoupled decay
  included. Every k > 1 steps it is Lookahead (Zhang et al., arXiv 1907.08610).

With LoRA, `space` says what is averaged: `product`, the effective delta W = (alpha / r) B A,
or `factors`, A and B each. An average of products has a rank above r, so it is kept as full
matrices and saved merged; it cannot be fed back into A and B.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from geomsafe.config import Settings
from geomsafe.errors import ConfigError, TrainingError
from geomsafe.methods.adapters import adapted_layers
from geomsafe.methods.base import Method, Schedule, Swap
from geomsafe.methods.shadow import Shadow, restore_tensors, widened
from geomsafe.methods.swap import swapped


class EmaOptions(Settings):
    """Options of `ema`."""

    eta: float = Field(0.25, ge=0, le=1, description="weight of the new iterate (Kim et al.: 0.25)")
    mode: Literal["shadow", "feedback"] = Field("shadow", description="beside training, or fed back into it")
    every: int = Field(1, ge=1, description="average every N units")
    unit: Literal["step", "epoch"] = Field("step", description="unit of `every`: optimizer steps or passes")
    space: Literal["product", "factors"] | None = Field(
        default=None, description="LoRA only: average delta W (default of shadow) or the factors (feedback)"
    )

    @model_validator(mode="after")
    def _feedback_needs_factors(self) -> EmaOptions:
        if self.mode == "feedback" and self.space == "product":
            raise ValueError(
                "an average of products B A has a rank above r and cannot be fed back into the factors: "
                "use space=factors, or mode=shadow"
            )
        return self


class Ema(Method):
    """Keep, and in feedback mode train from, an exponential moving average of the weights."""

    name: ClassVar[str] = "ema"
    Options: ClassVar[type[Settings]] = EmaOptions
    options: EmaOptions

    def __init__(self, options: Settings | None = None) -> None:
        super().__init__(options)
        self._period = 1
        self._adapted = False
        self._shadow: Shadow | None = None
        self._factors: dict[str, Tensor] = {}
        self._optimizer: torch.optim.Optimizer | None = None

    @property
    def stands_beside(self) -> bool:
        """Whether the average is a shadow."""
        return self.options.mode == "shadow"

    def start(self, model: nn.Module, optimizer: torch.optim.Optimizer | None, schedule: Schedule) -> None:
        """Set theta_ema to the weights the model has: theta_0 in a fresh run.

        Args:
            model: the model that is trained.
            optimizer: says the learning rate of each step, for the log.
            schedule: gives the steps of an epoch.

        Raises:
            ConfigError: `space` is set and the model has no LoRA adapters.
        """
        layers = list(adapted_layers(model))
        if self.options.space is not None and not layers:
            raise ConfigError(
                f"method ema: space={self.options.space} is for LoRA runs, and all weights are trained here"
            )
        self._adapted, self._optimizer = bool(layers), optimizer
        products = self._adapted and self.options.mode == "shadow" and self.options.space != "factors"
        self._period = self._steps_between(schedule)
        self._shadow = Shadow(model, products=products)
        self._factors = {
            f"{layer.name}.{place}": widened(factor)
            for layer in layers
            for place, factor in enumerate(layer.factors)
            if products
        }

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> dict[str, float]:
        """Average when the period is over, and feed back in feedback mode.

        Args:
            model: the model after the optimizer step.
            step: the step that was taken.

        Returns:
            On steps that average: `gap` = ||theta - theta_ema||_2 just before averaging; fed back, `removed` =
            (1 - eta) gap, the distance by which theta is moved back, and every step `effective_lr` = lr x eta;
            for LoRA products, `factors_gap` = ||s B_ema A_ema - average of products|| / ||average of products||.
            Else nothing.
        """
        if step % self._period:
            return {}
        shadow = self._started
        log = {"gap": shadow.fold(model, self.options.eta)}
        if shadow.products:
            log["factors_gap"] = self._fold_factors(model, self.options.eta)
        if self.options.mode == "feedback":
            shadow.feed_back(model)
            log["removed"] = (1 - self.options.eta) * log["gap"]
            if self._period == 1 and self._optimizer is not None:
                log["effective_lr"] = self.options.eta * max(group["lr"] for group in self._optimizer.param_groups)
        return log

    def weight_sets(self) -> dict[str, Swap]:
        """Return the average under the method's label, unless theta itself is the average."""
        if self.options.mode == "feedback" and self._period == 1:
            return {}
        return {self.label: self._started.placed}

    def displacement(self, name: str) -> Iterator[tuple[str, Tensor]] | None:
        """Return the average of products: LoRA starts at delta W = 0, so this is its displacement."""
        return iter(self._started.tensors.items()) if self._started.products else None

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages."""
        averages = {f"average.{name}": tensor for name, tensor in self._started.tensors.items()}
        return averages | {f"factor.{name}": tensor for name, tensor in self._factors.items()}

    @torch.no_grad()
    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Continue from saved averages.

        Args:
            tensors: what `state_dict` returned.
        """
        restore_tensors(self.label, self.state_dict(), tensors)

    def describe(self, schedule: Schedule) -> dict[str, Any]:
        """Return the record's entry, with the window and the learning rate that EMA amounts to.

        Args:
            schedule: gives the learning rate and the steps of an epoch.

        Returns:
            As `Method.describe`, called after `start`, and `averaged`: weights, product or factors.
            effective_window_steps = period / eta (None for eta = 0);
            effective_lr = lr for a shadow, lr x eta when fed back every step, else None.
        """
        period = self._steps_between(schedule)
        fed_back = self.options.mode == "feedback"
        each_step = fed_back and period == 1
        return super().describe(schedule) | {
            "effective_window_steps": period / self.options.eta if self.options.eta else None,
            "effective_lr": schedule.lr * self.options.eta if each_step else None if fed_back else schedule.lr,
            "weight_set": "final" if each_step else self.label,
            "averaged": "product"
            if self._shadow is not None and self._shadow.products
            else "factors"
            if self._adapted
            else "weights",
        }

    @property
    def _started(self) -> Shadow:
        if self._shadow is None:
            raise TrainingError(f"method {self.label}: the average exists once training has begun")
        return self._shadow

    def _steps_between(self, schedule: Schedule) -> int:
        return self.options.every * (schedule.steps_per_epoch if self.options.unit == "epoch" else 1)

    def _fold_factors(self, model: nn.Module, eta: float) -> float:
        # The factors are averaged too: how far is their product from the average of products?
        difference = size = 0.0
        for layer in adapted_layers(model):
            averages = [self._factors[f"{layer.name}.{place}"] for place in range(len(layer.factors))]
            torch._foreach_lerp_(averages, [factor.to(averages[0].dtype) for factor in layer.factors], eta)
            product = self._started.tensors[layer.name]
            with swapped(zip(layer.factors, averages, strict=True)):
                difference += float((layer.delta() - product).square().sum())
            size += float(product.square().sum())
        return math.sqrt(difference / size) if size else 0.0
