"""Arms beside their comparators at equal drift: L2, then KL, then utility loss."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

from geomsafe.analyses.matching import read_curve, support_place, within_tolerance
from geomsafe.reports.comparison import compare
from geomsafe.reports.runs import RunData
from geomsafe.reports.scores import Outcome, share
from geomsafe.reports.sweep_arms import Place, Sweep, SweepArm
from geomsafe.reports.sweep_places import drift_of, line_sets, path_sets

MATCHED = [
    "condition", "arm", "comparator", "axis", "at", "rate", "other_rate", "difference", "difference_low",
    "difference_high", "p_value", "seeds", "l2_apart", "kl_apart", "utility_loss_apart", "all_matched", "reason",
]  # fmt: skip
AXES = {"l2": "distance", "kl": "kl_task", "utility_loss": "utility_loss"}
RADIAL = "radial"


class Match(NamedTuple):
    """One seed: the arm's place and outcomes, the comparator's outcomes there, and both places on the other axes."""

    at: float
    ours: list[Outcome]
    theirs: list[Outcome]
    others: dict[str, tuple[float, float]]  # axis -> arm, comparator


def matched_rows(sweep: Sweep) -> list[dict[str, Any]]:
    """Return one row an arm, comparator and axis; a reason and no difference where they cannot be compared."""
    rows = []
    for arm in sweep.arms:
        names = [*sweep.record.controls.get(arm.name, []), sweep.record.reference]
        for name in dict.fromkeys(name for name in names if name not in {None, arm.name}):
            rows += [_row(sweep, arm, str(name), axis) for axis in AXES]
        # A last iterate is the end of its own line: there is nothing to compare it with.
        if not all(place.weights in {"final", *line_sets(place.run)} for place in arm.places.values()):
            rows.append(_row(sweep, arm, RADIAL, "l2"))
    return rows


def _row(sweep: Sweep, arm: SweepArm, comparator: str, axis: str) -> dict[str, Any]:
    row: dict[str, Any] = {"condition": arm.condition, "arm": arm.name, "comparator": comparator, "axis": axis}
    tried = {seed: _match(sweep, arm, comparator, axis, seed) for seed in arm.places}
    found = {seed: one for seed, one in tried.items() if isinstance(one, Match)}
    if not found:
        reasons = dict.fromkeys(one for one in tried.values() if isinstance(one, str))
        return row | {"seeds": 0, "reason": f"not comparable: {'; '.join(reasons) or 'no finished run'}"}
    difference, _ = compare(
        {seed: one.ours for seed, one in found.items()}, {seed: one.theirs for seed, one in found.items()}
    )
    row |= {
        "at": fmean(one.at for one in found.values()),
        "rate": fmean(share(one.ours) for one in found.values()),
        "other_rate": fmean(share(one.theirs) for one in found.values()),
        "seeds": len(found),
        **_apart(list(found.values()), axis),
    }
    if difference is not None:
        row |= {
            "difference": difference.difference, "difference_low": difference.low, "difference_high": difference.high,
            "p_value": difference.p_value,
        }  # fmt: skip
    return row


def _match(sweep: Sweep, arm: SweepArm, comparator: str, axis: str, seed: int) -> Match | str:
    """Read the comparator's curve at the arm's place, prompt by prompt, or say why not."""  # noqa: DOC201
    place = arm.places[seed]
    curve = _curve(sweep, arm, comparator, seed)
    if isinstance(curve, str):
        return curve
    run, sets = curve
    at = drift_of(place.run, place.weights)[AXES[axis]]
    if at is None:
        return f"{axis} was not measured on '{place.weights}'"
    scored = {name: sweep.set_outcomes(run, name, sweep.primary) for name in sets}
    points = [(x, name) for name in sets if scored[name] and (x := drift_of(run, name)[AXES[axis]]) is not None]
    ours = {one.prompt: one for one in sweep.set_outcomes(place.run, place.weights, sweep.primary)}
    hits = [{one.prompt: one.hit for one in scored[name]} for _, name in points]
    prompts = [prompt for prompt in ours if all(prompt in one for one in hits)]
    if not prompts:
        return "no prompt that both were scored on"
    places, names = [x for x, _ in points], [name for _, name in points]
    x = support_place(axis, at, places)
    read = read_curve(x, places, [[one[prompt] for prompt in prompts] for one in hits]) if x is not None else None
    if x is None or read is None:
        return "no common support" if len(sets) > 1 else f"'{comparator}' is a point that lies elsewhere"
    theirs = [Outcome(prompt, ours[prompt].cluster, float(hit)) for prompt, hit in zip(prompts, read, strict=True)]
    return Match(at, [ours[prompt] for prompt in prompts], theirs, _others(place, run, names, places, axis, x))


def _curve(sweep: Sweep, arm: SweepArm, comparator: str, seed: int) -> tuple[RunData, list[str]] | str:
    place = arm.places[seed]
    if comparator == RADIAL:
        sets = line_sets(place.run)
        if not sets:
            return "its run has no sets on the line from theta_0 to the last iterate"
        return "it lies on that line itself" if place.weights in sets else (place.run, sets)
    other = sweep.find(arm.condition, comparator)
    if other is None or seed not in other.places:
        return f"'{comparator}' has no finished run of this seed"
    rival = other.places[seed]
    # A set made beside a run has no path of its own: it is a point, matched where it lies close enough.
    return rival.run, path_sets(rival.run) if rival.weights == "final" else [rival.weights]


def _others(
    place: Place, run: RunData, names: Sequence[str], places: Sequence[float], axis: str, x: float
) -> dict[str, tuple[float, float]]:
    found = {}
    for other, key in AXES.items():
        mine, theirs = drift_of(place.run, place.weights)[key], [drift_of(run, name)[key] for name in names]
        known = [value for value in theirs if value is not None]
        if other != axis and mine is not None and len(known) == len(theirs):
            read = read_curve(x, places, [[value] for value in known])
            if read is not None:
                found[other] = (mine, float(read[0]))
    return found


def _apart(found: Sequence[Match], axis: str) -> dict[str, Any]:
    row: dict[str, Any] = {}
    close: list[bool | None] = []
    for other in AXES:
        if other == axis:
            continue
        pairs = [one.others[other] for one in found if other in one.others]
        if len(pairs) < len(found):
            close.append(None)
            continue
        apart, reference = fmean(mine - theirs for mine, theirs in pairs), fmean(theirs for _, theirs in pairs)
        row[f"{other}_apart"] = apart
        close.append(within_tolerance(other, apart, reference))
    row["all_matched"] = False if False in close else None if None in close else True
    return row
