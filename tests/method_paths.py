"""One short fine-tune in a plain `transformers.Trainer`, with the weights after every step written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tiny import VOCABULARY, tiny_model
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from geomsafe.methods import Method, MethodsCallback, make_methods

Weights = dict[str, Tensor]


@dataclass
class Fit:
    """What came of it: path[t] holds the effective weights after step t, path[0] is theta_0."""

    model: Any
    methods: dict[str, Method]
    path: list[Weights]
    log: list[dict[str, Any]]
    described: list[dict[str, Any]]

    def placed(self, name: str) -> Weights:
        """Read a weight set off the model."""
        owner = next(method for method in self.methods.values() if name in method.weight_sets())
        with owner.weight_sets()[name](self.model):
            return effective(self.model)


def effective(model: Any) -> Weights:
    """Weights as the forward pass sees them, by definition: W, or W + (alpha / r) B A."""
    lora = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    found = {}
    for name, weight in model.named_parameters():
        owner = name.removesuffix(".base_layer.weight")
        if owner in lora:
            layer = lora[owner]
            product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            product = product.T if layer.fan_in_fan_out else product
            found[owner.removeprefix("base_model.model.") + ".weight"] = (
                weight + layer.lora_alpha["default"] / layer.r["default"] * product
            )
        elif weight.requires_grad and "lora_" not in name:
            found[name.removeprefix("base_model.model.")] = weight
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def rows(count: int, seed: int = 0) -> list[dict[str, Tensor]]:
    """Random examples of equal length, so that the default collator stacks them."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY, (count, 12), generator=generator)
    return [{"input_ids": row, "labels": row} for row in ids]


def start_model(arch: str = "llama", lora: bool = False, dtype: torch.dtype = torch.float64) -> Any:
    """The same start every time, adapters included; tests about LoRA have the other weights frozen."""
    model = tiny_model(arch, dtype=dtype)
    if lora:
        torch.manual_seed(7)
        settings = LoraConfig(r=2, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, settings, autocast_adapter_dtype=False).to(dtype)
    return model


class Follow(TrainerCallback):
    """Write the weights down after every step, once the methods have acted."""

    def __init__(self) -> None:
        self.path: list[Weights] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.global_step:
            self.path.append(effective(kwargs["model"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.path.append(effective(kwargs["model"]))


def fit(
    folder: Path,
    specs: Sequence[str | Method],
    model: Any = None,
    resume: str | None = None,
    kind: Any = Trainer,
    data: Any = None,
    **settings: Any,
) -> Fit:
    """Train for ten steps of two micro-batches, clipped as by default."""
    chosen: dict[str, Any] = {
        "learning_rate": 3e-3,
        "max_steps": 10,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "seed": 1,
        "lr_scheduler_type": "constant",
    }
    chosen |= settings
    args = TrainingArguments(
        str(folder), report_to=[], use_cpu=True, disable_tqdm=True, logging_strategy="no", **chosen
    )
    log: list[dict[str, Any]] = []
    built = [method for method in specs if isinstance(method, Method)]
    built = built or make_methods([spec for spec in specs if isinstance(spec, str)])
    callback = MethodsCallback(built, log=lambda row: log.append(dict(row)))
    follow = Follow()
    trained = start_model() if model is None else model
    trainer = kind(trained, args, train_dataset=data or rows(16), callbacks=[callback, follow])
    trainer.train(resume_from_checkpoint=resume)
    methods = {method.label: method for method in callback.methods}
    return Fit(trainer.model, methods, follow.path, log, callback.describe())


def difference(first: Weights, second: Weights) -> float:
    """Largest difference of any element; names must agree."""
    if first.keys() != second.keys():
        raise KeyError(sorted(first.keys() ^ second.keys()))
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def bits(model: nn.Module) -> Weights:
    """A copy of the whole state."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
