"""Do the safety gradient and the utility gradient oppose each other?

Input is the Gram matrix of token-summed gradients with the token counts n_i (`samples` says
how examples are weighed and which are independent units). With S_i, T_j the sums over one unit
of the safety and of the utility set, n_i, m_j their weights:

    cross  = sum_ij <S_i, T_j>        / (sum_i n_i  sum_j m_j)
    U_s    = sum_{i != j} <S_i, S_j>  / sum_{i != j} n_i n_j     (unbiased for |mu_s|^2)
    cosine = cross / sqrt(U_s U_u)

The plain cosine of the two mean gradients divides by norms that contain the noise of the
sample and is pulled towards zero; the U-statistic leaves the diagonal, and the noise, out.
Where the 95 % interval of U_s or U_u reaches zero the cosine is undefined: None, not 0.

A Gram of preconditioned products <G_i, P G_j> gives the cosine in the space of updates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from geomsafe.analyses.jackknife import Cross, Square, deviation, halves_cosine
from geomsafe.analyses.samples import Convention, Sample, Units, products, units_of
from geomsafe.errors import RecordError


@dataclass(frozen=True)
class Cosine:
    """Cosine of the mean safety and utility gradients of one layer.

    `cosine`, `low`, `high`: the U-statistic and its 95 % jackknife interval, not clipped to
    [-1, 1]; all None where undefined, `reason` says why. `raw`: cosine of the two mean
    gradients. `dot`: their inner product. `*_reliability`: mean cosine between halves of one
    set, 1 = no noise. `*_noise`: noise scale tr Sigma / |mu|^2 of one example's (or block's)
    gradient, None where U <= 0. `p_negative`: one-sided p of cosine >= 0.
    """

    cosine: float | None = None
    low: float | None = None
    high: float | None = None
    raw: float | None = None
    dot: float | None = None
    safety_reliability: float | None = None
    utility_reliability: float | None = None
    safety_noise: float | None = None
    utility_noise: float | None = None
    p_negative: float | None = None
    reason: str = ""

    @property
    def floor(self) -> float | None:
        """Half the width of the interval: an absolute cosine below it is not told from zero."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def spf_trigger(self) -> bool | None:
        """Whether SPF would project: the inner product is negative, however uncertain. No claim of a conflict."""
        return None if self.dot is None else self.dot < 0


@dataclass(frozen=True)
class Contrast:
    """cos(safety, utility) - cos(benign anchor, utility) of one layer; all None where either is undefined."""

    difference: float | None = None
    low: float | None = None
    high: float | None = None
    anchor: float | None = None
    reason: str = ""


def gradient_cosines(
    grams: NDArray[np.float64],
    safety: Sample,
    utility: Sample,
    *,
    convention: Convention = "token-mean",
    level: float = 0.95,
) -> list[Cosine]:
    """Cosine of two mean gradients for every layer at once.

    Args:
        grams: (layers, examples, examples) inner products of token-summed gradients; that of
            several parameters together is the sum of theirs.
        safety: the safety set.
        utility: the utility set.
        convention: "token-mean" or "example-mean".
        level: of the jackknife intervals.

    Returns:
        (layers,) cosines with interval and noise.

    Raises:
        RecordError: the Gram matrix does not fit the sets.
    """  # noqa: DOC502 - _fits raises it
    _fits(grams, safety, utility)
    ours, theirs = units_of(safety, convention), units_of(utility, convention)
    count = len(grams)
    if min(len(ours.starts), len(theirs.starts)) < 3:
        return [Cosine(reason="fewer than 3 independent blocks with target tokens")] * count
    s, u = _square(grams, ours), _square(grams, theirs)
    cross = Cross.of(products(grams, ours, theirs), ours.weights, theirs.weights)
    estimate, without_s, without_u = cross.cosine(s, u)
    spread = np.sqrt(deviation(without_s) ** 2 + deviation(without_u) ** 2)
    reach, p_negative = _t_interval(estimate, spread, min(len(ours.starts), len(theirs.starts)) - 1, level)
    reasons = _reasons(s, u, spread, level)
    raw = cross.raw(s, u)
    plain = {
        "raw": raw,
        "dot": cross.mean,
        "safety_reliability": halves_cosine(s.products),
        "utility_reliability": halves_cosine(u.products),
        "safety_noise": _noise_scale(grams, ours, s.mean),
        "utility_noise": _noise_scale(grams, theirs, u.mean),
    }
    defined = {"cosine": estimate, "low": estimate - reach, "high": estimate + reach, "p_negative": p_negative}
    return [
        Cosine(
            **{key: _finite(values[index]) for key, values in plain.items()},
            **({} if reasons[index] else {key: _finite(values[index]) for key, values in defined.items()}),
            reason=reasons[index],
        )
        for index in range(count)
    ]


