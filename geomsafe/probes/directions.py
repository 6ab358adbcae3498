"""The refusal direction: how the residual stream differs between harmful and harmless prompts.

    r(layer, position) = mean over harmful prompts - mean over harmless prompts, float64

at the tokens that the template writes behind the user's text (Arditi et al., arXiv 2406.11717, section 2.3). Prompts
are split by content hash, whole clusters at a time: means are taken on one part, everything else is measured on the
other. Two controls: random directions, and the difference of two halves of the *harmless* prompts, which has nothing to
do with harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from geomsafe.data import Prompt, hold_out
from geomsafe.probes.residuals import post_instruction_tokens, prompts_in_tokens, residuals

TRAIN, HELD_OUT = 48, 48
"""Prompts of a kind behind a mean and behind an AUROC, at most (Arditi et al.: 128 and 100)."""

FEWEST = 8
"""Clusters of a kind, at least: with fewer, halves of a half are single prompts."""

RANDOM = 40
"""Random directions behind the range of chance."""

_SEED = 0
# A difference of means below this share of the stream's own size is rounding: at layer 0 all prompts end alike.
_NOTHING = 1e-9


@dataclass(frozen=True)
class ContrastSets:
    """Harmful and harmless prompts in tokens, split for directions; the same for every weight set of a run."""

    harmful: list[list[int]]
    harmless: list[list[int]]
    halves: tuple[list[list[int]], list[list[int]]]  # of `harmless`
    harmful_held_out: list[list[int]]
    harmless_held_out: list[list[int]]
    ending: list[int]  # the tokens at which the stream is read


class Directions(NamedTuple):
    """Differences of means, (layers + 1, positions, width) float64 on the CPU; zero where all is rounding."""

    refusal: Tensor
    null: Tensor


class Site(NamedTuple):
    """What a direction says at one layer and position.

    `layer` l is the stream before block l, the last one that behind all blocks; `position` counts from the end, -1 the
    last token. `norm`, `null_norm`: lengths of r and of the harmless halves' difference. `auroc`, `null_auroc`: of the
    projection on them, harmful against harmless held-out prompts; `random_low`, `random_high`: 2.5 and 97.5 % quantiles
    of the same over random directions. `start_auroc`: of the projection on theta_0's r. `cosine`, `null_cosine`: of r
    and null with those of theta_0. `harmful`, `harmless`: mean projections on theta_0's r, made unit length. None where
    a direction is zero.
    """

    layer: int
    position: int
    norm: float
    auroc: float | None
    random_low: float
    random_high: float
    null_norm: float
    null_auroc: float | None
    start_auroc: float | None
    cosine: float | None
    null_cosine: float | None
    harmful: float | None
    harmless: float | None


def contrast_sets(
    harmful: Sequence[Prompt], harmless: Sequence[Prompt], tokenizer: Any, system_prompt: str | None = None
) -> ContrastSets | None:
    """Split prompts by content hash, clusters whole, and put them into tokens.

    Args:
        harmful: harmful prompts; where there are more than are used, those that stand first are.
        harmless: harmless prompts.
        tokenizer: a tokenizer with a chat template.
        system_prompt: system turn of prompts that have none.

    Returns:
        The sets; None where a kind has fewer than 8 clusters.
    """
    parts = []
    for prompts in (harmful, harmless):
        if len({prompt.cluster for prompt in prompts}) < FEWEST:
            return None
        train, held_out = _split(prompts)
        parts += [train[:TRAIN], held_out[:HELD_OUT]]
    halves = _split(parts[2])
    tokens = [prompts_in_tokens(part, tokenizer, system_prompt) for part in (*parts, *halves)]
    harmful_train, harmful_held, harmless_train, harmless_held, first, second = tokens
    ending = _ending(tokens, tokenizer, system_prompt)
    return ContrastSets(harmful_train, harmless_train, (first, second), harmful_held, harmless_held, ending)


def directions_of(model: Any, sets: ContrastSets, batch_size: int) -> Directions:
    """Compute the refusal direction and its null.

    Args:
        model: a causal LM, left exactly as found.
        sets: the prompts.
        batch_size: prompts read together, at most.

    Returns:
        Both for every layer and position.
    """
    positions = len(sets.ending)
    harmful, size = _mean(model, sets.harmful, positions, batch_size)
    first, second = (_mean(model, half, positions, batch_size)[0] for half in sets.halves)
    share = len(sets.halves[0]) / len(sets.harmless)
    harmless = share * first + (1 - share) * second

    def kept(difference: Tensor) -> Tensor:
        found = difference.norm(dim=-1, keepdim=True) > _NOTHING * size[..., None]
        return torch.where(found, difference, 0.0)

    return Directions(kept(harmful - harmless), kept(first - second))


def direction_sites(
    model: Any, sets: ContrastSets, found: Directions, start: Directions, batch_size: int
) -> list[Site]:
    """Measure directions on held-out prompts.

    Args:
        model: the model of `found`, left exactly as found.
        sets: the prompts.
        found: its directions.
        start: those of theta_0.
        batch_size: prompts read together, at most.

    Returns:
        One entry a layer and position, in order.
    """
    layers, positions, width = found.refusal.shape
    generator = torch.Generator().manual_seed(_SEED)
    chance = _unit(torch.randn((RANDOM, width), generator=generator, dtype=torch.float64))
    rulers = torch.stack([_unit(found.refusal), _unit(found.null), _unit(start.refusal)], dim=2)
    harmful, harmless = (
        _projections(model, prompts, rulers, chance, batch_size)
        for prompts in (sets.harmful_held_out, sets.harmless_held_out)
    )
    areas = _auroc(harmful, harmless)
    low, high = np.quantile(areas[:, :, 3:], [0.025, 0.975], axis=-1)
    sites = []
    for layer in range(layers):
        for place in range(positions):
            at = (layer, place)
            own, null, theirs = (bool(ruler.any()) for ruler in rulers[at])
            area = areas[at]
            sites.append(
                Site(
                    layer=layer,
                    position=place - positions,
                    norm=float(found.refusal[at].norm()),
                    auroc=float(area[0]) if own else None,
                    random_low=float(low[at]),
                    random_high=float(high[at]),
                    null_norm=float(found.null[at].norm()),
                    null_auroc=float(area[1]) if null else None,
                    start_auroc=float(area[2]) if theirs else None,
                    cosine=_cosine(found.refusal[at], start.refusal[at]),
                    null_cosine=_cosine(found.null[at], start.null[at]),
                    harmful=float(harmful[:, layer, place, 2].mean()) if theirs else None,
                    harmless=float(harmless[:, layer, place, 2].mean()) if theirs else None,
                )
            )
    return sites


def _split(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """Return two halves by content hash; prompts of one cluster are on one side."""
    first = {prompt.cluster: prompt for prompt in sorted(prompts, key=lambda prompt: prompt.id, reverse=True)}
    ones = list(first.values())
    _, aside = hold_out(ones, len(ones) // 2)
    held = {prompt.cluster for prompt in aside}
    return [one for one in prompts if one.cluster not in held], [one for one in prompts if one.cluster in held]


def _ending(parts: Sequence[Sequence[list[int]]], tokenizer: Any, system_prompt: str | None) -> list[int]:
    # A prompt may have a system turn or merge of its own: what all of them end with is read.
    ending = post_instruction_tokens(tokenizer, system_prompt)
    everything = [ids for part in parts for ids in part]
    while len(ending) > 1 and any(ids[-len(ending) :] != ending for ids in everything):
        ending = ending[1:]
    return ending


def _mean(model: Any, prompts: Sequence[list[int]], positions: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return the mean stream, (layers + 1, positions, width), and the mean length of a stream, both on the CPU."""
    total, size = torch.zeros(()), torch.zeros(())
    for _, streams in residuals(model, prompts, positions, batch_size):
        total = total + streams.sum(dim=0).cpu()
        size = size + streams.norm(dim=-1).sum(dim=0).cpu()
    return total / len(prompts), size / len(prompts)


