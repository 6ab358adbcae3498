"""Inner products of stacked tensors in float64, in slices that keep memory small."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SLICE_ELEMENTS = 1 << 22
"""Elements upcast to float64 at a time: 32 MiB."""


def row_dots(rows: Tensor, direction: Tensor) -> Tensor:
    """Inner products of each row with one direction.

    Args:
        rows: (rows, ...) gradients, one a row.
        direction: (...) of a row's shape, on any device.

    Returns:
        (rows,) float64 on the CPU.
    """
    flat, along = rows.flatten(start_dim=1), direction.flatten()
    dots = torch.zeros(len(rows), dtype=torch.float64)
    for start, stop in _slices(flat.shape[1], len(rows)):
        part = _double(flat[:, start:stop])
        dots += (part @ along[start:stop].to(part)).cpu()
    return dots


def _slices(size: int, rows: int) -> Iterator[tuple[int, int]]:
    width = max(1, SLICE_ELEMENTS // rows)
    for start in range(0, size, width):
        yield start, min(start + width, size)


def _double(part: Tensor) -> Tensor:
    # Apple's accelerator has no float64.
    return part.cpu().double() if part.device.type == "mps" else part.double()
