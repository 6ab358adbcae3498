"""The table of cosines: every capture, raw and preconditioned, by layer, by kind of module, and in all."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomsafe.analyses import conflicts
from geomsafe.analyses.conflicts import Contrast, Cosine
from geomsafe.analyses.layers import Group, by_kind, by_layer, summed
from geomsafe.reports.arms import Study
from geomsafe.reports.captures import Capture
from geomsafe.reports.geometry import captures

COSINES = [
    "key", "run", "seed", "step", "set", "gradient_space", "grouping", "layer", "parameters", "cosine", "low", "high",
    "floor", "raw", "dot", "spf_trigger", "safety_reliability", "utility_reliability", "safety_noise", "utility_noise",
    "p_negative", "negative", "anchor_cosine", "contrast", "contrast_low", "contrast_high", "claimed", "reason",
]  # fmt: skip

SPACES = ("raw", "preconditioned")


def cosine_rows(study: Study) -> list[dict[str, Any]]:
    """Return the cosine of safety (and of sham) gradients with utility gradients, for every capture that has both."""
    rows = []
    for place, _, capture in captures(study):
        for space in SPACES:
            gram = capture.gram(preconditioned=space == "preconditioned")
            if gram is None:
                continue
            for kind in ("safety", "sham"):
                rows += [
                    {**place, "set": kind, "gradient_space": space, **row} for row in _rows_of(capture, gram, kind)
                ]
    return rows


def _rows_of(capture: Capture, gram: NDArray[np.float64], kind: str) -> list[dict[str, Any]]:
    ours, anchor, utility = (capture.sample(one) for one in (kind, "benign", "utility"))
    if ours is None or utility is None:
        return []
    groupings = {
        "layer": by_layer(capture.names),
        "kind": by_kind(capture.names),
        "whole": [Group("all", list(range(len(capture.names))))],
    }
    grams = summed(gram, [group for groups in groupings.values() for group in groups])
    cosines = conflicts.gradient_cosines(grams, ours, utility)
    contrasts = None if anchor is None else conflicts.anchor_contrasts(grams, ours, anchor, utility)
    rows, start = [], 0
    for grouping, groups in groupings.items():
        # Layers are one family of tests, kinds of modules another.
        part = slice(start, start + len(groups))
        start += len(groups)
        mine, beside = cosines[part], None if contrasts is None else contrasts[part]
        negative = conflicts.negative_after_correction([one.p_negative for one in mine])
        claimed = conflicts.claimed_conflicts(mine, beside)
        for index, (group, one) in enumerate(zip(groups, mine, strict=True)):
            contrast = Contrast() if beside is None else beside[index]
            rows.append({
                "grouping": grouping,
                "layer": group.label,
                "parameters": len(group.indices),
                "negative": negative[index],
                "claimed": claimed[index],
                **_numbers(one, contrast, capture.examples_a_unit),
            })
    return rows


def _numbers(one: Cosine, contrast: Contrast, examples: float | None) -> dict[str, Any]:
    return {
        "cosine": one.cosine,
        "low": one.low,
        "high": one.high,
        "floor": one.floor,
        "raw": one.raw,
        "dot": one.dot,
        "spf_trigger": one.spf_trigger,
        "safety_reliability": one.safety_reliability,
        "utility_reliability": one.utility_reliability,
        "safety_noise": _scaled(one.safety_noise, examples),
        "utility_noise": _scaled(one.utility_noise, examples),
        "p_negative": one.p_negative,
        "anchor_cosine": contrast.anchor,
        "contrast": contrast.difference,
        "contrast_low": contrast.low,
        "contrast_high": contrast.high,
        "reason": one.reason or None,
    }


def _scaled(units: float | None, examples: float | None) -> float | None:
    # The noise of a block's mean is that of one example over the examples in it.
    return None if units is None or examples is None else units * examples
