"""Place two: methods that add to the loss, in any Trainer.

    class MyTrainer(GeomsafeLoss, SFTTrainer): ...
    MyTrainer(..., callbacks=[MethodsCallback(make_methods(["kl:strength=0.1"]))])

The mixin finds the methods in the trainer's `MethodsCallback`; geomsafe's own engine has it. Without loss methods, and
in evaluation, it changes nothing, bitwise.

A loss method returns, for each micro-batch, a sum and what it is a sum over. Of a penalty on weights the step shall
see it once, whatever the accumulation: each micro-batch carries 1 / count of it. Of a sum over target tokens the step
shall see the mean over all target tokens of the effective batch, as of the task's loss. Trainer divides the loss of a
micro-batch by their number itself in some cases (a model that does not take `num_items_in_batch`); then a mean of
micro-batch means is what the task's loss is too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from geomsafe.errors import TrainingError
from geomsafe.methods.base import Method
from geomsafe.methods.callback import MethodsCallback


class Term(NamedTuple):
    """What a method adds to the loss of one micro-batch.

    Attributes:
        value: a scalar with its graph, in nats.
        tokens: target tokens that `value` is summed over; None: it belongs to the step as a whole.
    """

    value: Tensor
    tokens: int | None


class LossMethod(Method):
    """Base of methods that add to the loss."""

    acts_on_loss: ClassVar[bool] = True

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._added: list[tuple[float, int | None]] = []

    def before_loss(self, model: nn.Module, inputs: Mapping[str, Any]) -> Any:
        """Look at the model before the micro-batch runs forward, outside of any graph.

        Args:
            model: the model.
            inputs: the micro-batch.

        Returns:
            What `term` gets as `seen`.
        """
        return None

    def term(self, model: nn.Module, inputs: Mapping[str, Any], outputs: Any, seen: Any) -> Term:
        """Return what is added for this micro-batch, its strength included.

        Args:
            model: the model.
            inputs: the micro-batch, `labels` included.
            outputs: what the model returned for it; None, or without logits, or with logits that carry no graph,
                where the trainer has it so.
            seen: what `before_loss` returned.

        Returns:
            The term.

        Raises:
            NotImplementedError: always here; methods say what they add.
        """
        raise NotImplementedError(type(self).__name__)

    def keep(self, term: Term) -> None:
        """Write a term down for the step's row."""
        self._added.append((float(term.value.detach()), term.tokens))

    def on_gradient(self, model: nn.Module, step: int) -> dict[str, float]:
        """Return what was added to the step's loss.

        Args:
            model: not used.
            step: for the message.

        Returns:
            `added` in nats: the mean over target tokens, or the penalty.

        Raises:
            TrainingError: the trainer does not ask for it.
        """
        if not self._added:
            raise TrainingError(
                f"method {self.label} acts on the loss, and the trainer does not ask it: "
                "use class MyTrainer(GeomsafeLoss, Trainer) from geomsafe.methods"
            )
        added, self._added = self._added, []
        tokens = sum(count or 0 for _, count in added)
        return {"added": sum(value for value, _ in added) / (tokens or len(added))}


if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object


class GeomsafeLoss(_Trainer):
    """Mixin that stands before a Trainer class and adds what loss methods say."""

    # TRL's SFTTrainer gives logits without a graph, by a forward pass of their own: it is asked for them once.
    _logits_have_graph = True

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute the trainer's own loss and add the methods' terms while training.

        Args:
            model: the model.
            inputs: the micro-batch.
            return_outputs: whether the model's outputs are wanted too.
            num_items_in_batch: target tokens of the whole effective batch.

        Returns:
            The loss, or (loss, outputs).
        """
        methods = self._loss_methods() if model.training else []
        if not methods:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        # Trainer takes the labels out of `inputs` in some cases.
        batch = dict(inputs)
        seen = [method.before_loss(model, batch) for method in methods]
        asked = return_outputs or self._logits_have_graph
        found: Any = super().compute_loss(model, inputs, asked, num_items_in_batch)
        loss, outputs = found if asked else (found, None)
        if asked:
            logits = getattr(outputs, "logits", None)
            self._logits_have_graph = logits is not None and logits.requires_grad
        for method, before in zip(methods, seen, strict=True):
            term = method.term(model, batch, outputs, before)
            method.keep(term)
            loss = loss + term.value.to(loss.device) / self._divisor(term, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _loss_methods(self) -> list[LossMethod]:
        callbacks = [known for known in self.callback_handler.callbacks if isinstance(known, MethodsCallback)]
        return [method for known in callbacks for method in known.methods if isinstance(method, LossMethod)]

    def _divisor(self, term: Term, num_items_in_batch: Tensor | int | None) -> Tensor | float:
        micro_batches = self.current_gradient_accumulation_steps
        if not self._loss_is_scaled(num_items_in_batch):
            # Trainer will divide by the number of micro-batches.
            return 1.0 if term.tokens is None else max(1, term.tokens)
        if term.tokens is None:
            return float(micro_batches)
        if num_items_in_batch is None:
            return float(max(1, term.tokens) * micro_batches)
        return (
            num_items_in_batch.to(term.value.device) if isinstance(num_items_in_batch, Tensor) else num_items_in_batch
        )

    def _loss_is_scaled(self, num_items_in_batch: Tensor | int | None) -> bool:
        # As Trainer.training_step of transformers 5.23 decides it.
        stated = getattr(self, "loss_is_scaled_for_ga", None)
        if stated is not None:
            return bool(stated)
        counted = bool(self.model_accepts_loss_kwargs) and num_items_in_batch is not None
        return counted or self.compute_loss_func is not None


def target_positions(labels: Tensor) -> Tensor:
    """Return where the next token is a target.

    Args:
        labels: (examples, tokens), -100 outside the answer, not shifted.

    Returns:
        (examples, tokens - 1) bool, to index logits[:, :-1].
    """
    return torch.as_tensor(labels[:, 1:] != -100)
