"""What can be taken of per-example gradients in one backward pass, and the results.

Each quantity receives every weight once a pass, as a `Piece`: the weight's uses, from which
per-example gradients follow. Quantities are token-summed while they are collected; the
reduction is applied at the end, to the examples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geomsafe.errors import ModelError
from geomsafe.gradients.bases import LeftBasis, decompose, left_basis
from geomsafe.gradients.results import GradientDots, GradientGram, GradientSketch
from geomsafe.gradients.routes import SharedProducts, gram_of
from geomsafe.gradients.sketching import sketch_of
from geomsafe.gradients.storage import FactorFiles, Piece, Setting


class Quantity(ABC):
    """One thing to take in a pass."""

    pairs: bool = False
    """Whether examples of different passes must meet: then every two blocks share a pass."""

    @abstractmethod
    def begin(self, setting: Setting) -> None:
        """Forget an earlier call and get ready for this one."""

    @abstractmethod
    def take(self, piece: Piece) -> None:
        """Receive one weight of one pass; called for every weight and every pass."""

    @abstractmethod
    def result(self, losses: Tensor, looped: Sequence[str]) -> Any:
        """Return what was asked for, given token-summed losses (examples,) and the names that took a loop."""


class Gram(Quantity):
    """Inner products of all pairs of examples: K[i, j] = <G_i, G_j>, or <G_i, P G_j>.

    Args:
        precondition: name -> P >= 0 of the weight's shape, e.g. from `adam_preconditioner`.
        storage: a folder for the factors of sets that do not fit into memory: each example is
            then passed through the model once; without it every two blocks share a pass.
    """

    def __init__(self, precondition: Mapping[str, Tensor] | None = None, storage: Path | str | None = None) -> None:
        self.precondition = precondition
        self.storage = None if storage is None else Path(storage)
        self.pairs = storage is None

    def begin(self, setting: Setting) -> None:
        """Check the metric and start with zeros.

        Raises:
            ModelError: the metric does not fit the weights, or is negative somewhere.
        """
        self.setting, self.shared = setting, SharedProducts()
        self.last: Tensor | None = None
        spills = self.storage is not None and setting.passes > 1
        self.spill = FactorFiles(self.storage) if spills and self.storage is not None else None
        size = (setting.examples, setting.examples)
        self.grams = {name: torch.zeros(size, dtype=torch.float64) for name in setting.shapes}
        self.routes = dict.fromkeys(setting.shapes, "none")
        if self.precondition is not None:
            check_direction(self.precondition, setting.shapes, "preconditioner")
            for name, metric in self.precondition.items():
                if bool((metric < 0).any()):
                    raise ModelError(
                        f"the preconditioner of '{name}' has negative elements: an inner product needs P >= 0"
                    )

    def take(self, piece: Piece) -> None:
        """Fill in the products of the examples of this pass.

        Raises:
            ModelError: the metric lacks a measured weight.
        """
        if self.precondition is not None and piece.name not in self.precondition:
            raise ModelError(f"the preconditioner has no '{piece.name}': give one tensor for each measured weight")
        if not piece.uses:
            return
        if self.spill is not None:
            self.spill.write(piece)
        else:
            self._fill(piece)

    def _fill(self, piece: Piece) -> None:
        if piece.at is not self.last:
            # Another pass: an input of its own may lie where one of the last pass lay.
            self.last, self.shared = piece.at, SharedProducts()
        metric = None if self.precondition is None else self.precondition[piece.name].to(self.setting.device)
        gram, self.routes[piece.name] = gram_of(piece.uses, *piece.matrix(), self.shared, metric)
        self.grams[piece.name][piece.at[:, None], piece.at] = gram.cpu()

    def result(self, losses: Tensor, looped: Sequence[str]) -> GradientGram:
        """Return what was collected, scaled by the reduction."""
        if self.spill is not None:
            for piece in self.spill.read(self.setting):
                self._fill(piece)
        scale = self.setting.scale
        values = {name: gram * torch.outer(scale, scale) for name, gram in self.grams.items()}
        routes = self.routes | dict.fromkeys(looped, "loop")
        return GradientGram(values, *common(self.setting, losses, looped), routes=routes)


class Dots(Quantity):
    """Inner products with one direction: <G_i, D>.

    Args:
        direction: name -> D of the weight's shape; weights it does not name have dot 0 and are left out.
    """

    def __init__(self, direction: Mapping[str, Tensor]) -> None:
        self.direction = direction

    def begin(self, setting: Setting) -> None:
        """Check the direction and start with zeros."""
        check_direction(self.direction, setting.shapes, "direction")
        self.setting = setting
        self.dots = {
            name: torch.zeros(setting.examples, dtype=torch.float64)
            for name in setting.shapes
            if name in self.direction
        }

    def take(self, piece: Piece) -> None:
        """Add the dots of the examples of this pass."""
        if piece.name not in self.dots:
            return
        whole = self.direction[piece.name].to(self.setting.device, self.setting.dtype)
        total = torch.zeros(len(piece.at), dtype=torch.float64)
        for use in piece.uses:
            along = whole if use.index is None else whole[use.index]
            total += use.dots(along).cpu()
        self.dots[piece.name][piece.at] = total

    def result(self, losses: Tensor, looped: Sequence[str]) -> GradientDots:
        """Return what was collected, scaled by the reduction."""
        values = {name: dots * self.setting.scale for name, dots in self.dots.items()}
        return GradientDots(values, *common(self.setting, losses, looped))


class Sketch(Quantity):
    """Sketches whose inner products estimate those of the gradients without bias.

    Args:
        dim: coordinates; the standard deviation of <S(G), S(F)> / (||G|| ||F||) is at most sqrt(8 / dim).
        seed: of the maps; equal seeds give equal maps for equal names and shapes.
    """

    def __init__(self, dim: int = 1024, seed: int = 0) -> None:
        if dim < 1:
            raise ModelError(f"a sketch has dim {dim}: give at least 1")
        self.dim, self.seed = dim, seed

    def begin(self, setting: Setting) -> None:
        """Start with zeros."""
        self.setting = setting
        size = (setting.examples, self.dim)
        self.sketches = {name: torch.zeros(size, dtype=torch.float64) for name in setting.shapes}

    def take(self, piece: Piece) -> None:
        """Sketch the examples of this pass."""
        if piece.uses:
            found = sketch_of(piece.name, piece.uses, *piece.matrix(), self.dim, self.seed)
            self.sketches[piece.name][piece.at] = found.cpu()

    def result(self, losses: Tensor, looped: Sequence[str]) -> GradientSketch:
        """Return what was collected, scaled by the reduction."""
        values = {name: sketch * self.setting.scale[:, None] for name, sketch in self.sketches.items()}
        return GradientSketch(values, *common(self.setting, losses, looped), dim=self.dim, seed=self.seed)


class Sum(Quantity):
    """The gradient summed over examples: sum over chosen i of w_i G_i, by weight.

    Args:
        examples: which ones; default all.
        weights: w_i, one an example chosen; default the reduction's (1 / tokens, or 1).
    """

    def __init__(self, examples: Sequence[int] | None = None, weights: Tensor | None = None) -> None:
        self.examples, self.weights = examples, weights

    def begin(self, setting: Setting) -> None:
        """Start with nothing."""
        self.chosen = chosen_weights(setting, self.examples, self.weights)
        self.setting = setting
        self.sums: dict[str, Tensor] = {}

    def take(self, piece: Piece) -> None:
        """Add the examples of this pass."""
        weights = self.chosen[piece.at]
        for use in piece.uses if bool(weights.any()) else []:
            added = use.weighted_sum(weights.to(self.setting.device))
            if piece.name not in self.sums and use.index is None:
                self.sums[piece.name] = added.reshape(piece.shape)
                continue
            if piece.name not in self.sums:
                self.sums[piece.name] = torch.zeros(piece.shape, dtype=self.setting.dtype, device=self.setting.device)
            whole = self.sums[piece.name]
            part = whole if use.index is None else whole[use.index]
            part += added.reshape(part.shape)

    def result(self, losses: Tensor, looped: Sequence[str]) -> dict[str, Tensor]:
        """Return the sums in the weights' shapes, zero where the loss does not reach."""
        return {
            name: self.sums.get(name, torch.zeros(shape, dtype=self.setting.dtype, device=self.setting.device))
            for name, shape in self.setting.shapes.items()
        }