def gradient_cosine(
    gram: NDArray[np.float64],
    safety_tokens: NDArray[np.float64],
    utility_tokens: NDArray[np.float64],
    level: float = 0.95,
) -> Cosine:
    """Cosine of two mean gradients from one Gram matrix of independent blocks.

    Args:
        gram: (blocks_s + blocks_u, same) inner products of token-summed block gradients,
            safety blocks first; of several parameters together it is the sum of theirs.
        safety_tokens: (blocks_s,) target tokens in each safety block.
        utility_tokens: (blocks_u,) target tokens in each utility block.
        level: of the jackknife intervals.

    Returns:
        The cosine with its interval and noise.

    Raises:
        RecordError: the Gram matrix does not fit the token counts.
    """
    size, first = len(safety_tokens) + len(utility_tokens), len(safety_tokens)
    if gram.shape != (size, size):
        raise RecordError(
            f"block Gram has shape {gram.shape}, the token counts name {size} blocks: the capture is broken"
        )
    safety = Sample(np.arange(first), np.asarray(safety_tokens, dtype=np.float64))
    utility = Sample(np.arange(first, size), np.asarray(utility_tokens, dtype=np.float64))
    return gradient_cosines(gram[None], safety, utility, level=level)[0]


def anchor_contrasts(
    grams: NDArray[np.float64],
    safety: Sample,
    anchor: Sample,
    utility: Sample,
    *,
    convention: Convention = "token-mean",
    level: float = 0.95,
) -> list[Contrast]:
    """Is the cosine with utility lower for safety than for a benign anchor of equal lengths?

    The utility set is shared by the two cosines, so its examples are left out of both at once.

    Args:
        grams: (layers, examples, examples) token-summed.
        safety: the safety set.
        anchor: benign prompts with answers as long as the refusals.
        utility: the utility set.
        convention: "token-mean" or "example-mean".
        level: of the jackknife interval.

    Returns:
        (layers,) contrasts.

    Raises:
        RecordError: the Gram matrix does not fit the sets.
    """  # noqa: DOC502 - _fits raises it
    _fits(grams, safety, anchor, utility)
    ours, control, theirs = (units_of(one, convention) for one in (safety, anchor, utility))
    fewest = min(len(one.starts) for one in (ours, control, theirs))
    if fewest < 3:
        return [Contrast(reason="fewer than 3 independent blocks with target tokens")] * len(grams)
    s, a, u = (_square(grams, one) for one in (ours, control, theirs))
    with_safety = Cross.of(products(grams, ours, theirs), ours.weights, theirs.weights).cosine(s, u)
    with_anchor = Cross.of(products(grams, control, theirs), control.weights, theirs.weights).cosine(a, u)
    spread = np.sqrt(
        deviation(with_safety[1]) ** 2
        + deviation(with_anchor[1]) ** 2
        + deviation(with_safety[2] - with_anchor[2]) ** 2
    )
    difference = with_safety[0] - with_anchor[0]
    reach, _ = _t_interval(difference, spread, fewest - 1, level)
    found = []
    for index, (first, second) in enumerate(
        zip(_reasons(s, u, spread, level), _reasons(a, u, spread, level, "anchor"), strict=True)
    ):
        if first or second:
            found.append(Contrast(reason=first or second))
            continue
        centre, width = float(difference[index]), float(reach[index])
        found.append(Contrast(centre, centre - width, centre + width, float(with_anchor[0][index])))
    return found


