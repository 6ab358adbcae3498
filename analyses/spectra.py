"""How many directions do gradients use?

Two spectra, each number names one:

- singular values of one weight's mean gradient matrix (`left_space`), and
- eigenvalues of a Gram matrix of examples (`example_span`), uncentred, centred or
  cosine-normalised; the singular values s are their square roots.

A short text's gradient is low-rank mechanically, and an untrained model's too: CER(20) of an
untrained model of width 128 is above .99. Without a null of equal count and lengths these
numbers describe; they do not show that safety is low-rank. Spectra are compared at equal N
only: N examples cannot span more than N directions.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomsafe.errors import RecordError

GramForm = Literal["uncentred", "centred", "cosine"]

MOST_K = 32


class Ranks(NamedTuple):
    """Three soft counts of directions, each between 1 and min(shape).

    `effective_rank` = exp H(p), p = s / sum s (Roy & Vetterli 2007);
    `participation_ratio` = (sum s^2)^2 / sum s^4; `stable_rank` = sum s^2 / max s^2.
    """

    effective_rank: float
    participation_ratio: float
    stable_rank: float


class Rarefied(NamedTuple):
    """Ranks of subsamples of `units` independent examples: medians over `draws`, with the 10 and 90 % quantiles."""

    units: int
    draws: int
    median: Ranks
    low: Ranks
    high: Ranks


def cumulative_energy(singular_values: NDArray[np.floating], most: int = MOST_K) -> list[float] | None:
    """CER(k) = sum_{i <= k} s_i^2 / sum_i s_i^2 for k = 1 ... most.

    Args:
        singular_values: (rank,) of one gradient matrix, any order.
        most: largest k; a matrix with fewer values reaches 1 earlier and stays there.

    Returns:
        (most,) shares in [0, 1], rising; None for a zero or non-finite gradient.
    """
    energy = _energy(singular_values)
    if energy is None:
        return None
    curve = np.minimum(np.cumsum(energy) / energy.sum(), 1.0)
    return [float(curve[min(k, len(curve) - 1)]) for k in range(most)]


def excess_energy(
    singular_values: NDArray[np.floating],
    null_values: NDArray[np.floating],
    *,
    examples: int,
    null_examples: int,
    most: int = MOST_K,
) -> list[float] | None:
    """Excess CER(k) = CER(k) - CER_null(k) for k = 1 ... most.

    Args:
        singular_values: (rank,) of the gradient in question.
        null_values: (rank,) of the null's, of the same weight.
        examples: examples behind the first.
        null_examples: examples behind the null.
        most: largest k.

    Returns:
        (most,) in [-1, 1]; positive = more concentrated than the null; None where either is zero.

    Raises:
        RecordError: the counts differ, and with them the largest possible ranks.
    """
    if examples != null_examples:
        raise RecordError(
            f"spectra of {examples} and {null_examples} examples are not comparable: "
            "measure the null with as many examples, or draw subsamples of equal count"
        )
    ours, theirs = cumulative_energy(singular_values, most), cumulative_energy(null_values, most)
    if ours is None or theirs is None:
        return None
    return [a - b for a, b in zip(ours, theirs, strict=True)]


def ranks(singular_values: NDArray[np.floating]) -> Ranks | None:
    """Effective rank, participation ratio and stable rank.

    Args:
        singular_values: (rank,) of one gradient matrix, any order.

    Returns:
        The three, or None for a zero or non-finite gradient.
    """
    energy = _energy(singular_values)
    if energy is None:
        return None
    share = np.sqrt(energy / energy.sum())
    share = share[share > 0] / share.sum()
    energy = energy / energy[0]
    return Ranks(
        effective_rank=float(np.exp(-np.sum(share * np.log(share)))),
        participation_ratio=float(energy.sum() ** 2 / np.sum(energy**2)),
        stable_rank=float(energy.sum()),
    )


def gram_singular_values(grams: NDArray[np.float64], form: GramForm = "uncentred") -> NDArray[np.float64]:
    """Singular values of the matrix whose rows are the examples' gradients, from its Gram matrix K.

    Args:
        grams: (..., examples, examples) inner products, already scaled as the examples are
            to count (see `samples.normalised`).
        form: "uncentred" K, which contains the mean; "centred" H K H with H = I - 11^T / N,
            the variation around it; "cosine" K_ij / sqrt(K_ii K_jj), every length thought away.

    Returns:
        (..., examples) falling, square roots of the eigenvalues; those within rounding of zero are 0.

    Raises:
        RecordError: the cosine form of an example without gradient.
    """
    work = np.asarray(grams, dtype=np.float64)
    if form == "centred":
        rows = work.mean(axis=-1, keepdims=True)
        work = work - rows - np.swapaxes(rows, -1, -2) + rows.mean(axis=-2, keepdims=True)
    elif form == "cosine":
        length = np.sqrt(np.diagonal(work, axis1=-2, axis2=-1))
        if not np.all(length > 0):
            raise RecordError("an example has no gradient in some weights: its cosine with the others is not defined")
        work = work / (length[..., :, None] * length[..., None, :])
    values = np.linalg.eigvalsh((work + np.swapaxes(work, -1, -2)) / 2)[..., ::-1]
    # Rounding of the uncentred diagonal bounds what a zero eigenvalue can come out as.
    scale = np.abs(np.diagonal(grams if form != "cosine" else work, axis1=-2, axis2=-1)).sum(axis=-1)
    floor = work.shape[-1] * np.finfo(np.float64).eps * scale
    return np.asarray(np.sqrt(np.where(values > floor[..., None], values, 0.0)), dtype=np.float64)


def rarefaction(
    gram: NDArray[np.float64],
    counts: Sequence[int],
    *,
    clusters: Sequence[Hashable] | None = None,
    form: GramForm = "uncentred",
    draws: int = 40,
    seed: int = 0,
) -> list[Rarefied]:
    """Ranks against the number of independent examples: does the curve still rise at N?

    Each draw takes clusters without replacement and one example of each, so that equal
    counts are equal numbers of independent examples.

    Args:
        gram: (examples, examples).
        counts: subsample sizes, each between 2 and the number of clusters.
        clusters: (examples,) what each belongs to; None = all independent.
        form: as for `gram_singular_values`.
        draws: subsamples a count.
        seed: of the draws.

    Returns:
        One entry a count.

    Raises:
        RecordError: a count is not within 2 and the number of clusters, or all gradients of a draw are zero.
    """
    labels = list(range(len(gram))) if clusters is None else list(clusters)
    members: dict[Hashable, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    groups, rng = list(members.values()), np.random.default_rng(seed)
    found = []
    for count in counts:
        if not 2 <= count <= len(groups):
            raise RecordError(f"a subsample of {count} is not within 2 and {len(groups)} independent examples")
        picked = np.array([_draw(groups, count, rng) for _ in range(draws)])
        values = gram_singular_values(gram[picked[:, :, None], picked[:, None, :]], form)
        each = [ranks(row) for row in values]
        defined = np.array([one for one in each if one is not None])
        if len(defined) < draws:
            raise RecordError(f"a subsample of {count} examples has no gradient: its rank is not defined")
        low, median, high = np.quantile(defined, [0.1, 0.5, 0.9], axis=0)
        found.append(
            Rarefied(count, draws, Ranks(*map(float, median)), Ranks(*map(float, low)), Ranks(*map(float, high)))
        )
    return found


def _draw(groups: Sequence[Sequence[int]], count: int, rng: np.random.Generator) -> list[int]:
    chosen = rng.choice(len(groups), size=count, replace=False)
    return [int(rng.choice(groups[index])) for index in chosen]


def _energy(singular_values: NDArray[np.floating]) -> NDArray[np.float64] | None:
    values = np.sort(np.asarray(singular_values, dtype=np.float64))[::-1]
    if values.size == 0 or not np.all(np.isfinite(values)) or values[0] <= 0:
        return None
    # Relative to the largest, so that the squares of tiny gradients do not underflow.
    energy: NDArray[np.float64] = np.square(values / values[0])
    return energy
