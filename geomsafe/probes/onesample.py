"""How much of a batch's left space one example gives, beside what shared text alone gives.

    phi_k(a, b) = ||U_a^T U_b||_F^2 / min(rank U_a, rank U_b),   U the first k left singular vectors

Two random spaces have phi = max(rank) / d_out. A single is never in the batch it is compared with: the safety
examples are dealt into two halves by cluster, and each single meets the half that it is not in. The same refusal text
behind a benign prompt meets the very same half (the null: what is due to text). The two halves meet each other (the
ceiling: what sampling leaves to see), and so do half of the null and the other half of the safety set. All batches
are of N/2 examples, so that all four are compared at one size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from geomsafe.gradients.bases import left_basis
from geomsafe.gradients.quantities import Quantity
from geomsafe.gradients.storage import Piece, Setting
from geomsafe.gradients.uses import Use

MOST = 20
"""Left singular vectors of each space, at most; overlaps are given for k = 1 ... MOST."""


@dataclass(frozen=True)
class Overlap:
    """Overlaps of one weight, all in [0, 1] and float32; ranks are k = 1 ... `MOST`; random spaces: k / d_out."""

    single: Tensor  # (singles, ranks) one safety example and the half that it is not in
    same_text: Tensor | None  # (singles, ranks) the same refusal behind a benign prompt, and the same half
    half: Tensor  # (ranks,) two disjoint halves of the safety set
    half_same_text: Tensor | None  # (ranks,) half of the null and the other half of the safety set


def halves_of(clusters: Sequence[Hashable]) -> list[int]:
    """Deal examples into two halves, neighbours together and no cluster in both.

    Args:
        clusters: (examples,) the cluster of each.

    Returns:
        (examples,) 0 or 1, as equal in number as whole clusters allow; all 0 where there is one cluster only.
    """
    sizes = Counter(clusters)
    first: set[Hashable] = set()
    taken = 0
    for cluster, size in sizes.items():
        if first and taken + size / 2 > len(clusters) / 2:
            break
        first.add(cluster)
        taken += size
    return [int(cluster not in first) for cluster in clusters]


def evenly(count: int, most: int) -> list[int]:
    """Return at most so many of `count` places, evenly spread."""
    return sorted({place * count // min(most, count) for place in range(min(most, count))})


class OneSample(Quantity):
    """Overlaps of singles with the batch, taken while the backward pass goes on.

    Args:
        safety: places of the safety examples in the batch.
        halves: (safety examples,) 0 or 1, none empty.
        same_text: places of the null's examples, one a safety example in their order; fewer are left out.
        singles: which of the safety examples are taken one by one.
        matrices: weights to measure; fused expert weights are left out.
    """

    def __init__(
        self,
        safety: Sequence[int],
        halves: Sequence[int],
        same_text: Sequence[int],
        singles: Sequence[int],
        matrices: Collection[str],
    ) -> None:
        self.safety, self.halves, self.same_text = safety, halves, same_text
        self.singles, self.matrices = singles, matrices

    def begin(self, setting: Setting) -> None:
        """Start with nothing."""
        self.setting = setting
        self.found: dict[str, Overlap] = {}

    def take(self, piece: Piece) -> None:
        """Measure one weight; needs all examples in one pass."""
        if self.setting.passes > 1 or len(piece.shape) != 2 or piece.name not in self.matrices or not piece.uses:
            return
        space = _Spaces(piece.uses, piece.shape, self.setting)
        safety, side = torch.tensor(self.safety), torch.tensor(self.halves)
        halves = [space.of(safety[side == which]) for which in (0, 1)]
        other = [halves[1 - which] for which in self.halves]
        single = [overlap(space.of(safety[one : one + 1]), other[one]) for one in self.singles]
        texts, half_text, null = [], None, torch.tensor(self.same_text)
        if len(null) == len(safety):
            texts = [overlap(space.of(null[one : one + 1]), other[one]) for one in self.singles]
            half_text = overlap(space.of(null[side == 0]), halves[1])
        self.found[piece.name] = Overlap(
            torch.stack(single), torch.stack(texts) if texts else None, overlap(*halves), half_text
        )

    def result(self, losses: Tensor, looped: Sequence[str]) -> dict[str, Overlap]:
        """Return name -> overlaps; empty where the examples took several passes."""
        return self.found


class _Spaces:
    def __init__(self, uses: Sequence[Use], shape: torch.Size, setting: Setting) -> None:
        self.uses, self.shape, self.setting = uses, shape, setting

    def of(self, places: Tensor) -> Tensor:
        """Return the left vectors of the examples' token-summed gradient, (d_out, <= largest rank)."""
        weights = torch.zeros(self.setting.examples, dtype=torch.float64)
        weights[places] = 1.0
        height, width = self.shape
        return left_basis(self.uses, weights.to(self.setting.device), height, width, MOST, side=0).vectors


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """Compute phi_k between two left spaces, k = 1 ... `MOST`.

    Args:
        first: (d_out, columns) orthonormal, strongest first; a space with fewer than k columns is taken whole.
        second: the same of another gradient.

    Returns:
        (ranks,) float32 on the CPU; 0 where a space has no columns.
    """
    squares = torch.zeros((MOST, MOST), dtype=torch.float64)
    squares[: first.shape[1], : second.shape[1]] = ((first.T @ second) ** 2).cpu()
    smaller = torch.arange(1, MOST + 1).clamp(max=min(first.shape[1], second.shape[1])).clamp(min=1)
    return (squares.cumsum(0).cumsum(1).diagonal() / smaller).float()


def as_tensors(found: dict[str, Overlap]) -> dict[str, Tensor]:
    """Return overlaps under the names of the capture file."""
    tensors: dict[str, Any] = {}
    for name, one in found.items():
        tensors[f"single_phi/{name}"] = one.single
        tensors[f"half_phi/{name}"] = one.half
        if one.same_text is not None and one.half_same_text is not None:
            tensors[f"single_phi_same_text/{name}"] = one.same_text
            tensors[f"half_phi_same_text/{name}"] = one.half_same_text
    return tensors
