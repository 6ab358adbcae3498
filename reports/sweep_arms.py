"""The arms of a sweep, as its plan names them: which weight set of which run, and what each is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from geomsafe.records import SweepRecord
from geomsafe.reports.arms import Study
from geomsafe.reports.runs import RunData
from geomsafe.reports.scores import Measure, Outcome, outcomes, run_outcomes, suite_of
from geomsafe.reports.sources import SweepSource


@dataclass(frozen=True)
class Place:
    """One point of the sweep that has a finished run: `name` is the run's in this report."""

    name: str
    run: RunData
    weights: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class SweepArm:
    """One arm under one condition; `places` by seed, without the runs that were left out."""

    condition: str
    name: str
    family: str
    places: Mapping[int, Place]

    @property
    def weights(self) -> str | None:
        """The weight set that the arm is about."""
        return " | ".join(sorted({place.weights for place in self.places.values()})) or None

    @property
    def is_plain(self) -> bool:
        """Whether these are last iterates that no method acted on."""
        return all(
            place.weights == "final" and all(method.is_shadow for method in place.run.methods)
            for place in self.places.values()
        )

    def outcomes(self, measure: Measure) -> dict[int, list[Outcome]]:
        """Return seed -> outcomes of a measure, without the seeds that were not scored on it."""
        found = {seed: run_outcomes(place.run, place.weights, measure) for seed, place in self.places.items()}
        return {seed: one for seed, one in found.items() if one}


@dataclass(frozen=True)
class Sweep:
    """A sweep's plan and the arms that it has so far."""

    record: SweepRecord
    arms: Sequence[SweepArm]
    runs: Mapping[str, RunData]
    primary: Measure

    @property
    def conditions(self) -> list[str]:
        """The conditions in the order of the plan."""
        return list(dict.fromkeys(arm.condition for arm in self.arms))

    def find(self, condition: str, name: str | None) -> SweepArm | None:
        """Return an arm, None where the plan has none of that name under that condition."""
        return next((arm for arm in self.arms if (arm.condition, arm.name) == (condition, name)), None)

    def control(self, arm: SweepArm) -> str | None:
        """Return the name of an arm's matched control, the first of its controls."""
        return next(iter(self.record.controls.get(arm.name, [])), None)

    def set_outcomes(self, run: RunData, weights: str, measure: Measure) -> list[Outcome]:
        """Return the outcomes of a run's weight set; theta_0 is the same model in all runs and may be scored in one."""
        found = run_outcomes(run, weights, measure)
        if found or weights != "theta_0":
            return found
        suite = suite_of(run, "final", measure)
        if suite is None:
            return []
        held = next(
            (other.answers[weights, suite] for other in self.runs.values() if (weights, suite) in other.answers), None
        )
        return outcomes(held, measure)[0] if held is not None else []


def make_sweep(source: SweepSource, study: Study) -> Sweep:
    """Join a sweep's plan with the runs that are there.

    Args:
        source: folder and record.
        study: its finished runs.

    Returns:
        The sweep; arms in the order of the plan, also those without a finished run.
    """
    names = {run.path.resolve(): name for name, run in study.runs.items()}
    places: dict[tuple[str, str], dict[int, Place]] = {}
    for point in source.record.points:
        seeds = places.setdefault((point.condition, point.arm), {})
        name = names.get((source.folder / point.run).resolve())
        if name is not None:
            seeds[point.seed] = Place(name, study.runs[name], point.weights, point.settings)
    arms = [
        SweepArm(condition, name, source.record.families.get(name, name), dict(sorted(found.items())))
        for (condition, name), found in places.items()
    ]
    return Sweep(source.record, arms, study.runs, study.primary)


def unscored(sweep: Sweep) -> list[str]:
    """Return a sentence for each point whose run is finished and whose weights were not scored."""
    return [
        f"{place.name} has no answers of weight set '{place.weights}' on harmful prompts: "
        f"arm '{arm.name}', seed {seed} has no number"
        for arm in sweep.arms
        for seed, place in arm.places.items()
        if not run_outcomes(place.run, place.weights, sweep.primary)
    ]
