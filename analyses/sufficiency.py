"""How much of a set's geometry does one example give?

Every single is left out of the batch that it is compared with, and so are the other examples
of its cluster: an example lies in the span of a batch that contains it.

The numbers alone do not say "one safety example suffices": refusals share their text, and
shared answer text gives high overlap in an untrained model too. The comparison is with the
same answer text on benign prompts, and with singles of the utility set.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomsafe.analyses.subspaces import left_overlap_curve
from geomsafe.errors import RecordError


class Sufficiency(NamedTuple):
    """What each single example gives of all others outside its cluster; arrays are (examples,).

    `in_span`: share of its squared length inside the others' `example_span`, in [0, 1].
    `span_baseline`: the same for a random direction, rank of the others / dimension.
    `of_energy`: share of the others' summed squared length along its direction, in [0, 1].
    `cosine`: with the mean gradient of the others. `others`: examples it is compared with.
    NaN for an example without gradient.
    """

    in_span: NDArray[np.float64]
    span_baseline: NDArray[np.float64]
    of_energy: NDArray[np.float64]
    cosine: NDArray[np.float64]
    others: NDArray[np.int64]


def single_sufficiency(
    gram: NDArray[np.float64],
    *,
    dimension: int,
    clusters: Sequence[Hashable] | None = None,
    tolerance: float = 1e-9,
) -> Sufficiency:
    """Compare every example with all others outside its cluster.

    Args:
        gram: (examples, examples) of one set, scaled as the examples are to count.
        dimension: parameters behind the Gram.
        clusters: (examples,) what each belongs to; None = all independent.
        tolerance: eigenvalues of the others' Gram up to this share of the largest count as zero.

    Returns:
        One number an example.

    Raises:
        RecordError: an example has no others to be compared with.
    """
    count = len(gram)
    labels: list[Hashable] = list(range(count)) if clusters is None else list(clusters)
    if len(labels) != count or len(set(labels)) < 2:
        raise RecordError(
            f"{count} examples in {len(set(labels))} clusters: a single has no others to be compared with"
        )
    found = np.full((5, count), np.nan)
    groups: dict[Hashable, list[int]] = {}
    for index, label in enumerate(labels):
        groups.setdefault(label, []).append(index)
    for members in groups.values():
        rest = np.setdiff1d(np.arange(count), members)
        found[:, members] = _against(gram, np.array(members), rest, dimension, tolerance)
    return Sufficiency(found[0], found[1], found[2], found[3], found[4].astype(np.int64))


def left_sufficiency(
    singles: Sequence[NDArray[np.floating]], batches: Sequence[NDArray[np.floating]], most: int = 32
) -> NDArray[np.float64]:
    """Phi(k) between the left space of each single and that of the batch without it.

    Args:
        singles: one basis (d_out, rank) an example, strongest column first.
        batches: the basis of the others' gradient, one an example, in the same order.
        most: largest k.

    Returns:
        (examples, most).

    Raises:
        RecordError: not one batch a single.
    """
    if len(singles) != len(batches):
        raise RecordError(
            f"{len(singles)} singles and {len(batches)} batches: each single needs the basis of the batch without it"
        )
    return np.array([left_overlap_curve(one, rest, most).phi for one, rest in zip(singles, batches, strict=True)])


def _against(
    gram: NDArray[np.float64], members: NDArray[np.int64], rest: NDArray[np.int64], dimension: int, tolerance: float
) -> NDArray[np.float64]:
    # (5, members): the columns of Sufficiency.
    own = np.diag(gram)[members]
    towards = gram[np.ix_(members, rest)]
    within = gram[np.ix_(rest, rest)]
    values, vectors = np.linalg.eigh((within + within.T) / 2)
    kept = values > tolerance * max(float(values[-1]), 0.0)
    projected = ((towards @ vectors[:, kept]) ** 2 / values[kept]).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        in_span = np.clip(projected / own, 0.0, 1.0)
        energy = np.clip((towards**2).sum(axis=1) / (own * np.trace(within)), 0.0, 1.0)
        cosine = towards.sum(axis=1) / np.sqrt(own * within.sum())
    ones = np.ones(len(members))
    return np.array([in_span, ones * min(1.0, kept.sum() / dimension), energy, cosine, ones * len(rest)])
