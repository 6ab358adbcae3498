"""KL to theta_0 on the task's own batch: the tuned model stays near what the aligned one would have said.

    loss += lambda * mean over target positions of D(theta_0 || theta),   D = sum_v p_0(v) (log p_0(v) - log p(v))

over the full vocabulary, in nats, the mean taken over all target tokens of the effective batch. Forward, as
`geomsafe` measures drift: theta must keep what theta_0 finds likely. The positions are those of the answers in the
data, teacher-forced; nothing is sampled.

theta_0 runs forward without dropout on each micro-batch, which costs about a third of a step; its weights are the
run's one copy of theta_0, put in and taken out without copying. Under LoRA it is the model without its adapter.
Where a trainer's logits carry no graph, or are not formed (TRL's SFTTrainer), theta runs forward once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from geomsafe.config import Settings
from geomsafe.gradients import undisturbed
from geomsafe.methods.loss import LossMethod, Term, target_positions


class KlOptions(Settings):
    """Options of `kl`."""

    strength: float = Field(0.1, ge=0, allow_inf_nan=False, description="lambda")


class Kl(LossMethod):
    """Add the divergence from theta_0 to the loss."""

    name: ClassVar[str] = "kl"
    Options: ClassVar[type[Settings]] = KlOptions
    options: KlOptions
    uses_origin: ClassVar[bool] = True

    @torch.no_grad()
    def before_loss(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """Return theta_0's log-probabilities.

        Args:
            model: the model.
            inputs: the micro-batch.

        Returns:
            (target positions, vocabulary), in float32 or wider.
        """
        with undisturbed(model), self.origin.visited(model):
            logits = _forward(model, inputs)
        return _log_probs(logits, inputs["labels"])

    def term(self, model: nn.Module, inputs: Mapping[str, Any], outputs: Any, seen: Any) -> Term:
        """Return lambda x the divergence, summed over the micro-batch's target positions."""
        logits = getattr(outputs, "logits", None)
        # TRL's SFTTrainer computes the loss without the logits; those that it gives are without a graph: of them the
        # divergence would be logged and would move nothing.
        if logits is None or not logits.requires_grad:
            logits = _forward(model, inputs)
        now = _log_probs(logits, inputs["labels"])
        divergence = (seen.exp() * (seen - now)).sum()
        return Term(self.options.strength * divergence, len(now))


def _forward(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    asked = {key: value for key, value in inputs.items() if key != "labels"} | {"use_cache": False}
    logits: Tensor = model(**asked).logits
    return logits


def _log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    at_targets = logits[:, :-1][target_positions(labels)]
    return at_targets.to(torch.promote_types(at_targets.dtype, torch.float32)).log_softmax(dim=-1)
