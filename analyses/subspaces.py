"""Do two sets of gradients use the same directions?

Two different things are called a gradient's subspace. Every number here names one:

- `left_space`: the k leading output-side singular vectors of one weight's batch gradient
  (d_out x d_in), a basis U (d_out, k). The subspace that SPF projects away.
- `example_span`: the span of a set's example gradients, in the space of all weights of a
  layer; dimension at most the number of examples. It needs no basis: within and cross
  Gram matrices give every angle.

Overlap phi(a, b) = ||U_a^T U_b||_F^2 / min(rank_a, rank_b), the mean squared cosine of the
principal angles; 0 = orthogonal, 1 = one contains the other. Two random subspaces of R^d
overlap by max(rank_a, rank_b) / d on average: that baseline stands beside each phi.
A phi is comparable with a ceiling from disjoint halves only at equal N, since fewer examples
make noisier subspaces.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from geomsafe.errors import RecordError

Space = Literal["left_space", "example_span"]


class Overlap(NamedTuple):
    """Overlap of two subspaces of one kind.

    `phi` in [0, 1]; `baseline` = max(rank) / dimension, the mean over random subspaces, at
    most 1; `angles` (min(ranks),) principal angles in radians, rising; `ranks` of the two.
    """

    space: Space
    phi: float
    baseline: float
    angles: NDArray[np.float64]
    ranks: tuple[int, int]


class OverlapCurve(NamedTuple):
    """phi between the k leading directions on either side, k = 1 ... most; never to be read at one k.

    `phi` and `baseline` (most,); from the smaller rank on both stay: there are no more directions.
    """

    phi: NDArray[np.float64]
    baseline: NDArray[np.float64]


def left_overlap(first: NDArray[np.floating], second: NDArray[np.floating]) -> Overlap:
    """Overlap of two left spaces.

    Args:
        first: (d_out, rank) orthonormal columns.
        second: (d_out, rank) orthonormal columns.

    Returns:
        The overlap with its principal angles.

    Raises:
        RecordError: no column, or columns of different length.
    """  # noqa: DOC502 - _bases raises it
    a, b = _bases(first, second)
    cross = a.T @ b
    rank = (a.shape[1], b.shape[1])
    # subspace_angles takes small angles from sines: arccos of a rounded 1 is off by 1e-8.
    angles = np.sort(linalg.subspace_angles(a, b))
    return Overlap("left_space", _share(np.sum(cross**2) / min(rank)), max(rank) / len(a), angles, rank)


def left_overlap_curve(first: NDArray[np.floating], second: NDArray[np.floating], most: int = 32) -> OverlapCurve:
    """Phi(k) of two left spaces whose columns are sorted by singular value.

    Args:
        first: (d_out, rank) orthonormal columns, strongest first.
        second: (d_out, rank) orthonormal columns, strongest first.
        most: largest k.

    Returns:
        The curve with its random baseline.

    Raises:
        RecordError: no column, or columns of different length.
    """  # noqa: DOC502 - _bases raises it
    a, b = _bases(first, second)
    return _curve(a.T @ b, len(a), most)


def span_overlap(
    gram: NDArray[np.float64],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    *,
    dimension: int,
    tolerance: float = 1e-9,
) -> Overlap:
    """Overlap of the example spans of two sets, from their joint Gram matrix alone.

    With K_a = V_a L_a V_a^T and W_a = V_a L_a^(-1/2), the columns of G_a^T W_a are an
    orthonormal basis of the span of the gradients G_a, so W_a^T K_ab W_b is the matrix of
    inner products of the two bases.

    Args:
        gram: (examples, examples).
        first: rows of the one set.
        second: rows of the other.
        dimension: parameters behind the Gram, for the random baseline.
        tolerance: eigenvalues up to this share of the largest count as zero.

    Returns:
        The overlap; angles below sqrt(tolerance) are not told from 0.

    Raises:
        RecordError: a set has no gradient.
    """  # noqa: DOC502 - _whitener raises it
    white_a = _whitener(gram[np.ix_(first, first)], tolerance)
    white_b = _whitener(gram[np.ix_(second, second)], tolerance)
    cosines = np.linalg.svd(white_a.T @ gram[np.ix_(first, second)] @ white_b, compute_uv=False)
    cosines = np.clip(cosines, 0.0, 1.0)
    rank = (white_a.shape[1], white_b.shape[1])
    return Overlap(
        "example_span",
        _share(np.sum(cosines**2) / min(rank)),
        min(1.0, max(rank) / dimension),
        np.arccos(cosines),
        rank,
    )


def span_overlap_curve(
    gram: NDArray[np.float64],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    *,
    dimension: int,
    most: int = 32,
    tolerance: float = 1e-9,
) -> OverlapCurve:
    """Phi(k) between the k strongest directions of two example spans, from their joint Gram alone.

    The directions are the right singular vectors of a set's stacked gradients (uncentred), by
    falling singular value.

    Args:
        gram: (examples, examples).
        first: rows of the one set.
        second: rows of the other.
        dimension: parameters behind the Gram, for the random baseline.
        most: largest k.
        tolerance: eigenvalues up to this share of the largest count as zero.

    Returns:
        The curve with its random baseline.

    Raises:
        RecordError: a set has no gradient.
    """  # noqa: DOC502 - _whitener raises it
    white_a = _whitener(gram[np.ix_(first, first)], tolerance)
    white_b = _whitener(gram[np.ix_(second, second)], tolerance)
    return _curve(white_a.T @ gram[np.ix_(first, second)] @ white_b, dimension, most)


def relative_to_ceiling(phi: float, ceiling: float, *, examples: tuple[int, int], halves: tuple[int, int]) -> float:
    """Phi over the overlap of two disjoint halves of one set, the most that noise leaves.

    Args:
        phi: between two sets.
        ceiling: between two disjoint halves of one set.
        examples: examples on either side of phi.
        halves: examples in either half.

    Returns:
        phi / ceiling; 1 = as alike as two halves of one set.

    Raises:
        RecordError: the counts differ, or the halves do not overlap at all.
    """
    if sorted(examples) != sorted(halves):
        raise RecordError(
            f"an overlap of {examples[0]} and {examples[1]} examples has no ceiling in halves of "
            f"{halves[0]} and {halves[1]}: compare sets of equal size"
        )
    if ceiling <= 0:
        raise RecordError("two halves of one set do not overlap at all: there is no ceiling to compare with")
    return phi / ceiling


def disjoint_halves(clusters: list[object], seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split a set into two disjoint halves of equal count that share no cluster.

    Args:
        clusters: (examples,) what each belongs to.
        seed: of the split.

    Returns:
        Rows of either half, sorted, as many in the one as in the other.

    Raises:
        RecordError: fewer than two clusters.
    """
    members: dict[object, list[int]] = {}
    for index, label in enumerate(clusters):
        members.setdefault(label, []).append(index)
    groups = list(members.values())
    if len(groups) < 2:
        raise RecordError(f"{len(groups)} cluster cannot be split into halves: all examples depend on each other")
    halves: tuple[list[int], list[int]] = ([], [])
    order = np.random.default_rng(seed).permutation(len(groups))
    # Largest first, always to the smaller half: the halves come out as even as clusters allow.
    for index in sorted(order, key=lambda one: -len(groups[one])):
        min(halves, key=len).extend(groups[index])
    size = min(map(len, halves))
    first, second = (np.array(sorted(half[:size]), dtype=np.int64) for half in halves)
    return first, second


