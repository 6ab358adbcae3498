"""Output-side singular subspaces of a summed gradient, from its factors.

G = sum_i w_i G_i = L^T R with L (rows, d0) and R (rows, d1). Where there are fewer rows than
the weight has on its shorter side, two thin QR decompositions and the SVD of a small square
core give the singular vectors; otherwise G is formed. Neither decomposes a matrix that is
larger than it must be. All of it in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from geomsafe.gradients.uses import Dense, Use

SVD_SIDE = 64
"""Shorter side up to which a formed gradient is decomposed directly; above, through its smaller Gram matrix."""


@dataclass(frozen=True)
class LeftBasis:
    """The leading singular vectors of one weight's summed gradient, on the output side unless asked otherwise."""

    vectors: Tensor  # (d_out, <= rank) float64, columns orthonormal, fewer where the gradient's rank is lower
    singular_values: Tensor  # (min(shape) or fewer,) float64, falling; what is left out is zero
    energy: float  # the sum of all squared singular values, ||G||_F^2
    axis: int = 0  # the axis of the weight matrix that the vectors live on: 1 for GPT-2's Conv1D and for embeddings


def left_basis(
    uses: Sequence[Use],
    weights: Tensor,
    height: int,
    width: int,
    rank: int,
    *,
    side: int = SVD_SIDE,
    opposite: bool = False,
) -> LeftBasis:
    """Decompose sum_i w_i G_i of one weight.

    Args:
        uses: every use of the weight (of one expert of a fused weight), at least one.
        weights: (examples,) w_i; examples of weight zero are left out.
        height: d0.
        width: d1.
        rank: vectors wanted.
        side: shorter side up to which a gradient that must be formed gets an SVD, see `decompose`.
        opposite: give the singular vectors of the other side, which faces the layer's input.

    Returns:
        The basis on the side that faces the layer's output. A weight that is also a linear layer's (tied
        embeddings) is seen from that layer.
    """
    axis = min(use.output for use in uses) ^ opposite
    if not any(isinstance(use, Dense) for use in uses):
        pairs = [use.chosen(weights) for use in uses if not isinstance(use, Dense)]
        left, right = (torch.cat([pair[place] for pair in pairs]).double() for place in (0, 1))
        if len(left) < min(height, width):
            return replace(_of_factors(*((left, right) if axis == 0 else (right, left)), rank), axis=axis)
        return decompose(left.T @ right, axis, rank, side=side)
    total = torch.stack([use.weighted_sum(weights).double().reshape(height, width) for use in uses]).sum(dim=0)
    return decompose(total, axis, rank, side=side)


def decompose(gradient: Tensor, axis: int, rank: int, *, side: int = SVD_SIDE) -> LeftBasis:
    """Return the decomposition of a gradient matrix (d0, d1) float64, with the singular vectors on side `axis`.

    Args:
        gradient: the matrix.
        axis: 0 or 1.
        rank: vectors wanted; 0 for singular values alone.
        side: shorter side up to which there is an SVD. Above it the eigenvectors of the smaller Gram matrix serve, at
            a third of the time: singular values are then exact to 1e-8 of the largest, below the rounding of a float32
            gradient, and vectors of smaller ones are left out.

    Returns:
        The basis.
    """
    facing = gradient if axis == 0 else gradient.T
    precision = torch.finfo(gradient.dtype).eps
    if rank == 0:
        values = torch.linalg.svdvals(facing) if min(facing.shape) <= side else _values_by_squares(facing)
        vectors = facing.new_zeros((facing.shape[0], 0))
    elif min(facing.shape) <= side:
        vectors, values, _ = torch.linalg.svd(facing, full_matrices=False)
    elif facing.shape[0] <= facing.shape[1]:
        squares, vectors = torch.linalg.eigh(facing @ facing.T)
        precision = precision**0.5  # a squared matrix has lost half of the digits
        values, vectors = squares.clamp(min=0).sqrt().flip(0), vectors.flip(1)
    else:
        squares, inner = torch.linalg.eigh(facing.T @ facing)
        precision = precision**0.5
        values, inner = squares.clamp(min=0).sqrt().flip(0), inner.flip(1)
        wanted = inner[:, : min(rank, int((values > 0).sum()))]
        vectors, _ = torch.linalg.qr(facing @ wanted)
    return replace(_leading(vectors, values, rank, precision * max(facing.shape)), axis=axis)


def _values_by_squares(matrix: Tensor) -> Tensor:
    square = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    values: Tensor = torch.linalg.eigvalsh(square)
    return values.clamp(min=0).sqrt().flip(0)


def _of_factors(left: Tensor, right: Tensor, rank: int) -> LeftBasis:
    if len(left) == 0:
        return LeftBasis(left.new_zeros((left.shape[1], 0)), left.new_zeros(0), 0.0)
    outer, upper = torch.linalg.qr(left.T)
    _, lower = torch.linalg.qr(right.T, mode="r")
    core, values, _ = torch.linalg.svd(upper @ lower.T)
    return _leading(outer @ core, values, rank, torch.finfo(left.dtype).eps * max(left.shape[1], right.shape[1]))


def _leading(vectors: Tensor, values: Tensor, rank: int, floor: float) -> LeftBasis:
    # Values at rounding level belong to no direction: vectors of a null space would be arbitrary.
    least = float(values[0]) * floor if len(values) else 0.0
    kept = min(rank, int((values > least).sum()))
    return LeftBasis(vectors[:, :kept].contiguous(), values, float((values**2).sum()))
