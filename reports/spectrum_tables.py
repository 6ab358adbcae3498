"""Tables of the spectra of weight matrices, beside those of their nulls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomsafe.analyses import spectra
from geomsafe.analyses.layers import locate
from geomsafe.reports.arms import Study
from geomsafe.reports.captures import CONTROLS, Capture
from geomsafe.reports.geometry import captures, ends

SETS = ("safety", "utility", *CONTROLS)
SPECTRA = [
    "key", "run", "seed", "step", "layer", "module", "set", "examples", "effective_rank", "participation_ratio",
    "stable_rank", "full_rank", "cer_1", "cer_5", "cer_20",
]  # fmt: skip
_SUMMARISED = ["effective_rank", "participation_ratio", "stable_rank", "full_rank", "cer_1", "cer_5", "cer_20"]
RANKS = ["key", "step", "set", "matrices", *_SUMMARISED]
ENERGY = ["key", "run", "seed", "step", "set", "k", "matrices", "median", "quartile_low", "quartile_high"]
EXCESS = ["key", "run", "seed", "step", "null", "k", "matrices", "examples", "excess", "quartile_low", "quartile_high"]
NULLS = [
    "key", "run", "seed", "step", "null", "examples", "safety_examples", "matrices", "prompt_tokens_apart",
    "answer_tokens_apart", "loss_apart", "reason",
]  # fmt: skip
_APART = ("prompt_tokens_apart", "answer_tokens_apart", "loss_apart")
# Curves are smooth: these k show them, at a third of the size.
K_SHOWN = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32)


def spectrum_rows(study: Study) -> list[dict[str, Any]]:
    """Return ranks and cumulative energy of every weight matrix whose singular values were captured."""
    rows = []
    for place, _, capture in captures(study):
        for kind in (*SETS, *capture.nulls):
            for name, values in _singular_values(capture, kind):
                ranks, curve = spectra.ranks(values), spectra.cumulative_energy(values)
                where = locate(name)
                row = {**place, "layer": where.group, "module": where.module, "set": kind, "full_rank": len(values)}
                row["examples"] = capture.examples(kind)
                if ranks is not None and curve is not None:
                    row |= {**ranks._asdict(), "cer_1": curve[0], "cer_5": curve[4], "cer_20": curve[19]}
                rows.append(row)
    return rows


def rank_rows(spectra_rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Summarise the ranks of each arm, step and gradient.

    Args:
        spectra_rows: the table of spectra.

    Returns:
        Medians over weight matrices and seeds.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in spectra_rows:
        groups.setdefault((row["key"], row["step"], row["set"]), []).append(row)
    rows = []
    for (key, step, kind), members in sorted(groups.items(), key=lambda group: tuple(map(str, group[0]))):
        defined = [row for row in members if row.get("effective_rank") is not None]
        if defined:
            medians = {name: float(np.median([row[name] for row in defined])) for name in _SUMMARISED}
            rows.append({"key": key, "step": step, "set": kind, "matrices": len(defined), **medians})
    return rows


def energy_rows(study: Study) -> list[dict[str, Any]]:
    """Return quartiles over weight matrices of CER(k), of every set and null."""
    rows = []
    for place, _, capture in captures(study):
        for kind in (*SETS, *capture.nulls):
            curves = [spectra.cumulative_energy(values) for _, values in _singular_values(capture, kind)]
            rows += [
                {**place, "set": kind, "k": k, "matrices": matrices, "median": median, **quartiles}
                for k, matrices, median, quartiles in _quartiles([curve for curve in curves if curve is not None])
            ]
    return rows


def excess_rows(study: Study) -> list[dict[str, Any]]:
    """Return excess CER(k) of the safety gradient over each null and control of equal count."""
    rows = []
    for place, run, capture in ends(study):
        safety, count = dict(_singular_values(capture, "safety")), capture.examples("safety")
        start = min(run.captures, key=lambda one: one.step)
        for null in _comparisons(capture, start):
            # Untrained weights are measured once a run: they do not change.
            source = start if null == "untrained" and null not in capture.nulls else capture
            null_count = source.examples(null)
            if count is None or null_count is None or count != null_count:
                continue
            curves = [
                spectra.excess_energy(safety[name], values, examples=count, null_examples=null_count)
                for name, values in _singular_values(source, null)
                if name in safety
            ]
            rows += [
                {**place, "null": null, "k": k, "matrices": matrices, "examples": count, "excess": median, **quartiles}
                for k, matrices, median, quartiles in _quartiles([curve for curve in curves if curve is not None])
            ]
    return rows


def null_rows(study: Study) -> list[dict[str, Any]]:
    """Return which nulls and controls were measured, and why one is not comparable."""
    rows = []
    for place, _, capture in ends(study):
        wanted = capture.examples("safety")
        for null in _comparisons(capture):
            count, reason = capture.examples(null), None
            if wanted is None or count is None:
                reason = "the capture does not say how many examples it has"
            elif count != wanted:
                reason = f"{count} examples, and the safety set has {wanted}"
            matrices = sum(1 for _ in _singular_values(capture, null))
            rows.append({**place, "null": null, "examples": count, "safety_examples": wanted, "matrices": matrices,
                         "reason": reason, **_match(capture, null)})  # fmt: skip
    return rows


def _match(capture: Capture, null: str) -> dict[str, float | None]:
    # How near a null comes to the safety set in lengths and loss, as far as it was matched on them.
    found = capture.metadata.get("match", {}).get(null, {})
    return {key: found.get(key) for key in _APART}


def _quartiles(curves: Sequence[Sequence[float]]) -> Iterator[tuple[int, int, float, dict[str, float]]]:
    if not curves:
        return
    low, median, high = np.quantile(np.array(curves), [0.25, 0.5, 0.75], axis=0)
    for k in K_SHOWN:
        at = k - 1
        yield k, len(curves), float(median[at]), {"quartile_low": float(low[at]), "quartile_high": float(high[at])}


def _comparisons(capture: Capture, start: Capture | None = None) -> list[str]:
    borrowed = ["untrained"] if start is not None and "untrained" in start.nulls else []
    measured = [kind for kind in CONTROLS if any(key.startswith(f"{kind}_singular_values/") for key in capture.keys)]
    return list(dict.fromkeys([*borrowed, *capture.nulls, *measured]))


def _singular_values(capture: Capture, kind: str) -> Iterator[tuple[str, NDArray[np.float64]]]:
    for name, values in capture.under(f"{kind}_singular_values").items():
        if len(values) > 1:
            yield name, values