def _projections(
    model: Any, prompts: Sequence[list[int]], rulers: Tensor, chance: Tensor, batch_size: int
) -> NDArray[np.float64]:
    """Return (prompts, layers + 1, positions, directions) inner products: with a site's rulers, then with chance."""
    layers, positions, own, _ = rulers.shape
    found = torch.empty((len(prompts), layers, positions, own + len(chance)), dtype=torch.float64)
    for rows, streams in residuals(model, prompts, positions, batch_size):
        there = streams.cpu()
        found[rows] = torch.cat([torch.einsum("nlpw,lpdw->nlpd", there, rulers), there @ chance.T], dim=-1)
    return found.numpy()


def _auroc(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the area under the ROC curve of every column: the rank sum of `above`, ties shared (Mann & Whitney)."""
    n, m = len(above), len(below)
    ranks = stats.rankdata(np.concatenate([above, below]), axis=0)[:n]
    return np.asarray((ranks.sum(axis=0) - n * (n + 1) / 2) / (n * m))


def _unit(directions: Tensor) -> Tensor:
    lengths = directions.norm(dim=-1, keepdim=True)
    return directions / torch.where(lengths > 0, lengths, 1.0)


def _cosine(first: Tensor, second: Tensor) -> float | None:
    lengths = float(first.norm() * second.norm())
    return float(first @ second) / lengths if lengths > 0 else None
