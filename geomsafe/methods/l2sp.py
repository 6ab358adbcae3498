"""L2-SP: weights held near their start (Li, Grandvalet and Davoine, arXiv 1802.01483, who name it so).

    coupled:    gradient += lambda (theta - theta_0)              before clipping and the optimizer, the paper's way
    decoupled:  theta <- theta - lr lambda (theta - theta_0)      after the optimizer's step, at its learning rate

Coupled, the pull passes through momentum and Adam's scaling; decoupled it does not, as weight decay in AdamW.
Decoupled it is theta <- decay theta_0 + (1 - decay) theta with decay = lr lambda: an average with theta_0 itself in
place of the running one. The penalty is lambda / 2 ||theta - theta_0||^2 over all trained weights, biases and norms
included; the paper's other penalty, on new layers, has no object here.

With LoRA the displacement is that of delta W = (alpha / r) B A. Coupled, the penalty's gradient is taken in A and B.
Decoupled, delta W <- (1 - lr lambda) delta W by scaling B; A stays, so that it does not fade over a long run. That
needs an adapter that starts at delta W = 0.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from geomsafe.config import Settings
from geomsafe.errors import ConfigError, TrainingError
from geomsafe.methods.adapters import AdaptedLayer, adapted_layers
from geomsafe.methods.base import Method, Schedule
from geomsafe.models import trained_parameters


class L2SPOptions(Settings):
    """Options of `l2sp`."""

    strength: float = Field(0.01, ge=0, allow_inf_nan=False, description="lambda")
    mode: Literal["coupled", "decoupled"] = Field("coupled", description="in the gradient, or beside the optimizer")


class L2SP(Method):
    """Pull the weights towards theta_0 at every step."""

    name: ClassVar[str] = "l2sp"
    Options: ClassVar[type[Settings]] = L2SPOptions
    options: L2SPOptions
    acts_on_gradient: ClassVar[bool] = True
    uses_origin: ClassVar[bool] = True

    def __init__(self, options: Settings | None = None) -> None:
        super().__init__(options)
        self._optimizer: torch.optim.Optimizer | None = None

    def start(self, model: nn.Module, optimizer: torch.optim.Optimizer | None, schedule: Schedule) -> None:
        """Check that the pull can be made.

        Args:
            model: the model that is trained.
            optimizer: gives the learning rate of each step in decoupled mode.
            schedule: gives the peak learning rate.

        Raises:
            ConfigError: decoupled, lr x lambda is above 1, or an adapter does not start at zero.
        """
        self._optimizer = optimizer
        if self.options.mode == "coupled":
            return
        if schedule.lr * self.options.strength > 1:
            raise ConfigError(
                f"method {self.label}: lr x strength = {schedule.lr * self.options.strength:g} is above 1 and would "
                f"throw the weights past theta_0: strength must be at most {1 / schedule.lr:g}"
            )
        if not self.origin.starts_bare:
            raise ConfigError(
                f"method {self.label}: mode=decoupled needs LoRA factors that start at B A = 0: use mode=coupled"
            )

    def on_gradient(self, model: nn.Module, step: int) -> dict[str, float]:
        """Add the pull to the gradient, in coupled mode.

        Args:
            model: the model, its gradients accumulated.
            step: not used.

        Returns:
            `pull` = norm of what was added, `penalty` = lambda / 2 ||theta - theta_0||^2 in nats.
        """
        if self.options.mode != "coupled":
            return {}
        added = squares = 0.0
        for name, weight in trained_parameters(model).items():
            if weight.grad is None:
                continue
            with torch.no_grad():
                moved = weight - self.origin.start(name)
                weight.grad.add_(moved, alpha=self.options.strength)
            size = float(moved.square().sum())
            added, squares = added + self.options.strength**2 * size, squares + size
        for layer in adapted_layers(model):
            pull, size = self._add_pull(layer)
            added, squares = added + pull, squares + size
        return {"pull": math.sqrt(added), "penalty": self.options.strength / 2 * squares}

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> dict[str, float]:
        """Move the weights towards theta_0, in decoupled mode.

        Args:
            model: the model after the optimizer step.
            step: not used.

        Returns:
            `pull` = the distance moved: lr lambda ||theta - theta_0||_2.
        """
        if self.options.mode != "decoupled":
            return {}
        rates = self._rates()
        squares = 0.0
        for name, weight in trained_parameters(model).items():
            share = rates[id(weight)] * self.options.strength
            moved = weight - self.origin.start(name)
            weight.sub_(moved, alpha=share)
            squares += share**2 * float(moved.square().sum())
        for layer in adapted_layers(model):
            share = rates[id(layer.factors[0])] * self.options.strength
            squares += share**2 * float(layer.delta().square().sum())
            for factor in layer.output_factors:
                factor.mul_(1 - share)
        return {"pull": math.sqrt(squares)}

    def describe(self, schedule: Schedule) -> dict[str, Any]:
        """Return the record's entry.

        Args:
            schedule: gives the peak learning rate.

        Returns:
            As `Method.describe`, with `decay` = lr lambda at the peak in decoupled mode.
        """
        decay = schedule.lr * self.options.strength if self.options.mode == "decoupled" else None
        return super().describe(schedule) | {"decay": decay}

    def _add_pull(self, layer: AdaptedLayer) -> tuple[float, float]:
        # One layer at a time: delta W is formed, differentiated and dropped.
        with torch.enable_grad():
            moved = layer.delta()
            start = self.origin.start_delta(layer.name)
            penalty = (moved if start is None else moved - start).square().sum()
            gradients = torch.autograd.grad(penalty, layer.factors)
        added = 0.0
        for factor, gradient in zip(layer.factors, gradients, strict=True):
            pull: Tensor = self.options.strength / 2 * gradient
            factor.grad = pull if factor.grad is None else factor.grad.add_(pull)
            added += float(pull.square().sum())
        return added, float(penalty.detach())

    def _rates(self) -> dict[int, float]:
        if self._optimizer is None:
            raise TrainingError(f"method {self.label}: mode=decoupled needs the optimizer for its learning rate")
        return {id(weight): float(group["lr"]) for group in self._optimizer.param_groups for weight in group["params"]}
