"""What a run will take: memory, disk and time, from shapes and one measured pass.

What is covered: training and the probes' gradients. What is not: generating answers for refusals and scores, whose
length is not known beforehand; loading; fragmentation of memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geomsafe.config import TrainConfig
from geomsafe.data import EncodedSet
from geomsafe.gradients import gradient_targets, token_losses, undisturbed
from geomsafe.gradients.checking import Finding
from geomsafe.gradients.memory import free_bytes, saved_bytes
from geomsafe.methods import make_method
from geomsafe.models import Loaded, weight_bytes
from geomsafe.probes import probe_steps
from geomsafe.training.engine import schedule_of

GIB = 2**30

# A capture's parts, see docs/numbers.md.
_SETS = 2
_BASIS_RANK = 20
_SKETCH_DIM = 1024


class Cost(NamedTuple):
    """One estimate: what, how much, and how it came about."""

    name: str
    amount: float
    unit: str  # "GiB" or "min"
    detail: str


class Measured(NamedTuple):
    """What was measured on a few rows."""

    seconds: float  # a forward and backward pass of one training batch
    gram_seconds: float  # the engine's pass over the same rows
    tokens: int  # rows x padded length of that batch
    longest: dict[str, Tensor]  # the longest row, as a batch of one


def memory_costs(config: TrainConfig, loaded: Loaded, measured: Measured) -> tuple[list[Cost], list[Finding]]:
    """Estimate the memory of training on its device.

    weights + gradients + Adam's two moments + theta_0 (full fine-tuning) and each method's copies of what is trained +
    what a forward pass over `batch_size` of the longest rows saves.

    Args:
        config: the settings.
        loaded: the model.
        measured: holds the longest row.

    Returns:
        Costs, and a finding on whether they fit into what is free.
    """
    model = loaded.model
    weights = weight_bytes(model)
    trained = sum(weight.numel() * weight.element_size() for weight in model.parameters() if weight.requires_grad)
    # LoRA starts from B = 0: theta_0 is then no copy.
    parts = {
        "gradients": 1,
        "Adam's two moments": 2 if config.optimizer == "adamw" else 0,
        "theta_0": 0 if config.lora else 1,
        "methods": sum(make_method(spec).copies for spec in config.methods),
    }
    states = trained * sum(parts.values())
    with gradient_targets(model), undisturbed(model):
        one = saved_bytes(model, partial(token_losses, model, measured.longest))
    activations = one * config.batch_size
    width = measured.longest["input_ids"].shape[1]
    less = ", less with gradient_checkpointing" if config.gradient_checkpointing else ""
    costs = [
        Cost("memory: weights", weights / GIB, "GiB", f"{config.dtype}, once"),
        Cost("memory: training state", states / GIB, "GiB", ", ".join(part for part, count in parts.items() if count)),
        Cost(
            "memory: activations",
            activations / GIB,
            "GiB",
            f"{config.batch_size} rows of {width} tokens, measured on the longest{less}",
        ),
    ]
    needed, free = weights + states + activations, free_bytes(loaded.device) + weights
    said = f"{needed / GIB:.2f} GiB of {free / GIB:.2f} GiB that are free on {loaded.device}"
    if needed <= 0.9 * free:
        return costs, [Finding("memory", "ok", said)]
    if weights + states > free:
        return costs, [Finding("memory", "failed", f"{said}, activations aside: train with --lora, or a smaller model")]
    return costs, [Finding("memory", "warning", f"{said}: lower --batch-size and raise --accumulation")]


def disk_costs(
    config: TrainConfig, model: Any, shapes: Sequence[torch.Size], rows: int
) -> tuple[list[Cost], list[Finding]]:
    """Estimate what a run writes.

    Args:
        config: the settings.
        model: the model, with its adapters.
        shapes: of the weights that probes measure.
        rows: training examples.

    Returns:
        Costs, and a finding on whether they fit onto the disk of `--out`.
    """
    weights = run_bytes(config, len(config.methods), model)
    captures = len(probe_steps(config.probe_schedule, schedule_of(config, rows).total_steps))
    one = capture_bytes(shapes, _SETS * config.probe_examples)
    costs = [
        Cost("disk: weights", weights / GIB, "GiB", "weight sets, and two checkpoints where any is written"),
        Cost("disk: captures", captures * one / GIB, "GiB", f"{captures} of {one / GIB:.3f} GiB"),
    ]
    place = (config.out or Path("runs")).absolute()
    while not place.exists():
        place = place.parent
    needed, free = weights + captures * one, shutil.disk_usage(place).free
    said = f"{needed / GIB:.2f} GiB of {free / GIB:.2f} GiB that are free at '{place}'"
    if needed <= free:
        return costs, [Finding("disk", "ok", said)]
    return costs, [Finding("disk", "failed", f"{said}: free some space, save fewer weight sets or give another --out")]


def time_costs(config: TrainConfig, encoded: EncodedSet, measured: Measured) -> list[Cost]:
    """Estimate minutes from the measured passes, in proportion to padded tokens.

    Args:
        config: the settings.
        encoded: the training set.
        measured: one plain pass and one of the engine.

    Returns:
        Training and probes.
    """
    schedule = schedule_of(config, len(encoded))
    lengths = [len(row.input_ids) for row in encoded.rows]
    size = config.batch_size
    padded = [max(lengths[start : start + size]) for start in range(0, len(lengths), size)]
    seen = schedule.total_steps * config.effective_batch * sum(padded) / len(padded)
    captures = len(probe_steps(config.probe_schedule, schedule.total_steps))
    probed = captures * _SETS * config.probe_examples * sum(lengths) / len(lengths)
    ratio = measured.gram_seconds / measured.seconds
    return [
        Cost(
            "time: training",
            seen * measured.seconds / measured.tokens / 60,
            "min",
            f"{schedule.total_steps} steps at {measured.tokens / measured.seconds:,.0f} tokens/s, "
            "forward and backward alone",
        ),
        Cost(
            "time: probes",
            probed * measured.gram_seconds / measured.tokens / 60,
            "min",
            f"{captures} captures of {_SETS} x {config.probe_examples} examples; engine {ratio:.1f} x a plain pass",
        ),
    ]


def run_bytes(config: TrainConfig, methods: int, model: Any) -> int:
    """Return the bytes of the weights and checkpoints that a run keeps at one time.

    Args:
        config: the settings.
        methods: how many methods keep weights of their own.
        model: the model.

    Returns:
        Bytes.
    """
    sets = 1 + methods + len(config.save_weights_at) + (config.curve_points or 0)
    # A checkpoint holds weights, two moments and the methods' averages; for a moment there are two of it.
    checkpoints = 2 * (3 + methods) if config.save_every else 0
    return weight_bytes(model) * (sets + checkpoints)


def capture_bytes(shapes: Sequence[torch.Size], examples: int) -> int:
    """Return the bytes of one capture: Gram matrices plain and preconditioned, bases and sketches of two sets."""
    grams = len(shapes) * 2 * examples**2 * 8
    bases = sum(_SETS * _BASIS_RANK * shape[0] * 4 for shape in shapes if len(shape) > 1)
    sketches = len(shapes) * _SETS * _SKETCH_DIM * 4
    return grams + bases + sketches
