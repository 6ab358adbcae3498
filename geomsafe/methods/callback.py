"""Where methods and probes meet a training loop: one transformers callback.

It drops into any `transformers.Trainer`, TRL's `SFTTrainer` included:

    Trainer(..., callbacks=[MethodsCallback(make_methods(["ema:eta=0.25"]))])

Order within a step, as transformers 5.23 runs it: backward over all micro-batches ->
`on_pre_optimizer_step`: gradient norm, gradient methods, norm again, clipping ->
optimizer -> `on_optimizer_step`: weight methods, distance, at the learning rate of this
step -> scheduler, zero_grad -> `on_step_end`: the step's row, then probes.

Trainer clips *before* `on_pre_optimizer_step`. The callback therefore takes
`args.max_grad_norm` over when training begins, sets it to 0 and clips itself, after the
methods, by the same torch function: without methods the weights are the same bits.

What is not covered: more than one process. DDP, FSDP and DeepSpeed are refused by name.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from geomsafe.errors import TrainingError
from geomsafe.methods.base import Method, Schedule
from geomsafe.methods.finite import NotFiniteError, first_bad_gradient
from geomsafe.methods.origin import Origin

STATE_FILE = "geomsafe-methods.safetensors"
_ORIGIN = "theta_0"


class ProbesLike(Protocol):
    """What the callback asks of `geomsafe.probes.Probes`."""

    def steps(self, total: int) -> set[int]:
        """Return the steps to measure at, of `total`."""

    def remember(self) -> None:
        """Keep the weights as they are: the next measurement is of one step later."""

    def measure(self, step: int, optimizer: torch.optim.Optimizer | None = None) -> Path:
        """Measure the model as it is, and what the optimizer's state says, and leave both so."""


class AnchorLike(Protocol):
    """What the callback asks of `geomsafe.models.Anchor`."""

    def distance(self, model: nn.Module) -> tuple[float, dict[str, float]]:
        """Return ||theta - theta_0||_2, total and per parameter."""

    def norm(self) -> float:
        """Return ||theta_0||_2 over all trained weights."""


