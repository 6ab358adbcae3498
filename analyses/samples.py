"""Which rows of a Gram matrix are one set of examples, and which of them are independent.

The Gram holds token-summed example gradients S_i. Two conventions follow by scaling:

    token-mean    mu = sum_i S_i / sum_i n_i              what a trainer with token-mean loss descends
    example-mean  mu = (1 / N) sum_i S_i / n_i            every example counts alike

Examples of one cluster (phrasings of one action, near-duplicates) are not independent. They
are pooled into one unit, so that a U-statistic takes pairs from different clusters only and
a jackknife leaves out whole clusters. Without clusters every example is a unit.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomsafe.errors import RecordError

Convention = Literal["token-mean", "example-mean"]


class Sample(NamedTuple):
    """One set of examples within a Gram matrix.

    `rows` (examples,) are its indices on the Gram's axes, `tokens` (examples,) the target
    tokens of each example, `clusters` what each belongs to; None = all independent.
    """

    rows: NDArray[np.int64]
    tokens: NDArray[np.float64]
    clusters: Sequence[Hashable] | None = None


class Units(NamedTuple):
    """Independent units of a set: `order` (examples,) rows sorted by unit, `starts` (units,) where each begins.

    `tokens` (examples,) and `scale` (examples,), by which token-summed gradients are
    multiplied, follow `order`; `weights` (units,) are what sums are divided by.
    """

    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    tokens: NDArray[np.float64]
    scale: NDArray[np.float64]
    weights: NDArray[np.float64]


def units_of(sample: Sample, convention: Convention = "token-mean") -> Units:
    """Group a set's examples into independent units.

    Args:
        sample: the set; examples without target tokens are left out.
        convention: how examples are weighed.

    Returns:
        The units, in order of first appearance.

    Raises:
        RecordError: rows, tokens and clusters differ in number.
    """
    counts = {len(sample.rows), len(sample.tokens)} | ({len(sample.clusters)} if sample.clusters is not None else set())
    if len(counts) != 1:
        raise RecordError(
            f"a set has {len(sample.rows)} Gram rows, {len(sample.tokens)} token counts and "
            f"{'no' if sample.clusters is None else len(sample.clusters)} clusters: the capture is broken"
        )
    used = np.flatnonzero(np.asarray(sample.tokens) > 0)
    labels: dict[Hashable, int] = {}
    unit = np.array(
        [
            labels.setdefault(index if sample.clusters is None else sample.clusters[index], len(labels))
            for index in map(int, used)
        ],
        dtype=np.int64,
    )
    by_unit = np.argsort(unit, kind="stable")
    order = used[by_unit]
    tokens = np.asarray(sample.tokens, dtype=np.float64)[order]
    starts = np.flatnonzero(np.diff(unit[by_unit], prepend=-1)).astype(np.int64)
    scale = np.ones_like(tokens) if convention == "token-mean" else 1 / tokens
    parts = tokens if convention == "token-mean" else np.ones_like(tokens)
    return Units(
        np.asarray(sample.rows, dtype=np.int64)[order],
        starts,
        tokens,
        scale,
        np.add.reduceat(parts, starts) if len(starts) else parts,
    )


def products(gram: NDArray[np.float64], first: Units, second: Units) -> NDArray[np.float64]:
    """Pool a Gram to inner products of units.

    Args:
        gram: (..., examples, examples) token-summed.
        first: units of the rows.
        second: units of the columns.

    Returns:
        (..., units of first, units of second).
    """
    part = gram[..., first.order[:, None], second.order[None, :]]
    if np.any(first.scale != 1) or np.any(second.scale != 1):
        part = part * (first.scale[:, None] * second.scale)
    if len(first.starts) < len(first.order):
        part = np.add.reduceat(part, first.starts, axis=-2)
    if len(second.starts) < len(second.order):
        part = np.add.reduceat(part, second.starts, axis=-1)
    return np.asarray(part, dtype=np.float64)


def normalised(gram: NDArray[np.float64], tokens: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale a token-summed Gram to that of example means: K_ij = <S_i, S_j> / (n_i n_j).

    Args:
        gram: (..., examples, examples) token-summed.
        tokens: (examples,) target tokens, all positive.

    Returns:
        (..., examples, examples).
    """
    return np.asarray(gram / (tokens[:, None] * tokens), dtype=np.float64)
