"""Taking a subspace out of one gradient, seen as matrices: one for a weight, one for each expert of a fused weight.

A bias or a norm's gain is out x 1: its subspace is the one direction of its safety gradient, which is
removed; only a single number is removed entirely.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def matrices(tensor: Tensor) -> Iterator[tuple[int | None, Tensor]]:
    """Walk through the matrices of a weight or of its gradient.

    Args:
        tensor: any shape; three axes are (experts, rows, columns).

    Yields:
        Expert, None where there are none, and a view (rows, columns); a vector is (out, 1).
    """
    if tensor.dim() == 3:
        yield from enumerate(tensor)
    else:
        yield None, tensor.reshape(tensor.shape[0] if tensor.dim() else 1, -1)


def allowed_rank(rank: int, share: float, matrix: Tensor) -> int:
    """Return how many directions may be removed: at most `share` of the shorter side, and one at least."""
    return min(rank, max(1, int(share * min(matrix.shape))))


def without(matrix: Tensor, vectors: Tensor, axis: int) -> tuple[Tensor, float]:
    """Take a subspace out of one side of a matrix.

    Args:
        matrix: M (rows, columns).
        vectors: U, columns orthonormal.
        axis: the side that U lives on.

    Returns:
        M - U U^T M for axis 0, M - M U U^T for axis 1, and the squared norm that is gone, ||U^T M||^2 or ||M U||^2.
    """
    along = vectors.to(matrix.dtype)
    if axis == 0:
        inside = along.T @ matrix
        left = torch.addmm(matrix, along, inside, alpha=-1)
    else:
        inside = matrix @ along
        left = torch.addmm(matrix, inside, along.T, alpha=-1)
    return left, float(inside.square().sum(dtype=torch.float64))


def without_random(matrix: Tensor, energy: float, axis: int, generator: torch.Generator) -> Tensor:
    """Remove a random subspace that holds a given energy.

    Directions r_1, r_2, ... are drawn uniformly, orthonormal, on the given side; where that side is the longer one,
    inside the matrix's own column space, since others hold nothing. They are removed one after another until
    what is gone would exceed `energy`; of the last one, (1 - c)^2 of its energy stays, so that the sum is exact:
    sum_{i<j} ||r_i^T M||^2 + (2 c - c^2) ||r_j^T M||^2 = energy. It takes more directions than a basis that was
    chosen to hold much: energy is matched, rank is not.

    Args:
        matrix: M (rows, columns).
        energy: squared norm to remove, at most ||M||^2.
        axis: the side that directions are drawn on.
        generator: on the CPU.

    Returns:
        M with its squared norm smaller by `energy`.
    """
    if energy <= 0:
        return matrix
    facing = (matrix if axis == 0 else matrix.T).double()
    frame, core = torch.linalg.qr(facing) if facing.shape[0] > facing.shape[1] else (None, facing)
    drawn = torch.randn(len(core), len(core), generator=generator, dtype=torch.float64).to(core.device)
    directions, upper = torch.linalg.qr(drawn)
    directions = directions * upper.diagonal().sign()  # uniform: QR alone prefers some
    parts = directions.T @ core
    held = parts.square().sum(dim=1)
    gone = held.cumsum(dim=0)
    last = min(int(torch.searchsorted(gone, energy)), len(held) - 1)
    share = torch.zeros_like(held)
    share[:last] = 1
    missing = energy - (float(gone[last - 1]) if last else 0.0)
    share[last] = 1 - (1 - min(1.0, missing / float(held[last]))) ** 0.5 if held[last] > 0 else 0.0
    removed = directions @ (share[:, None] * parts)
    left: Tensor = facing - (removed if frame is None else frame @ removed)
    return (left if axis == 0 else left.T).to(matrix.dtype)
