"""Exact geometry of per-example gradients at little more than the price of a backward pass.

For a linear layer the gradient of one example is a short sum of outer products of what went in
and the gradient of what came out. Inner products, dots with directions, sums, singular
subspaces and sketches of all examples' gradients follow from these factors, weight by weight,
while the backward pass goes by; the examples x parameters matrix is never held. For products
of token pairs see Goodfellow, "Efficient per-example gradient computations" (arXiv 1510.01799)
and Bu et al., "Differentially private optimization on large model at small cost" (2210.00038).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from geomsafe.errors import ModelError
from geomsafe.gradients.blocking import AUTO, budget_of, meetings, plan_blocks
from geomsafe.gradients.factors import Factors, GradientFactors
from geomsafe.gradients.losses import token_losses
from geomsafe.gradients.memory import saved_bytes
from geomsafe.gradients.passes import KEYS, check_batch, example_gradients, only
from geomsafe.gradients.quantities import Dots, Gram, Quantity, Sketch
from geomsafe.gradients.results import REDUCTIONS, GradientDots, GradientGram, GradientSketch
from geomsafe.gradients.smooth import plain_experts
from geomsafe.gradients.storage import Piece, Setting
from geomsafe.gradients.targets import gradient_targets
from geomsafe.gradients.undisturbed import undisturbed
from geomsafe.gradients.uses import Use

Batch = Mapping[str, Tensor]
"""`input_ids`, `attention_mask` and `labels`, each (examples, tokens)."""

MEMORY = AUTO
"""What one pass may hold, by default: half of what is free on the model's device."""


def gradient_gram(
    model: Any,
    batch: Batch,
    *,
    reduction: str = "mean",
    parameters: str | Collection[str] | None = None,
    precondition: Mapping[str, Tensor] | None = None,
    memory_budget: str | int = MEMORY,
    storage: Path | str | None = None,
    dtype: torch.dtype | None = None,
) -> GradientGram:
    """Inner products of per-example gradients, K[i, j] = <G_i, G_j>, exact and by weight.

    G_i is the gradient of example i's negative log-likelihood, the mean over its own target
    tokens (or their sum), with dropout off. The model is left exactly as found. A custom module
    that flattens its input in another order than example by example cannot be told from one that
    does not: `geomsafe.gradients.checking.check_engine` finds it.

    Args:
        model: a causal LM, or a peft model with LoRA.
        batch: `input_ids`, `attention_mask`, `labels` (examples, tokens); labels not shifted,
            -100 outside the answer; padding on either side.
        reduction: "mean" or "sum" over an example's own target tokens.
        parameters: None for the effective trained weights (LoRA: the base weights that carry
            adapters), "factors" for the trainable tensors as they are (LoRA's A and B), "all" for
            frozen weights too, or a collection of names.
        precondition: P >= 0 by name, for <G_i, P G_j>.
        memory_budget: what one pass may hold, e.g. "2GiB"; default half of the free memory. Larger
            sets go in blocks.
        storage: a folder for the factors of a set that goes in blocks, so that every example
            passes once; without it every two blocks share a pass.
        dtype: precision of products; default float32, float64 for a float64 model.

    Returns:
        Mapping from parameter name to (examples, examples) float64 on the CPU.

    An empty or malformed batch and an example without target token are a DataError; nothing to
    measure, an unknown name or a preconditioner that does not fit a ModelError; a loss that is not
    finite a TrainingError.
    """
    wanted = {"gram": Gram(precondition, storage)}
    found: GradientGram = gradient_pass(
        model, batch, wanted, reduction=reduction, parameters=parameters, memory_budget=memory_budget, dtype=dtype
    )["gram"]
    return found


def gradient_dots(
    model: Any,
    batch: Batch,
    direction: Mapping[str, Tensor],
    *,
    reduction: str = "mean",
    parameters: str | Collection[str] | None = None,
    memory_budget: str | int = MEMORY,
    dtype: torch.dtype | None = None,
) -> GradientDots:
    """Inner products of per-example gradients with one direction, <G_i, D>, by weight.

    Args:
        model: as in `gradient_gram`, and so are `batch`, `reduction`, `parameters`,
            `memory_budget`, `dtype` and what is raised.
        batch: the examples.
        direction: name -> tensor of the weight's shape: an update, a displacement, any other.
        reduction: "mean" or "sum".
        parameters: which weights.
        memory_budget: what one pass may hold.
        dtype: precision of products.

    Returns:
        Mapping from parameter name to (examples,) float64 on the CPU, for the names in `direction`.
    """
    chosen = list(direction) if parameters is None else parameters
    found: GradientDots = gradient_pass(
        model, batch, {"dots": Dots(direction)}, reduction=reduction, parameters=chosen,
        memory_budget=memory_budget, dtype=dtype,
    )["dots"]  # fmt: skip
    return found