def _bases(
    first: NDArray[np.floating], second: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b) or not a.shape[1] or not b.shape[1]:
        raise RecordError(f"bases of shape {a.shape} and {b.shape} have no overlap: they span no common space")
    return a, b


def _curve(cosines: NDArray[np.float64], dimension: int, most: int) -> OverlapCurve:
    # (rank of a, rank of b) inner products of two orthonormal bases, strongest vectors first.
    energy = np.cumsum(np.cumsum(cosines**2, axis=0), axis=1)
    k = np.arange(1, most + 1)
    k_a, k_b = np.minimum(k, cosines.shape[0]), np.minimum(k, cosines.shape[1])
    phi = energy[k_a - 1, k_b - 1] / np.minimum(k_a, k_b)
    return OverlapCurve(np.clip(phi, 0.0, 1.0), np.minimum(np.maximum(k_a, k_b) / dimension, 1.0))


def _whitener(gram: NDArray[np.float64], tolerance: float) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    kept = values > tolerance * max(float(values[-1]), 0.0)
    if not values.size or values[-1] <= 0:
        raise RecordError(f"a set of {len(gram)} examples has no gradient in these weights: it spans nothing")
    # Strongest direction first.
    return np.asarray((vectors[:, kept] / np.sqrt(values[kept]))[:, ::-1], dtype=np.float64)


def _share(value: float) -> float:
    # Rounding may carry the overlap of equal subspaces past 1.
    return float(min(max(value, 0.0), 1.0))
