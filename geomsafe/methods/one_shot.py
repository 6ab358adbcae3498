"""The one-shot patch: after the fine-tune, a few steps on a single refusal ("Safety at One Shot", arXiv 2601.01887).

    theta_patched = theta_T after `epochs` steps of AdamW on the anchor's token-mean negative log-likelihood

The paper takes 10 epochs at learning rate 2e-5 on one refusal, which it searches for among 256; here the anchor is what
`anchor=` names. An epoch is one step: the whole anchor is its batch. Ours, where we know of no statement: the learning
rate is constant, nothing is decayed, dropout is off.

The trained parameters are patched, under LoRA its factors, so that the set keeps the adapter's rank. The steps are
taken in float32, or wider where the weights are: at this learning rate most of them are below half a bfloat16 step
and would be lost one by one. theta_T is put back bitwise, also when a step fails; the patch is a set beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from geomsafe.config import Settings
from geomsafe.errors import TrainingError
from geomsafe.gradients import token_losses, undisturbed
from geomsafe.methods.anchored import Anchored, AnchorOptions
from geomsafe.methods.base import Schedule, Swap
from geomsafe.methods.shadow import widened
from geomsafe.methods.swap import swapped
from geomsafe.models import Anchor


class OneShotOptions(AnchorOptions):
    """Options of `one-shot`; the defaults are the paper's."""

    epochs: int = Field(10, ge=1, description="steps on the anchor")
    lr: float = Field(2e-5, gt=0, allow_inf_nan=False, description="learning rate of these steps, constant")


class OneShot(Anchored):
    """Offer the last iterate, patched by a few steps on one refusal."""

    name: ClassVar[str] = "one-shot"
    Options: ClassVar[type[Settings]] = OneShotOptions
    options: OneShotOptions
    acts_on_gradient: ClassVar[bool] = False
    # theta_T twice (to come back to, and to measure from), the patched weights, two moments and a gradient.
    copies: ClassVar[int] = 6

    def __init__(self, options: Settings | None = None, *, anchor: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(options, anchor=anchor)
        self._last = 0
        self._names: frozenset[str] = frozenset()
        self._patched: dict[str, Tensor] = {}

    @property
    def stands_beside(self) -> bool:
        """True: the patch is a copy's."""
        return True

    def start(self, model: nn.Module, optimizer: torch.optim.Optimizer | None, schedule: Schedule) -> None:
        """Check that there is an anchor, and remember which step is the last.

        Args:
            model: the model that is trained.
            optimizer: not used, the patch has one of its own.
            schedule: the length of the run.

        Raises:
            ConfigError: there is no anchor.
        """  # noqa: DOC502
        super().start(model, optimizer, schedule)
        self._last, self._names, self._patched = schedule.total_steps, frozenset(_trained(model)), {}

    def after_step(self, model: nn.Module, step: int) -> dict[str, float]:
        """Patch a copy of the weights when the last step has been taken.

        Args:
            model: the model after the optimizer step.
            step: the step that was taken.

        Returns:
            On the last step `anchor_loss` and `anchor_loss_patched`, in nats, before and after, and
            `added_distance` = ||theta_patched - theta_T||_2 over the effective weights.

        Raises:
            TrainingError: the patch has left the finite numbers; theta_T is back in the model.
        """  # noqa: DOC502
        if step != self._last:
            return {}
        trained, start = _trained(model), Anchor(model)
        patched = {name: widened(weight) for name, weight in trained.items()}
        with swapped((weight, weight.data) for weight in trained.values()), undisturbed(model):
            before = self._descend(model, trained, patched)
            with torch.no_grad():
                after = self._finite(self._loss(model))
            added = start.distance(model).total
        self._patched = patched
        return {"anchor_loss": before, "anchor_loss_patched": after, "added_distance": added}

    def weight_sets(self) -> dict[str, Swap]:
        """Return the patched weights under the method's label."""
        return {self.label: self._placed}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the patched weights; before the last step there are none."""
        return dict(self._patched)

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Continue from a checkpoint, which has the patched weights if it is of the last step.

        Args:
            tensors: what `state_dict` returned.

        Raises:
            TrainingError: a name has no partner.
        """
        if tensors and tensors.keys() != self._names:
            odd = sorted(tensors.keys() ^ self._names)[0]
            raise TrainingError(f"method {self.label}: the checkpoint does not fit this model: '{odd}' has no partner")
        self._patched = tensors

    def describe(self, schedule: Schedule) -> dict[str, Any]:
        """Return the record's entry; the weights are those under the label."""
        return super().describe(schedule) | {"weight_set": self.label}

    def _descend(self, model: nn.Module, trained: Mapping[str, nn.Parameter], patched: Mapping[str, Tensor]) -> float:
        """Move `patched`, and the model with it; return the anchor's loss before."""  # noqa: DOC201
        optimizer = torch.optim.AdamW(patched.values(), lr=self.options.lr, weight_decay=0.0)
        losses = []
        for _ in range(self.options.epochs):
            with torch.enable_grad():
                loss = self._loss(model)
                # The parameters' own .grad is the task's and stays.
                gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
            losses.append(self._finite(loss))
            for weights, gradient in zip(patched.values(), gradients, strict=True):
                weights.grad = None if gradient is None else gradient.to(weights.dtype)
            optimizer.step()
            with torch.no_grad():
                for name, weights in patched.items():
                    trained[name].copy_(weights)
        optimizer.zero_grad()
        return losses[0]

    def _loss(self, model: nn.Module) -> Tensor:
        anchor: Any = self.anchor
        each = token_losses(model, anchor)
        return each.losses.sum() / each.tokens.sum()

    def _finite(self, loss: Tensor) -> float:
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"method {self.label}: the anchor's loss is {value} at lr={self.options.lr:g}: give a smaller lr"
            )
        return value

    @contextmanager
    def _placed(self, model: nn.Module) -> Iterator[nn.Module]:
        if not self._patched:
            raise TrainingError(
                f"method {self.label}: there is no patch before the last step, {self._last}, has been taken"
            )
        with swapped((weight, self._patched[name]) for name, weight in _trained(model).items()):
            yield model


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