class Basis(Quantity):
    """Left (output-side) singular subspaces of the summed gradient, one a weight matrix.

    Fused expert weights have one an expert, under `name[3]`. Vectors (norm weights, biases)
    have none.

    Args:
        rank: vectors wanted; fewer where the gradient has lower rank.
        examples: which ones are summed; default all.
        weights: w_i, one an example chosen; default the reduction's.
    """

    def __init__(self, rank: int = 20, examples: Sequence[int] | None = None, weights: Tensor | None = None) -> None:
        self.rank, self.examples, self.weights = rank, examples, weights

    def begin(self, setting: Setting) -> None:
        """Start with nothing."""
        self.chosen = chosen_weights(setting, self.examples, self.weights)
        self.setting = setting
        self.bases: dict[str, LeftBasis] = {}
        self.sums: dict[str, tuple[Tensor, int]] = {}

    def take(self, piece: Piece) -> None:
        """Decompose at once where one pass holds all examples, else add up."""
        weights = self.chosen[piece.at].to(self.setting.device)
        if len(piece.shape) < 2 or not bool(weights.any()):
            return
        for index, uses in piece.by_matrix().items():
            name = piece.name if index is None else f"{piece.name}[{index}]"
            if self.setting.passes == 1:
                self.bases[name] = left_basis(uses, weights, *piece.matrix_shape(), self.rank)
                continue
            parts = [use.weighted_sum(weights).double().reshape(piece.matrix_shape()) for use in uses]
            total = torch.stack(parts).sum(dim=0)
            output = min(use.output for use in uses)
            before, facing = self.sums.get(name, (torch.zeros_like(total), output))
            self.sums[name] = (before + total, min(output, facing))

    def result(self, losses: Tensor, looped: Sequence[str]) -> dict[str, LeftBasis]:
        """Return name -> basis; a weight that the loss does not reach is absent."""
        added = {name: decompose(total, output, self.rank) for name, (total, output) in self.sums.items()}
        return self.bases | added


