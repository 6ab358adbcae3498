"""What a method is: a class that acts on gradients or on weights while a model is trained.

A method says by overriding which of its places it uses; `MethodsCallback` calls it there
and nothing else knows methods by name. A step is an optimizer step, counted from 1.

Methods that add to the loss build on `geomsafe.methods.loss`; what changes the examples is done by the run
(`geomsafe.training`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from geomsafe.config import Settings
from geomsafe.methods.origin import Origin

Swap = Callable[[nn.Module], AbstractContextManager[nn.Module]]


@dataclass(frozen=True)
class Schedule:
    """How long the training is, known when it begins.

    Attributes:
        total_steps: optimizer steps in the whole run.
        steps_per_epoch: optimizer steps in one pass over the data.
        lr: peak learning rate.
    """

    total_steps: int
    steps_per_epoch: int
    lr: float


@dataclass(frozen=True)
class AnchorWanted:
    """Which examples a method asks its run for: prompts with the answers that it is to keep.

    Attributes:
        source: "safety" for theta_0's own refusals of harmful prompts, "benign" for its own answers to benign
            ones, "sham" for its answers in the organism's sham behaviour; else a data set with answers, which
            are taken as they are. None of the first three uses a prompt that the run is scored on.
        examples: how many.
    """

    source: str
    examples: int


class Method:
    """Base of all methods; each hook does nothing until it is overridden.

    Attributes:
        name: the name in `--method NAME`.
        Options: the settings behind `NAME:key=value`, validated by pydantic.
        label: the method's name in the record, unique within a run (`ema`, `ema-2`).
        acts_on_gradient: whether `on_gradient` may change gradients, so that their norm is taken again.
        uses_origin: whether the method needs theta_0, which is then kept once for all methods of a run.
        origin: theta_0, given before `start`.
        anchor: the examples that `anchor_wanted` asks for: `input_ids`, `attention_mask` and `labels` (examples,
            tokens), -100 outside the answer. A run sets it before `start`; anyone else may too.
        copies: of the trained weights, that the method holds at its worst.
        needs_base: whether the method needs theta_base, the model before alignment.
        stands_beside: whether training goes on as without the method, bit for bit: it only offers weight sets. Runs
            that differ in such methods alone can be one run.
        base: its weights by base name; a run sets them before `start`, anyone else gives `base_weights(model)`.
    """

    name: ClassVar[str]
    Options: ClassVar[type[Settings]] = Settings
    acts_on_gradient: ClassVar[bool] = False
    uses_origin: ClassVar[bool] = False
    origin: Origin
    anchor: Mapping[str, Tensor] | None = None
    copies: ClassVar[int] = 1
    needs_base: ClassVar[bool] = False
    base: Mapping[str, Tensor] | None = None

    def __init__(self, options: Settings | None = None) -> None:
        self.options = options if options is not None else self.Options()
        self.label = self.name

    @property
    def stands_beside(self) -> bool:
        """Whether the method leaves training alone."""
        return False

    @property
    def anchor_wanted(self) -> AnchorWanted | None:
        """The examples that the method needs, None where it needs none."""
        return None

    def start(self, model: nn.Module, optimizer: torch.optim.Optimizer | None, schedule: Schedule) -> None:
        """Prepare the state; in a fresh run the model holds theta_0.

        Args:
            model: the model that is trained.
            optimizer: its optimizer, for methods that read optimizer state.
            schedule: the length of the run.
        """

    def meet(self, methods: Sequence[Method]) -> None:
        """Get to know the methods of the run; called once all have started.

        Args:
            methods: the methods in order, this one included.
        """

    def on_gradient(self, model: nn.Module, step: int) -> dict[str, float]:
        """Act on the `.grad` of the whole effective batch, before clipping.

        Args:
            model: the model, its gradients accumulated.
            step: the step that is about to be taken.

        Returns:
            Numbers for the method's entry in steps.jsonl.
        """
        return {}

    def after_step(self, model: nn.Module, step: int) -> dict[str, float]:
        """Act on or beside the weights after the optimizer has moved them.

        Args:
            model: the model at its new weights.
            step: the step that was just taken.

        Returns:
            Numbers for the method's entry in steps.jsonl.
        """
        return {}

    def weight_sets(self) -> dict[str, Swap]:
        """Return the weights this method offers beside the last iterate.

        Returns:
            Per name a function of the model that returns a context manager: the model has
            the weights inside it and its own again, bitwise, afterwards.
        """
        return {}

    def step_of(self, name: str, last: int) -> int:
        """Return the step that a weight set belongs to.

        Args:
            name: a name of `weight_sets`.
            last: the last step of the run.

        Returns:
            `last`, unless the set is of an earlier one.
        """
        return last

    def displacement(self, name: str) -> Iterator[tuple[str, Tensor]] | None:
        """Return a weight set's displacement from theta_0 where the model cannot hold it.

        Args:
            name: a name of `weight_sets`.

        Returns:
            (base parameter name, displacement) pairs, or None: read it off the model
            while the weight set is in.
        """
        return None

    def state_dict(self) -> dict[str, Tensor]:
        """Return what resume needs, as tensors under unique names."""
        return {}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Continue from what `state_dict` returned; called after `start`.

        Args:
            tensors: the saved tensors, on the CPU.
        """

    def describe(self, schedule: Schedule) -> dict[str, Any]:
        """Return the method's entry in run.json.

        Args:
            schedule: the length and the peak learning rate of the run.

        Returns:
            label, name, options, effective_window_steps, effective_lr and weight_set; the last
            three None where they do not apply.
        """
        return {
            "label": self.label,
            "name": self.name,
            "options": self.options.model_dump(mode="json"),
            "effective_window_steps": None,
            "effective_lr": schedule.lr,
            "weight_set": "final",
        }
