"""Seeded rank-1 maps of gradients, cheap enough to take in every pass (TensorSRHT).

Coordinate k of the sketch of a weight's gradient G (d0, d1) is

    S_k(G) = e_k sqrt(d0' d1' / dim) u_k^T G v_k,   u_k = row i_k of H0 diag(s0),  v_k = row j_k of H1 diag(s1)

with H orthonormal (a Kronecker product of Hadamard matrices and one cosine transform, so that
applying it costs d log d rather than d dim), s random signs, (i_k, j_k) drawn uniformly and
e_k one more random sign. For one outer product b a^T that is (u_k . b)(v_k . a): nothing of the
size of a weight is formed. <S(G), S(F)> is an unbiased estimate of <G, F>; maps of different
weights are independent, so sketches of several weights may be added. Maps depend on seed,
name, shape and `dim` alone: sketches of different steps and runs compare.

Construction: Ahle et al., "Oblivious sketching of high-degree polynomial kernels", SODA 2020,
section 3 (TensorSRHT); the cosine transform in place of padding to a power of two is ours.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from scipy.fft import dct
from scipy.linalg import hadamard
from torch import Tensor
from torch.nn.functional import pad

from geomsafe.gradients.uses import Dense, Lookup, Outer, Use

WIDEST = 32
"""Size of one factor of the transform, at most."""

ELEMENTS = 1 << 18
"""Elements transformed at a time: 1 MiB in float32."""


class Transform:
    """An orthonormal transform of vectors of one width, with random signs: x -> H diag(s) x."""

    def __init__(self, width: int, generator: torch.Generator) -> None:
        self.width = width
        self.factors = _factors(width)
        self.size = math.prod(self.factors)
        self.signs = _signs(width, generator)

    def apply(self, rows: Tensor) -> Tensor:
        """Return each row transformed: (rows, width) -> (rows, size)."""
        found = rows * self.signs.to(rows)
        if self.size > self.width:
            found = pad(found, (0, self.size - self.width))
        count, behind = len(rows), self.size
        for factor in self.factors:
            behind //= factor
            matrix = _matrix(factor, rows.dtype).to(rows.device)
            if behind == 1:
                found = found.reshape(-1, factor) @ matrix.T
            else:
                found = matrix @ found.reshape(-1, factor, behind)
        return found.reshape(count, self.size)

    def entries(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        """Return elements [output, input] of H diag(s): outputs (dim,), inputs (rows,) -> (rows, dim) float64."""
        result = self.signs.to(inputs.device)[inputs][:, None].double()
        behind = self.size
        for factor in self.factors:
            behind //= factor
            matrix = _matrix(factor, torch.float64).to(inputs.device)
            result = result * matrix.T[(inputs // behind) % factor][:, (outputs // behind) % factor]
        return result


class SketchMap:
    """The map of one weight (one expert of a fused weight): its gradients to (examples, dim)."""

    def __init__(self, height: int, width: int, dim: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.dim, self.height, self.width = dim, height, width
        self.first, self.second = Transform(height, generator), Transform(width, generator)
        cells = self.first.size * self.second.size
        # A weight with no more elements than coordinates is kept whole: its sketch is exact.
        chosen = torch.arange(cells) if cells <= dim else torch.randint(cells, (dim,), generator=generator)
        self.outer, self.inner = chosen // self.second.size, chosen % self.second.size
        self.signs = _signs(len(chosen), generator) * math.sqrt(max(1.0, cells / dim))

    def __call__(self, use: Use) -> Tensor:
        """Return the sketch of every example's gradient through one use: (examples, dim) float64."""
        found = self._dense(use) if isinstance(use, Dense) else self._rows(use)
        found = found.double() * self.signs.to(found.device).double()
        return pad(found, (0, self.dim - found.shape[1]))

    def _rows(self, use: Outer | Lookup) -> Tensor:
        values = use.right if isinstance(use, Outer) else use.grad
        outer, inner = self.outer.to(values.device), self.inner.to(values.device)
        result = values.new_zeros((use.rows.examples, len(outer)))
        # A few rows at a time pass through all steps, so that what is in between stays in the cache.
        widest = max(len(outer), self.second.size, self.first.size if isinstance(use, Outer) else 0)
        step = max(1, ELEMENTS // widest)
        for start in range(0, len(values), step):
            part = slice(start, start + step)
            if isinstance(use, Outer):
                facing = self.first.apply(use.left[part]).index_select(1, outer)
            else:
                facing = self.first.entries(outer, use.ids[part]).to(values)
            product = facing.mul_(self.second.apply(values[part]).index_select(1, inner))
            result.index_add_(0, use.rows.example[part], product)
        return result

    def _dense(self, use: Dense) -> Tensor:
        values = use.values.reshape(-1, self.height, self.width)
        count = len(values)
        turned = self.second.apply(values.reshape(-1, self.width)).view(count, self.height, -1)
        turned = self.first.apply(turned.transpose(1, 2).reshape(-1, self.height)).view(count, -1, self.first.size)
        return turned[:, self.inner.to(turned.device), self.outer.to(turned.device)]


@lru_cache(maxsize=4096)
def sketch_map(name: str, index: int | None, height: int, width: int, dim: int, seed: int) -> SketchMap:
    """Return the map of one weight; the same arguments give the same map on every machine."""
    text = f"{seed}:{name}:{index}:{height}:{width}:{dim}"
    return SketchMap(height, width, dim, int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1)


def sketch_of(name: str, uses: Sequence[Use], height: int, width: int, dim: int, seed: int) -> Tensor:
    """Sketch the per-example gradients of one weight.

    Args:
        name: the weight's name, which chooses the map.
        uses: every use of the weight, at least one.
        height: d0, the first axis of the weight (of one expert in a fused weight).
        width: d1, the elements behind it.
        dim: coordinates.
        seed: of the maps.

    Returns:
        (examples, dim) float64, token-summed.
    """
    parts = [sketch_map(name, use.index, height, width, dim, seed)(use) for use in uses]
    return torch.stack(parts).sum(dim=0) if len(parts) > 1 else parts[0]


def _factors(width: int) -> tuple[int, ...]:
    # Sizes whose product is the width or a little more; all but the first are WIDEST.
    rest, tail = width, tuple[int, ...]()
    while rest > WIDEST:
        rest, tail = -(-rest // WIDEST), (*tail, WIDEST)
    return (rest, *tail)


@lru_cache(maxsize=4 * WIDEST)
def _matrix(size: int, dtype: torch.dtype) -> Tensor:
    # Orthonormal and as flat as can be: Hadamard where the size is a power of two, else the cosine transform.
    if size & (size - 1) == 0:
        return torch.from_numpy(hadamard(size) / math.sqrt(size)).to(dtype)
    return torch.from_numpy(dct(np.eye(size), norm="ortho", axis=0)).to(dtype)


def _signs(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(2, (count,), generator=generator) * 2.0 - 1.0
