"""The factors of all per-example gradients, kept: everything else follows without another pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from geomsafe.errors import ModelError
from geomsafe.gradients.bases import LeftBasis, left_basis
from geomsafe.gradients.quantities import Dots, Gram, Quantity, Sum, chosen_weights
from geomsafe.gradients.results import GradientDots, GradientGram
from geomsafe.gradients.storage import Piece, Setting
from geomsafe.gradients.uses import Use


class Factors(Quantity):
    """The uses themselves, kept: from them any of the other quantities follows without another pass."""

    def begin(self, setting: Setting) -> None:
        """Start with nothing."""
        self.setting = setting
        self.uses: dict[str, list[Use]] = {name: [] for name in setting.shapes}

    def take(self, piece: Piece) -> None:
        """Keep the uses, under the examples' places in the whole batch."""
        self.uses[piece.name] += [use.placed(piece.at, self.setting.examples) for use in piece.uses]

    def result(self, losses: Tensor, looped: Sequence[str]) -> GradientFactors:
        """Return the factors."""
        return GradientFactors(self.setting, self.uses, losses, tuple(looped))


class GradientFactors:
    """Per-example gradients of every measured weight, as factors; see `gradient_factors`."""

    def __init__(
        self, setting: Setting, uses: Mapping[str, list[Use]], losses: Tensor, looped: tuple[str, ...]
    ) -> None:
        self._setting, self._uses, self.losses, self.slow = setting, uses, losses, looped
        self.tokens = setting.tokens

    @property
    def names(self) -> list[str]:
        """The measured weights, in the model's order."""
        return list(self._uses)

    def left_basis(
        self, name: str, rank: int = 20, examples: Sequence[int] | None = None, index: int | None = None
    ) -> Tensor:
        """Output-side basis of the summed gradient of one weight matrix.

        The leading left singular vectors of G = sum over chosen examples of G_i (each scaled by the
        reduction), G written with the side that faces the layer's output first. No matrix of the
        weight's size is decomposed where the examples have fewer rows than that.

        Args:
            name: the weight.
            rank: vectors wanted.
            examples: which ones are summed; default all.
            index: which expert of a fused weight (experts, rows, columns).

        Returns:
            (d_out, <= rank) float64, columns orthonormal; fewer columns where G has lower rank.

        A weight that is not measured or is a vector, and a fused one without `index`, are a ModelError.
        """
        return self.decomposition(name, rank, examples, index).vectors

    def singular_values(self, name: str, examples: Sequence[int] | None = None, index: int | None = None) -> Tensor:
        """Return singular values of the summed gradient, falling, float64; zeros beyond its rank are left out."""
        return self.decomposition(name, 1, examples, index).singular_values

    def decomposition(
        self,
        name: str,
        rank: int = 20,
        examples: Sequence[int] | None = None,
        index: int | None = None,
        *,
        opposite: bool = False,
    ) -> LeftBasis:
        """Return basis, singular values and energy of the summed gradient.

        Args:
            name: the weight; it and the next three are as in `left_basis`.
            rank: vectors wanted.
            examples: which ones are summed.
            index: which expert.
            opposite: take the singular vectors that face the layer's input instead.

        Returns:
            The decomposition.

        Raises:
            ModelError: as in `left_basis`.
        """
        piece = self._piece(name)
        if len(piece.shape) < 2:
            raise ModelError(f"'{name}' is a vector {tuple(piece.shape)}: only weight matrices have singular subspaces")
        fused = len(piece.shape) == 3
        if fused != (index is not None):
            word = "name an expert with index=" if fused else "leave index out"
            raise ModelError(f"'{name}' has shape {tuple(piece.shape)} and index is {index}: {word}")
        weights = chosen_weights(self._setting, examples, None).to(self._setting.device)
        uses = piece.by_matrix().get(index, [])
        height, width = piece.matrix_shape() if fused else (piece.shape[0], piece.shape[1:].numel())
        if not uses:
            nothing = torch.zeros((height, 0), dtype=torch.float64)
            return LeftBasis(nothing, torch.zeros(0, dtype=torch.float64), 0.0)
        return left_basis(uses, weights, height, width, rank, opposite=opposite)

    def summed(self, name: str, examples: Sequence[int] | None = None) -> Tensor:
        """Return the summed gradient of one weight, in its shape, each example scaled by the reduction."""
        total = Sum(examples)
        total.begin(replace(self._setting, shapes={name: self._piece(name).shape}))
        total.take(self._piece(name))
        return total.result(self.losses, self.slow)[name]

    def gram(self) -> GradientGram:
        """Return inner products of all pairs of examples, as `gradient_gram` gives them."""
        found: GradientGram = self.quantity(Gram())
        return found

    def dots(self, direction: Mapping[str, Tensor]) -> GradientDots:
        """Return <G_i, D>, as `gradient_dots` gives them."""
        found: GradientDots = self.quantity(Dots(direction))
        return found

    def quantity(self, wanted: Quantity) -> Any:
        """Return any quantity, taken of the factors that are at hand."""
        wanted.begin(self._setting)
        for name in self._uses:
            wanted.take(self._piece(name))
        return wanted.result(self.losses, self.slow)

    def _piece(self, name: str) -> Piece:
        if name not in self._uses:
            raise ModelError(f"'{name}' is not among the {len(self._uses)} measured weights, e.g. '{[*self._uses][0]}'")
        return Piece(name, self._uses[name], self._setting.shapes[name], torch.arange(self._setting.examples))