def claimed_conflicts(
    cosines: Sequence[Cosine], contrasts: Sequence[Contrast] | None, rate: float = 0.05
) -> list[bool | None]:
    """Where a conflict may be claimed: by both rules, and not by one.

    1. The upper bound of the cosine is below zero, and zero is rejected after
       Benjamini-Hochberg over the layers.
    2. The contrast to the benign anchor is below zero with its interval.

    Args:
        cosines: (layers,) cosines of one Gram.
        contrasts: (layers,) contrasts to the anchor; None where no anchor was measured.
        rate: false discovery rate.

    Returns:
        (layers,) True or False; None where no anchor was measured: nothing can be claimed.
    """
    if contrasts is None:
        return [None] * len(cosines)
    below = negative_after_correction([one.p_negative for one in cosines], rate)
    return [
        rejected and one.high is not None and one.high < 0 and beside.high is not None and beside.high < 0
        for rejected, one, beside in zip(below, cosines, contrasts, strict=True)
    ]


def u_interval(gram: NDArray[np.float64], tokens: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """Jackknife interval of U, the squared norm of a set's mean gradient.

    Args:
        gram: (blocks, blocks) token-summed Gram matrix of one set.
        tokens: (blocks,) target tokens.
        level: of the interval.

    Returns:
        Lower and upper bound, in squared gradient units per token.
    """
    low, high = Square.of(gram[None], tokens).interval(level)
    return float(low[0]), float(high[0])


def negative_after_correction(p_values: Sequence[float | None], rate: float = 0.05) -> list[bool]:
    """Which layers' cosines are below zero at a false discovery rate (Benjamini-Hochberg).

    Args:
        p_values: (layers,) one-sided p; None where the cosine is undefined.
        rate: false discovery rate over the defined layers.

    Returns:
        (layers,) True where zero is rejected; undefined layers are never.
    """
    defined = [index for index, p in enumerate(p_values) if p is not None]
    rejected = [False] * len(p_values)
    if defined:
        adjusted = stats.false_discovery_control([p_values[index] for index in defined])
        for index, value in zip(defined, adjusted, strict=True):
            rejected[index] = bool(value <= rate)
    return rejected


def _fits(grams: NDArray[np.float64], *sets: Sample) -> None:
    size = max((int(np.max(one.rows, initial=-1)) for one in sets), default=-1) + 1
    if grams.ndim != 3 or grams.shape[1] != grams.shape[2] or grams.shape[1] < size:
        raise RecordError(f"Gram of shape {grams.shape} has no rows for {size} examples: the capture is broken")


def _square(grams: NDArray[np.float64], units: Units) -> Square:
    return Square.of(products(grams, units, units), units.weights)


def _noise_scale(grams: NDArray[np.float64], units: Units, squared_mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return tr Sigma / |mu|^2 of one example's mean gradient (McCandlish et al. 2018), (layers,)."""
    diagonal = np.diagonal(grams, axis1=1, axis2=2)[:, units.order]
    per_example = (diagonal / units.tokens**2).mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(squared_mean > 0, per_example / squared_mean - 1, np.nan)


def _t_interval(
    estimate: NDArray[np.float64], spread: NDArray[np.float64], freedom: int, level: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    reach = float(stats.t.ppf((1 + level) / 2, freedom)) * spread
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.where(spread > 0, stats.t.cdf(estimate / spread, freedom), (estimate >= 0).astype(np.float64))
    return reach, p


def _reasons(
    first: Square, second: Square, spread: NDArray[np.float64], level: float, name: str = "safety"
) -> list[str]:
    found = [""] * len(spread)
    for label, square in ((name, first), ("utility", second)):
        zero, low = ~np.any(square.products, axis=(1, 2)), square.interval(level)[0]
        for index in np.flatnonzero(zero | (low <= 0)):
            what = "zero" if zero[index] else f"not told from noise{_wanted(square, int(index), float(low[index]))}"
            found[index] = found[index] or f"the {label} gradient is {what}"
    for index in np.flatnonzero(~np.isfinite(spread)):
        found[index] = found[index] or "a squared norm is not positive without one block"
    return found


def _wanted(square: Square, index: int, low: float) -> str:
    """Say how many times the examples would do: the relative error of U falls with the root of their number."""  # noqa: DOC201
    mean = float(square.mean[index])
    if mean <= 0:
        return ""
    return f": about {max(1.1, ((mean - low) / mean) ** 2):.2g} times the examples would tell"


def _finite(value: np.float64) -> float | None:
    return float(value) if np.isfinite(value) else None