class MethodsCallback(TrainerCallback):
    """Hold methods and probes, in order, and call them at their places.

    Attributes:
        methods: the methods, in the order in which they act.
        schedule: the length of the run, known once training has begun.
        state_folder: the checkpoint to read the methods' state from on resume; by default
            `<output_dir>/checkpoint-<step>`, where Trainer put it.
        log: receives one row a step.
    """

    def __init__(
        self,
        methods: Sequence[Method],
        *,
        probes: ProbesLike | None = None,
        anchor: AnchorLike | None = None,
        log: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Prepare the callback.

        Args:
            methods: what `make_methods` returned.
            probes: measured at step 0, on their schedule and at the end.
            anchor: theta_0, for the distance in each row.
            log: receives one row a step.
        """
        self.methods = list(methods)
        self.schedule: Schedule | None = None
        self.state_folder: Path | None = None
        self._probes = probes
        self._probe_steps: set[int] = set()
        self._anchor = anchor
        self._anchor_norm = math.nan
        self._origin: Origin | None = None
        self.log = log
        self._clip = 0.0
        self._row: dict[str, Any] = {}
        self._logs: dict[str, dict[str, float]] = {}
        self._since = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take over clipping, start the methods (from their saved state on resume), measure step 0."""
        refuse_distributed(args)
        if args.max_grad_norm:
            self._clip, args.max_grad_norm = args.max_grad_norm, 0.0
        batches = len(kwargs["train_dataloader"]) if hasattr(kwargs["train_dataloader"], "__len__") else state.max_steps
        self.schedule = Schedule(
            total_steps=state.max_steps,
            steps_per_epoch=max(1, math.ceil(batches / args.gradient_accumulation_steps)),
            lr=args.learning_rate,
        )
        self.begin(kwargs["model"], kwargs["optimizer"], state.global_step, Path(str(args.output_dir)))
        self._since = time.perf_counter()

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer | None, step: int, folder: Path) -> None:
        """Start the methods at a step and measure the probes of step 0.

        Args:
            model: the model at the weights of `step`.
            optimizer: its optimizer.
            step: steps already taken; above 0 the methods' state is read back.
            folder: where Trainer keeps its checkpoints.

        Raises:
            TrainingError: training was not announced, or the methods' state is missing.
        """
        if self.schedule is None:
            raise TrainingError("the length of the run is not known: begin() is called by on_train_begin()")
        saved = _saved_states(self.state_folder or folder / f"checkpoint-{step}") if step else None
        if any(method.uses_origin for method in self.methods):
            self._origin = Origin(model)
            if saved is not None:
                # Before the methods start: the model has moved on, and they look at theta_0.
                self._origin.load_state_dict(_under(saved, _ORIGIN))
        for method in self.methods:
            if self._origin is not None:
                method.origin = self._origin
            method.start(model, optimizer, self.schedule)
        for method in self.methods:
            method.meet(self.methods)
        if self._anchor is not None:
            self._anchor_norm = self._anchor.norm()
        if saved is not None:
            for method in self.methods:
                method.load_state_dict(_under(saved, method.label))
        self._probe_steps = self._probes.steps(self.schedule.total_steps) if self._probes else set()
        if self._probes and step == 0 and 0 in self._probe_steps:
            self._probes.measure(0)

    def describe(self) -> list[dict[str, Any]]:
        """Return the methods' entries for run.json; they have been started.

        Returns:
            One entry a method, in order.

        Raises:
            TrainingError: training has not begun.
        """
        if self.schedule is None:
            raise TrainingError("the methods are described once training has begun: the length of the run decides")
        return [method.describe(self.schedule) for method in self.methods]

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the gradient, let the methods act on it, measure again and clip; probes keep the weights.

        Raises:
            NotFiniteError: the gradient is not finite (mixed-precision float16 is left to its scaler).
        """  # noqa: DOC502
        model, step = kwargs["model"], state.global_step + 1
        before = _gradient_norm(model)
        self._require_finite(args, model, before, step)
        self._logs = {method.label: method.on_gradient(model, step) for method in self.methods}
        after = _gradient_norm(model) if any(method.acts_on_gradient for method in self.methods) else before
        self._require_finite(args, model, after, step)
        kept = 1.0
        if self._clip > 0:
            torch.nn.utils.clip_grads_with_norm_(model.parameters(), self._clip, after)
            kept = min(1.0, self._clip / (float(after) + 1e-6))
        self._row = {
            "grad_norm": float(before),
            "grad_norm_methods": float(after),
            "grad_norm_clipped": float(after) * kept,
        }
        if self._probes and step in self._probe_steps:
            self._probes.remember()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let the methods act on the weights and measure the distance from theta_0."""
        model, step = kwargs["model"], state.global_step + 1
        for method in self.methods:
            self._logs[method.label] = self._logs.get(method.label, {}) | method.after_step(model, step)
        distance = self._anchor.distance(model)[0] if self._anchor is not None else None
        self._row |= {
            "step": step,
            "lr": kwargs["optimizer"].param_groups[0]["lr"],
            "distance": distance,
            "relative_distance": None if distance is None else distance / self._anchor_norm,
        }

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Hand over the step's row and measure the probes where they are due."""
        now = time.perf_counter()
        self._row |= {"seconds": now - self._since, "methods": {name: log for name, log in self._logs.items() if log}}
        if self.log is not None:
            self.log(self._row)
        if self._probes and state.global_step in self._probe_steps:
            self._probes.measure(state.global_step, kwargs["optimizer"])
        self._since = time.perf_counter()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the methods' state into the checkpoint that Trainer has just written."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        tensors = {
            f"{label}/{name}": tensor.contiguous()
            for label, state in self._states().items()
            for name, tensor in state.items()
        }
        save_file(tensors, folder / STATE_FILE)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give `args.max_grad_norm` back."""
        args.max_grad_norm = self._clip

    def _states(self) -> dict[str, dict[str, Tensor]]:
        origin = {_ORIGIN: self._origin.state_dict()} if self._origin is not None else {}
        return origin | {method.label: method.state_dict() for method in self.methods}

    def _require_finite(self, args: TrainingArguments, model: nn.Module, norm: Tensor, step: int) -> None:
        if not torch.isfinite(norm) and not args.fp16:
            raise NotFiniteError("the gradient", step, first_bad_gradient(model))


def _saved_states(folder: Path) -> dict[str, Tensor]:
    path = folder / STATE_FILE
    if not path.is_file():
        raise TrainingError(f"the methods' state '{path}' is missing: resume from a checkpoint written with them")
    # Copies: the file's own buffer begins anywhere, and a float32 dot product over memory that is aligned
    # otherwise adds in another order, so that a resumed run would not log the same digits.
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def _under(tensors: dict[str, Tensor], label: str) -> dict[str, Tensor]:
    """Return the tensors that one method has saved, by its own names."""
    prefix = f"{label}/"
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def refuse_distributed(args: TrainingArguments) -> None:
    """Stop where more than one process or device would share a model.

    Args:
        args: the Trainer's arguments.

    Raises:
        TrainingError: FSDP, DeepSpeed, DDP or DataParallel is on; named.
    """
    for name, active in (
        ("DeepSpeed", bool(args.deepspeed)),
        ("FSDP", bool(args.fsdp)),
        ("DDP", args.world_size > 1),
        ("DataParallel", args.n_gpu > 1),
    ):
        if active:
            raise TrainingError(
                f"{name} is not supported yet: start one process on one device (CUDA_VISIBLE_DEVICES=0)"
            )


def _gradient_norm(model: nn.Module) -> Tensor:
    """Return the global L2 norm, as `torch.nn.utils.clip_grad_norm_` takes it."""
    return torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
