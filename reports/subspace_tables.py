"""Tables of subspaces: overlaps over k, shares of displacement and update, and what single examples give."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomsafe.analyses import shares, subspaces, sufficiency
from geomsafe.analyses.samples import Sample, normalised
from geomsafe.reports.arms import Study
from geomsafe.reports.captures import CONTROLS, Capture
from geomsafe.reports.geometry import captures, ends

OVERLAPS = [
    "key", "run", "seed", "step", "space", "comparison", "k", "phi", "quartile_low", "quartile_high", "baseline",
    "matrices", "examples",
]  # fmt: skip
SHARES = ["key", "run", "seed", "step", "what", "set", "basis_step", "k", "share", "random_share", "matrices"]
SINGLES = [
    "key", "run", "seed", "step", "set", "example", "in_span", "span_baseline", "of_energy", "single_cosine", "others",
]  # fmt: skip

K_SHOWN = (1, 2, 3, 4, 6, 8, 12, 16, 20)
SPLITS = 8
"""Ways to halve the sets; overlaps of example spans are means over them."""

TURNS = {kind: f"{kind} at this step – at step 0" for kind in ("safety", "utility")}
HALVES = "safety half – safety half (ceiling)"
ONE_SAMPLE = {
    "single_phi": "one refusal – half without it",
    "single_phi_same_text": "same text, benign prompt – that half (null)",
    "half_phi": "two halves (ceiling)",
    "half_phi_same_text": "half with same text – other half (null)",
}
"""Array of the capture -> comparison: a single or a half of the safety set against the half it is not in."""


def overlap_rows(study: Study) -> list[dict[str, Any]]:
    """Return phi over k of example spans and of left spaces: between sets at the ends, to step 0 at every capture."""
    rows = []
    for place, _, capture in ends(study):
        rows += [{**place, "space": "example_span", **row} for row in _span_rows(capture)]
        rows += [{**place, "space": "left_space", **row} for row in _left_rows(capture)]
    for place, run, capture in captures(study):
        start = min(run.captures, key=lambda one: one.step)
        for kind, name in TURNS.items() if capture.step > start.step else ():
            first, now = start.under(f"{kind}_basis"), capture.under(f"{kind}_basis")
            rows += [{**place, "space": "left_space", **row} for row in _left_curve(name, now, first, capture)]
    return rows


def share_rows(study: Study) -> list[dict[str, Any]]:
    """Return the share of displacement and last update in each set's left space, over k, for every capture."""
    rows = []
    for place, _, capture in captures(study):
        d_out = _d_outs(capture)
        for what in ("displacement", "update"):
            norms = capture.get(f"{what}_norm")
            if norms is None or capture.step == 0:
                continue
            length = dict(zip(capture.names, norms, strict=True))
            for kind, at in itertools.product(("safety", "utility", *CONTROLS), ("0", "t")):
                found = _whole_weights(capture.under(f"{what}_in/{kind}@{at}"))
                if not found:
                    continue
                curve = shares.pooled_share_curve(
                    list(found.values()),
                    [length[name] for name in found],
                    [d_out[name] for name in found],
                    max(K_SHOWN),
                )
                if curve is None:
                    continue
                rank = max(map(len, found.values()))
                rows += [
                    {**place, "what": what, "set": kind, "basis_step": at, "k": k, "share": float(curve.share[k - 1]),
                     "random_share": float(curve.random[k - 1]), "matrices": len(found)}
                    for k in K_SHOWN if k <= rank
                ]  # fmt: skip
    return rows


def single_rows(study: Study) -> list[dict[str, Any]]:
    """Return what each single example gives of all others outside its cluster, in the whole model."""
    rows = []
    for place, _, capture in ends(study):
        gram = capture.gram()
        if gram is None or capture.version == 1:
            continue
        whole = gram.sum(axis=0)
        for kind in ("safety", "utility", *CONTROLS):
            sample = capture.sample(kind)
            if sample is None or len(sample.tokens if sample.clusters is None else set(sample.clusters)) < 2:
                continue
            found = sufficiency.single_sufficiency(
                normalised(whole[np.ix_(sample.rows, sample.rows)], sample.tokens),
                dimension=capture.parameters,
                clusters=sample.clusters,
            )
            rows += [
                {**place, "set": kind, "example": index, "in_span": float(found.in_span[index]),
                 "span_baseline": float(found.span_baseline[index]), "of_energy": float(found.of_energy[index]),
                 "single_cosine": float(found.cosine[index]), "others": int(found.others[index])}
                for index in range(len(found.cosine))
            ]  # fmt: skip
    return rows


