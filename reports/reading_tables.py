"""Tables of what was read without generating: shallow-alignment curve, refusal direction, validity of proxies.

Runs of earlier versions have no such files in `probes/`; their rows are missing and the page says not run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from geomsafe.analyses.proxies import Checkpoint, judge_proxy
from geomsafe.analyses.shallow import first_share, position_curve
from geomsafe.records import read_jsonl
from geomsafe.reports.arms import Study
from geomsafe.reports.runs import RunData
from geomsafe.reports.scores import outcomes

SHALLOW = ["key", "weights", "position", "kl", "kl_low", "kl_high", "n", "clusters"]
SHALLOW_SHARES = ["key", "weights", "first_share", "first_share_low", "first_share_high", "kl_sum", "n", "clusters"]
DIRECTIONS = [
    "key", "weights", "seeds", "block", "position", "token", "direction_norm", "direction_auroc", "random_low",
    "random_high", "null_auroc", "start_auroc", "direction_cosine", "null_cosine", "projection_harmful",
    "projection_harmless", "held_out",
]  # fmt: skip
PROXIES = [
    "proxy", "validity", "why", "auroc", "auroc_low", "auroc_high", "pairs", "proxy_rho", "checkpoints", "n",
]  # fmt: skip

BASE = "theta_base"
# Rising = less safe.
SIGNS = {"refusal_margin": -1.0, "refusal_log_odds": -1.0, "refusal_nll": 1.0}


class Source(NamedTuple):
    """An arm, or a start, with what was read of its weight set, one list of lines a run."""

    key: str
    weights: str
    runs: list[list[dict[str, Any]]]


def shallow_rows(study: Study) -> list[dict[str, Any]]:
    """Return the mean divergence of every arm from theta_0 by answer position, seeds pooled; theta_base first."""
    rows = []
    for source in _sources(study, "shallow", (BASE,)):
        for one in position_curve(*_divergences(source)):
            rows.append({
                "key": source.key, "weights": source.weights, "position": one.position, "kl": one.mean,
                "kl_low": one.low, "kl_high": one.high, "n": one.n, "clusters": one.clusters,
            })  # fmt: skip
    return rows


def shallow_share_rows(study: Study) -> list[dict[str, Any]]:
    """Return the share of the divergence that falls into the first 5 positions, seeds pooled; theta_base first."""
    rows = []
    for source in _sources(study, "shallow", (BASE,)):
        values, clusters = _divergences(source)
        found = first_share(values, clusters)
        if found is not None:
            rows.append({
                "key": source.key, "weights": source.weights, "first_share": found.rate, "first_share_low": found.low,
                "first_share_high": found.high, "kl_sum": fmean(map(sum, values)), "n": len(values),
                "clusters": len(set(clusters)),
            })  # fmt: skip
    return rows


def direction_rows(study: Study) -> list[dict[str, Any]]:
    """Return the refusal direction of every arm by layer and position, means over seeds; the starts first."""
    rows = []
    for source in _sources(study, "directions", (BASE, "theta_0")):
        sites: dict[tuple[int, int], list[dict[str, Any]]] = {}
        for lines in source.runs:
            for row in lines:
                sites.setdefault((row["layer"], row["position"]), []).append(row)
        rows += [
            {
                "key": source.key,
                "weights": source.weights,
                "seeds": len(found),
                "block": block,
                "position": position,
                "token": found[0]["token"],
                "held_out": found[0]["held_out_harmful"] + found[0]["held_out_harmless"],
                **{column: _mean(one[field] for one in found) for column, field in _SITE.items()},
            }
            for (block, position), found in sites.items()
        ]
    return rows


_SITE = {
    "direction_norm": "norm", "direction_auroc": "auroc", "random_low": "random_low", "random_high": "random_high",
    "null_auroc": "null_auroc", "start_auroc": "start_auroc", "direction_cosine": "cosine",
    "null_cosine": "null_cosine", "projection_harmful": "harmful", "projection_harmless": "harmless",
}  # fmt: skip


def proxy_rows(study: Study) -> list[dict[str, Any]]:
    """Return one row a proxy: does it rank prompts and weight sets by the primary attack success rate?"""
    rows = []
    for proxy, sign in SIGNS.items():
        checkpoints = list(_checkpoints(study, proxy, sign))
        if not checkpoints:
            continue
        found = judge_proxy(checkpoints)
        rows.append({
            "proxy": proxy, "validity": found.word, "why": found.reason, "auroc": found.separation.auroc,
            "auroc_low": found.separation.low, "auroc_high": found.separation.high, "pairs": found.separation.pairs,
            "proxy_rho": found.rho, "checkpoints": found.checkpoints, "n": found.separation.n,
        })  # fmt: skip
    return rows


def _checkpoints(study: Study, proxy: str, sign: float) -> Iterator[Checkpoint]:
    seen: set[tuple[float, ...]] = set()
    for run in study.runs.values():
        by_set: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in _lines(run, "proxies"):
            if row[proxy] is not None:
                by_set.setdefault((row["weights"], row["suite"]), []).append(row)
        for place, rows in by_set.items():
            answers = run.answers.get(place)
            hits = {one.prompt: bool(one.hit) for one in outcomes(answers, study.primary)[0]} if answers else {}
            judged = [row for row in rows if row["id"] in hits]
            risk = tuple(sign * row[proxy] for row in judged)
            # theta_0 is in every run, and some runs end at equal weights: each counts once.
            if not judged or risk in seen:
                continue
            seen.add(risk)
            yield Checkpoint(risk, [hits[row["id"]] for row in judged], [row["cluster"] for row in judged])


def _sources(study: Study, kind: str, starts: Sequence[str]) -> list[Source]:
    # A start is the same model in every run: the first that has it is taken.
    wanted = {(run, arm.weights) for arm in study.arms for run in arm.runs.values()}
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for name, run in study.runs.items():
        for row in _lines(run, kind):
            if (name, row["weights"]) in wanted or row["weights"] in starts:
                found.setdefault((name, row["weights"]), []).append(row)
    sources = []
    for start in starts:
        first = next((rows for (_, weights), rows in found.items() if weights == start), None)
        sources += [Source(start, start, [first])] if first is not None else []
    for arm in study.arms:
        places = [(run, arm.weights) for run in arm.runs.values()]
        sources.append(Source(study.name(arm), arm.weights, [found[place] for place in places if place in found]))
    return sources


def _divergences(source: Source) -> tuple[list[list[float]], list[str]]:
    rows = [row for lines in source.runs for row in lines]
    return [row["kl"] for row in rows], [row["cluster"] for row in rows]


def _lines(run: RunData, kind: str) -> Iterator[dict[str, Any]]:
    path = run.path / "probes" / f"{kind}.jsonl"
    yield from read_jsonl(path) if path.exists() else ()


def _mean(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