def gradient_sketch(
    model: Any,
    batch: Batch,
    dim: int = 1024,
    seed: int = 0,
    *,
    reduction: str = "mean",
    parameters: str | Collection[str] | None = None,
    memory_budget: str | int = MEMORY,
    dtype: torch.dtype | None = None,
) -> GradientSketch:
    """Sketches of per-example gradients whose inner products are unbiased estimates, by weight.

    The standard deviation of <S(G), S(F)> over seeds is at most sqrt(8 / dim) ||G|| ||F||, and
    within twice that in 95 % of seeds (see `geomsafe.gradients.sketching`). Equal seeds give equal
    maps in every call, step and run, so that sketches of different checkpoints compare.

    Args:
        model: as in `gradient_gram`, and so are `batch`, `reduction`, `parameters`,
            `memory_budget`, `dtype` and what is raised.
        batch: the examples.
        dim: coordinates.
        seed: of the maps.
        reduction: "mean" or "sum".
        parameters: which weights.
        memory_budget: what one pass may hold.
        dtype: precision of products.

    Returns:
        Mapping from parameter name to (examples, dim) float64 on the CPU.
    """
    found: GradientSketch = gradient_pass(
        model, batch, {"sketch": Sketch(dim, seed)}, reduction=reduction, parameters=parameters,
        memory_budget=memory_budget, dtype=dtype,
    )["sketch"]  # fmt: skip
    return found


def gradient_factors(
    model: Any,
    batch: Batch,
    *,
    reduction: str = "mean",
    parameters: str | Collection[str] | None = None,
    memory_budget: str | int = MEMORY,
    dtype: torch.dtype | None = None,
) -> GradientFactors:
    """Keep the factors of all per-example gradients: layer inputs and gradients at layer outputs.

    They take positions x (d_in + d_out) a linear layer, and give left bases, sums, Gram matrices
    of any subset of the examples without another pass. For large sets use `gradient_pass`.

    Args:
        model: as in `gradient_gram`, and so are `batch`, `reduction`, `parameters`,
            `memory_budget`, `dtype` and what is raised.
        batch: the examples.
        reduction: "mean" or "sum".
        parameters: which weights.
        memory_budget: what one pass may hold; the factors of all passes are kept beside it.
        dtype: precision of the factors.

    Returns:
        The factors.
    """
    found: GradientFactors = gradient_pass(
        model, batch, {"factors": Factors()}, reduction=reduction, parameters=parameters,
        memory_budget=memory_budget, dtype=dtype,
    )["factors"]  # fmt: skip
    return found


def gradient_pass(
    model: Any,
    batch: Batch,
    quantities: Mapping[str, Quantity],
    *,
    reduction: str = "mean",
    parameters: str | Collection[str] | None = None,
    memory_budget: str | int = MEMORY,
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """Take several quantities of the same per-example gradients in one backward pass.

    Args:
        model: as in `gradient_gram`, and so are `batch`, `reduction`, `parameters`,
            `memory_budget`, `dtype` and what is raised.
        batch: the examples.
        quantities: key -> `Gram`, `Dots`, `Sketch`, `Sum`, `Basis` or `Factors`.
        reduction: "mean" or "sum".
        parameters: which weights.
        memory_budget: what one pass may hold.
        dtype: precision of products.

    Returns:
        Key -> result.

    Raises:
        ModelError: the reduction is unknown, or as in `gradient_gram`.
    """
    if reduction not in REDUCTIONS:
        raise ModelError(f"reduction '{reduction}' is unknown: choose mean (over an example's tokens) or sum")
    budget = budget_of(memory_budget, next(model.parameters()).device)
    tokens = check_batch(batch)
    with gradient_targets(model, parameters) as targets:
        weight = next(iter(targets.values()))
        precision = dtype or (torch.float64 if weight.dtype == torch.float64 else torch.float32)
        shapes = {name: target.shape for name, target in targets.items()}
        together = any(quantity.pairs for quantity in quantities.values())
        measure = partial(_saved, model, batch, targets)
        blocks = plan_blocks(model, batch["labels"], budget, measure, pairs=together)
        setting = Setting(shapes, tokens, reduction, precision, len(blocks), weight.device)
        for quantity in quantities.values():
            quantity.begin(setting)
        losses, looped = _run(model, batch, targets, quantities, blocks, setting)
    return {key: quantity.result(losses, looped) for key, quantity in quantities.items()}


def _saved(model: Any, batch: Batch, targets: Mapping[str, nn.Parameter], row: int) -> int:
    one = {key: batch[key][row : row + 1] for key in KEYS}
    with undisturbed(model), plain_experts(model), only(model, list(targets.values())):
        return saved_bytes(model, partial(token_losses, model, one))


def _run(
    model: Any,
    batch: Batch,
    targets: Mapping[str, nn.Parameter],
    quantities: Mapping[str, Quantity],
    blocks: Sequence[Sequence[int]],
    setting: Setting,
) -> tuple[Tensor, list[str]]:
    losses = torch.zeros(setting.examples, dtype=torch.float64)
    looped: set[str] = set()
    single = [quantity for quantity in quantities.values() if not quantity.pairs]
    meeting = [quantity for quantity in quantities.values() if quantity.pairs]
    rounds: list[tuple[list[Quantity], list[list[int]]]] = []
    if len(blocks) == 1:
        rounds.append(([*quantities.values()], [list(blocks[0])]))
    else:
        rounds += [(single, [list(block) for block in blocks])] if single else []
        rounds += [(meeting, meetings(blocks))] if meeting else []
    for takers, passes in rounds:
        for rows in passes:
            at = torch.tensor(rows)

            def take(name: str, uses: list[Use], takers: list[Quantity] = takers, at: Tensor = at) -> None:
                for quantity in takers:
                    quantity.take(Piece(name, uses, setting.shapes[name], at))

            part = batch if len(rows) == setting.examples else {key: batch[key][rows] for key in batch}
            found, slow = example_gradients(model, part, targets, take, dtype=setting.dtype, rows=rows)
            losses[at] = found
            looped |= slow
    return losses, sorted(looped)