def _span_rows(capture: Capture) -> Iterator[dict[str, Any]]:
    gram = capture.gram()
    samples = {kind: sample for kind in ("safety", "utility", *CONTROLS) if (sample := capture.sample(kind))}
    if gram is None or capture.version == 1 or len(samples) < 2 or "safety" not in samples:
        return
    tokens = capture.get("example_tokens")
    if tokens is None or not np.all(tokens > 0):
        return
    means = normalised(gram.sum(axis=0), tokens)
    halved = {kind: [_halves(sample, seed) for seed in range(SPLITS)] for kind, sample in samples.items()}
    if not all(len(pair) == 2 for pairs in halved.values() for pair in pairs):
        return
    # Every comparison has as many examples on either side as the smallest half.
    size = min(len(half) for pairs in halved.values() for pair in pairs for half in pair)
    comparisons = {HALVES: [(one[0], one[1]) for one in halved["safety"]]}
    for kind in samples:
        if kind != "safety":
            name = f"safety half – {kind} half"
            comparisons[name] = [(a[0], b[1]) for a, b in zip(halved["safety"], halved[kind], strict=True)]
    for name, pairs in comparisons.items():
        curves = [
            subspaces.span_overlap_curve(means, a[:size], b[:size], dimension=capture.parameters, most=max(K_SHOWN))
            for a, b in pairs
        ]
        yield from _curve_rows(name, [one.phi for one in curves], curves[0].baseline, size, None)


def _left_rows(capture: Capture) -> Iterator[dict[str, Any]]:
    safety = capture.under("safety_basis")
    for kind in ("utility", *CONTROLS):
        if capture.examples(kind) == capture.examples("safety"):
            yield from _left_curve(f"safety – {kind}", safety, capture.under(f"{kind}_basis"), capture)
    yield from _one_sample_rows(capture, safety)


def _one_sample_rows(capture: Capture, safety: dict[str, NDArray[np.float64]]) -> Iterator[dict[str, Any]]:
    measured = capture.metadata.get("phi", {})
    ranks, halves = measured.get("ranks", []), measured.get("halves", [])
    for prefix, name in ONE_SAMPLE.items():
        # (singles, ranks) or (ranks,) of each weight: the median single stands for the weight.
        found = {weight: np.median(np.atleast_2d(one), axis=0) for weight, one in capture.under(prefix).items()}
        weights = [weight for weight in found if weight in safety and found[weight].shape == (len(ranks),)]
        if not weights:
            continue
        low, median, high = np.quantile(np.array([found[weight] for weight in weights]), [0.25, 0.5, 0.75], axis=0)
        for index, k in enumerate(ranks):
            yield {
                "comparison": name, "k": k, "phi": float(median[index]), "quartile_low": float(low[index]),
                "quartile_high": float(high[index]), "matrices": len(weights),
                "baseline": float(np.median([min(1.0, k / len(safety[weight])) for weight in weights])),
                "examples": min(halves.count(0), halves.count(1)) if halves else None,
            }  # fmt: skip


def _left_curve(
    name: str, first: dict[str, NDArray[np.float64]], second: dict[str, NDArray[np.float64]], capture: Capture
) -> Iterator[dict[str, Any]]:
    curves = [
        subspaces.left_overlap_curve(first[weight], second[weight], max(K_SHOWN))
        for weight in first
        if weight in second and first[weight].shape[1] and second[weight].shape[1]
    ]
    if curves:
        baseline = np.median([one.baseline for one in curves], axis=0)
        yield from _curve_rows(name, [one.phi for one in curves], baseline, capture.examples("safety"), len(curves))


def _curve_rows(
    name: str,
    curves: list[NDArray[np.float64]],
    baseline: NDArray[np.float64],
    examples: int | None,
    matrices: int | None,
) -> Iterator[dict[str, Any]]:
    low, median, high = np.quantile(np.array(curves), [0.25, 0.5, 0.75], axis=0)
    # Once every basis has run out of columns nothing changes any more.
    rank = 1 + int(np.flatnonzero(np.diff(baseline, prepend=-1.0) > 0)[-1])
    for k in K_SHOWN:
        at = k - 1
        if k > rank:
            break
        yield {
            "comparison": name, "k": k, "phi": float(median[at]), "quartile_low": float(low[at]),
            "quartile_high": float(high[at]), "baseline": float(baseline[at]), "matrices": matrices,
            "examples": examples,
        }  # fmt: skip


def _halves(sample: Sample, seed: int) -> tuple[NDArray[np.int64], ...]:
    labels: list[object] = list(range(len(sample.rows))) if sample.clusters is None else list(sample.clusters)
    if len(set(labels)) < 2:
        return ()
    first, second = subspaces.disjoint_halves(labels, seed)
    return sample.rows[first], sample.rows[second]


def _whole_weights(by_matrix: dict[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    # The experts of a fused weight have a space each, and one norm together: their energies add.
    found: dict[str, NDArray[np.float64]] = {}
    for name, one in by_matrix.items():
        whole = name.split("[")[0]
        before = found.get(whole, np.zeros(0))
        longest = max(len(before), len(one))
        found[whole] = np.pad(before, (0, longest - len(before))) + np.pad(one, (0, longest - len(one)))
    return found


def _d_outs(capture: Capture) -> dict[str, int]:
    # The side of the basis is the output side, wherever the weight keeps it (Conv1D: its columns).
    shapes = zip(capture.names, capture.metadata["shapes"], strict=True)
    return {name: int(shape[0]) for name, shape in shapes} | {
        name.split("[")[0]: len(basis) for name, basis in capture.under("safety_basis").items()
    }
