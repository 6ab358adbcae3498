"""Tables of the spectra of example Grams: ranks, and ranks over the number of examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomsafe.analyses import spectra
from geomsafe.analyses.layers import Group, by_kind, by_layer, summed
from geomsafe.analyses.samples import Sample, normalised
from geomsafe.reports.arms import Study
from geomsafe.reports.captures import CONTROLS
from geomsafe.reports.geometry import captures, ends

SETS = ("safety", "utility", *CONTROLS)
GRAM_RANKS = [
    "key", "run", "seed", "step", "set", "gradient_space", "grouping", "layer", "form", "examples", "effective_rank",
    "participation_ratio", "stable_rank", "cer_1", "cer_5", "cer_20",
]  # fmt: skip
RAREFACTION = [
    "key", "run", "seed", "step", "set", "form", "units", "draws", "effective_rank", "effective_rank_low",
    "effective_rank_high", "participation_ratio", "stable_rank",
]  # fmt: skip

_FORMS: tuple[spectra.GramForm, ...] = ("uncentred", "centred", "cosine")


def gram_rank_rows(study: Study) -> list[dict[str, Any]]:
    """Return ranks of example Grams: in all at every capture, by layer and kind of module at the first and last."""
    rows = []
    last = {name: max((one.step for one in run.captures), default=0) for name, run in study.runs.items()}
    for place, _, capture in captures(study):
        at_end = place["step"] in {0, last[place["run"]]}
        groups = [("whole", Group("all", list(range(len(capture.names)))))]
        if at_end:
            groups += [("layer", one) for one in by_layer(capture.names)]
            groups += [("kind", one) for one in by_kind(capture.names)]
        for space in ("raw", "preconditioned"):
            gram = capture.gram(preconditioned=space == "preconditioned")
            if gram is None or capture.version == 1:
                continue
            grams = summed(gram, [group for _, group in groups])
            for kind in SETS:
                sample = capture.sample(kind)
                if sample is None:
                    continue
                for form in _FORMS:
                    rows += [
                        {**place, "set": kind, "gradient_space": space, "grouping": grouping, "layer": group.label,
                         "form": form, "examples": len(sample.rows), **numbers}
                        for (grouping, group), numbers in zip(groups, _ranks_of(grams, sample, form), strict=True)
                        if numbers and (form != "cosine" or grouping == "whole")
                    ]  # fmt: skip
    return rows


def rarefaction_rows(study: Study) -> list[dict[str, Any]]:
    """Return ranks of the whole model's example Gram against the number of independent examples."""
    rows = []
    for place, _, capture in ends(study):
        gram = capture.gram()
        if gram is None or capture.version == 1:
            continue
        whole = gram.sum(axis=0)
        for kind in SETS:
            sample = capture.sample(kind)
            if sample is None:
                continue
            forms: tuple[spectra.GramForm, ...] = ("uncentred", "centred")
            for form in forms:
                rows += [
                    {**place, "set": kind, "form": form, "units": one.units, "draws": one.draws,
                     **one.median._asdict(), "effective_rank_low": one.low.effective_rank,
                     "effective_rank_high": one.high.effective_rank}
                    for one in _rarefied(whole, sample, form)
                ]  # fmt: skip
    return rows


def _ranks_of(grams: NDArray[np.float64], sample: Sample, form: spectra.GramForm) -> Iterator[dict[str, float]]:
    means = normalised(grams[:, sample.rows[:, None], sample.rows[None, :]], sample.tokens)
    # A layer that some example does not reach has no cosine form.
    reached = np.all(np.diagonal(means, axis1=1, axis2=2) > 0, axis=1)
    values = spectra.gram_singular_values(np.where(reached[:, None, None], means, np.eye(means.shape[1])), form)
    for whole, one in zip(reached, values, strict=True):
        ranks, curve = spectra.ranks(one), spectra.cumulative_energy(one)
        if not whole or ranks is None or curve is None:
            yield {}
        else:
            yield {**ranks._asdict(), "cer_1": curve[0], "cer_5": curve[4], "cer_20": curve[19]}


def _rarefied(whole: NDArray[np.float64], sample: Sample, form: spectra.GramForm) -> list[spectra.Rarefied]:
    means = normalised(whole[np.ix_(sample.rows, sample.rows)], sample.tokens)
    most = len(sample.tokens if sample.clusters is None else set(sample.clusters))
    counts = sorted({count for count in (4, 8, 16, 32, 64, 128) if count < most} | ({most} if most > 1 else set()))
    # Examples without gradient in any weight have no direction: they are an error of the capture, not of the reader.
    return spectra.rarefaction(means, counts, clusters=sample.clusters, form=form, draws=20) if means.any() else []
