"""What is kept of a set's summed gradient: its output-side space, its singular values and a sketch.

Taken while the backward pass goes on, one weight at a time, so that no gradient of the whole model is held.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from geomsafe.gradients.bases import decompose
from geomsafe.gradients.quantities import Quantity, chosen_weights
from geomsafe.gradients.sketching import sketch_of
from geomsafe.gradients.storage import Piece, Setting
from geomsafe.gradients.uses import Dense


class Facing(NamedTuple):
    """A left space and the axis of the weight that it lives on."""

    vectors: Tensor  # (d_out, <= rank), columns orthonormal, strongest first
    singular_values: Tensor  # (min(shape) or fewer,) falling, of the token-summed gradient; what is left out is zero
    axis: int  # of the weight, or of one expert's matrix: the one that faces the layer's output

    def inside(self, change: Tensor) -> Tensor:
        """Return ||u_j^T D||^2 by column j, float64 on the CPU, for D of the weight's (or expert's) shape."""
        vectors = self.vectors.to(change.device, torch.float64)
        matrix = change.double().flatten(start_dim=1)
        return ((vectors.T @ (matrix if self.axis == 0 else matrix.T)) ** 2).sum(dim=1).cpu()


class Summed(NamedTuple):
    """Of one set: spaces by matrix name (`name[3]` for an expert), sketches by parameter name."""

    spaces: dict[str, Facing]
    sketches: dict[str, Tensor]  # (dim,) float64, token-summed


class SetSum(Quantity):
    """Decompose and sketch the token-summed gradient of some of the examples.

    Args:
        examples: which ones.
        matrices: weights to decompose; others are sketched only.
        rank: vectors wanted.
        dim: coordinates of the sketch; 0 for none.
        seed: of the sketch's maps.
    """

    def __init__(
        self, examples: Sequence[int], matrices: Collection[str], *, rank: int, dim: int = 0, seed: int = 0
    ) -> None:
        self.examples, self.matrices = examples, matrices
        self.rank, self.dim, self.seed = rank, dim, seed

    def begin(self, setting: Setting) -> None:
        """Start with nothing."""
        ones = torch.ones(len(self.examples), dtype=torch.float64)
        self.setting, self.chosen = setting, chosen_weights(setting, self.examples, ones)
        self.waiting: dict[tuple[str, int | None], tuple[Tensor, int]] = {}
        self.found = Summed({}, {})

    def take(self, piece: Piece) -> None:
        """Decompose at once where one pass holds all examples, else add up."""
        weights = self.chosen[piece.at].to(self.setting.device)
        if not bool(weights.any()):
            return
        matrix = piece.matrix_shape()
        for index, uses in piece.by_matrix().items():
            total = torch.stack([use.weighted_sum(weights).reshape(matrix) for use in uses]).sum(dim=0)
            axis = min(use.output for use in uses)
            if (piece.name, index) in self.waiting:
                before, earlier = self.waiting[piece.name, index]
                total, axis = before + total, min(axis, earlier)
            self.waiting[piece.name, index] = (total, axis)
            if self.setting.passes == 1:
                self._finish(piece.name, index)

    def result(self, losses: Tensor, looped: Sequence[str]) -> Summed:
        """Return what was found; a weight that the loss does not reach is absent."""
        for name, index in list(self.waiting):
            self._finish(name, index)
        return self.found

    def _finish(self, name: str, index: int | None) -> None:
        total, axis = self.waiting.pop((name, index))
        if self.dim:
            height, width = total.shape
            sketch = sketch_of(name, [Dense(total[None], index=index)], height, width, self.dim, self.seed)[0].cpu()
            self.found.sketches[name] = self.found.sketches.get(name, 0.0) + sketch
        if name in self.matrices:
            matrix = name if index is None else f"{name}[{index}]"
            basis = decompose(total.double(), axis, self.rank, side=0)
            self.found.spaces[matrix] = Facing(basis.vectors, basis.singular_values, axis)