def common(setting: Setting, losses: Tensor, looped: Sequence[str]) -> tuple[Tensor, Tensor, tuple[str, ...], str]:
    """Return what every result holds: tokens, losses, slow names, reduction."""
    return setting.tokens, losses, tuple(name for name in setting.shapes if name in set(looped)), setting.reduction


def chosen_weights(setting: Setting, examples: Sequence[int] | None, weights: Tensor | None) -> Tensor:
    """Return weights of all examples (examples,) float64, zero for those not chosen.

    Raises:
        ModelError: an example does not exist, or weights and examples differ in number.
    """
    places = torch.arange(setting.examples) if examples is None else torch.as_tensor(list(examples), dtype=torch.int64)
    if len(places) == 0 or int(places.min()) < 0 or int(places.max()) >= setting.examples:
        raise ModelError(
            f"examples {list(places)} are chosen of {setting.examples}: give numbers 0..{setting.examples - 1}"
        )
    values = setting.scale[places] if weights is None else weights.double().cpu()
    if values.shape != places.shape:
        raise ModelError(f"{len(values)} weights are given for {len(places)} examples: give each example one")
    return torch.zeros(setting.examples, dtype=torch.float64).index_add_(0, places, values)


def check_direction(given: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], what: str) -> None:
    """Check names and shapes of a direction.

    Raises:
        ModelError: a name is not measured, or a shape is another.
    """
    for name, tensor in given.items():
        if name not in shapes:
            raise ModelError(f"the {what} names '{name}', which is not among the {len(shapes)} measured weights")
        if tensor.shape != shapes[name]:
            raise ModelError(
                f"the {what} of '{name}' has shape {tuple(tensor.shape)}, the weight {tuple(shapes[name])}"
            )
