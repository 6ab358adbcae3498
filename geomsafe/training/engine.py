"""The training loop: transformers' Trainer on one device, with a token-mean loss and a row a step.

The loss of a step is the mean over all target tokens of its effective batch, whatever the
micro-batches: Trainer counts the tokens of the whole batch beforehand and hands the count to the
model, and each micro-batch contributes sum / count. So batch 32 and batch 8 x accumulation 4 take
the same step; a mean of micro-batch means would not where answers differ in length.

AdamW decays decoupled from the gradient; for plain SGD, torch's L2 term is the same step. As in
Trainer, biases and norms are not decayed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from geomsafe.config import TrainConfig
from geomsafe.data.encoding import IGNORED
from geomsafe.methods import GeomsafeLoss, NotFiniteError, Schedule
from geomsafe.methods.finite import first_bad_output

_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


class OneDevice(TrainingArguments):
    """Trainer's arguments, held to one device: Trainer alone takes every GPU it sees."""

    chosen: torch.device | None = None

    @property
    def device(self) -> torch.device:
        """The device that was asked for."""
        return self.chosen or super().device

    @property
    def n_gpu(self) -> int:
        """At most one."""
        return min(1, int(super().n_gpu))


class Engine(GeomsafeLoss, Trainer):
    """Trainer that stops at a loss that is not finite and knows what each step consumed."""

    def __init__(self, model: nn.Module, args: TrainingArguments, rows: Sequence[Any], collate: Any) -> None:
        """Prepare the loop.

        Args:
            model: the model, on the device of `args`.
            args: what `arguments` returned.
            rows: encoded examples.
            collate: list of examples -> batch of tensors.
        """
        self._loss = torch.zeros(())
        self._tokens = self._examples = 0
        super().__init__(model, args, data_collator=collate, train_dataset=rows)
        self.remove_callback(PrinterCallback)
        if not self.model_accepts_loss_kwargs:
            self.compute_loss_func = token_mean_loss

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Take the forward and backward pass of one micro-batch.

        Args:
            model: the model.
            inputs: the micro-batch.
            num_items_in_batch: target tokens of the whole effective batch.

        Returns:
            The micro-batch's share of the step's loss.

        Raises:
            NotFiniteError: the loss is NaN or infinite; names step and module.
        """
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            step = self.state.global_step + 1
            raise NotFiniteError("the loss", step, first_bad_output(model, self._prepare_inputs(inputs)))
        self._loss = self._loss.to(loss.device) + loss
        self._tokens += int((inputs["labels"][..., 1:] != IGNORED).sum())
        self._examples += len(inputs["labels"])
        return loss

    def take_consumed(self) -> dict[str, Any]:
        """Return loss, tokens and examples since the last call, and start counting anew."""
        consumed = {"loss": float(self._loss), "tokens": self._tokens, "examples": self._examples}
        self._loss = torch.zeros(())
        self._tokens = self._examples = 0
        return consumed

    def restore(self, checkpoint: Path) -> None:
        """Load the weights of a checkpoint without training on.

        Trainer, resumed at the last step of a part of an epoch, would take one step more.

        Args:
            checkpoint: a complete checkpoint.
        """
        self._load_from_checkpoint(str(checkpoint))

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> None:
        """Leave the gradient alone: Trainer "clips" at infinity to log its norm, which turns one inf into all NaN."""


def token_mean_loss(outputs: Mapping[str, Tensor], labels: Tensor, num_items_in_batch: Tensor | int) -> Tensor:
    """Compute the token-mean loss for a model that cannot be told the count.

    Args:
        outputs: the model's output with logits (examples, tokens, vocabulary).
        labels: (examples, tokens), -100 where there is no target.
        num_items_in_batch: target tokens of the whole effective batch.

    Returns:
        Sum of the micro-batch's negative log-likelihoods / `num_items_in_batch`, in nats.
    """
    logits = outputs["logits"][:, :-1].float().flatten(0, 1)
    total = nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum")
    return total / num_items_in_batch


def schedule_of(config: TrainConfig, rows: int) -> Schedule:
    """Return how long a run is; the last batch of an epoch may be smaller than the others.

    Args:
        config: the settings.
        rows: training examples.

    Returns:
        Steps in all and in an epoch, and the peak learning rate.
    """
    steps_per_epoch = math.ceil(math.ceil(rows / config.batch_size) / config.accumulation)
    total = config.max_steps or math.ceil(config.epochs * steps_per_epoch)
    return Schedule(total_steps=total, steps_per_epoch=steps_per_epoch, lr=config.lr)


def arguments(config: TrainConfig, device: torch.device, checkpoints: Path) -> OneDevice:
    """Translate the settings into Trainer's.

    Args:
        config: the settings.
        device: where the model is.
        checkpoints: folder for `checkpoint-<step>`.

    Returns:
        The arguments. Nothing is logged or printed by Trainer itself.
    """
    args = OneDevice(
        output_dir=str(checkpoints),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        learning_rate=config.lr,
        warmup_steps=config.warmup,
        lr_scheduler_type=_SCHEDULES[config.schedule],
        optim="adamw_torch" if config.optimizer == "adamw" else "sgd",
        weight_decay=config.weight_decay,
        max_grad_norm=config.clip,
        seed=config.seed,
        data_seed=config.seed,
        save_strategy="steps" if config.save_every else "no",
        save_steps=config.save_every or 1,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        report_to=config.report_to,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        use_cpu=device.type == "cpu",
    )
    if device.type == "cuda":
        args.chosen = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(args.chosen)
    return args


def make_engine(
    config: TrainConfig,
    model: nn.Module,
    rows: Sequence[Any],
    collate: Callable[[list[Any]], dict[str, Tensor]],
    checkpoints: Path,
    device: torch.device,
    callbacks: Sequence[TrainerCallback] = (),
) -> Engine:
    """Build the loop for a run.

    Args:
        config: the settings.
        model: the model at theta_0.
        rows: encoded examples.
        collate: list of examples -> batch of tensors.
        checkpoints: folder for Trainer's checkpoints.
        device: where the model is.
        callbacks: added in this order.

    Returns:
        The engine.
    """
    engine = Engine(model, arguments(config, device, checkpoints), rows, collate)
    for callback in callbacks:
        engine.add_callback(callback)
    return engine
