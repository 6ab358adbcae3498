"""Run directories as analyses need them: record, steps, captures, judged answers. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from geomsafe.analyses.pairing import Method
from geomsafe.analyses.pairing import Run as PairedRun
from geomsafe.errors import RecordError
from geomsafe.records import Evaluation, RunRecord, read_jsonl, read_record
from geomsafe.reports.answers import Answers, read_answers
from geomsafe.reports.captures import Capture, read_capture

DIRECT = "direct"


@dataclass(frozen=True)
class RunData:
    """A finished run: `answers` holds the verdicts of each evaluation by (weights, suite)."""

    path: Path
    record: RunRecord
    steps: list[dict[str, Any]]
    captures: list[Capture]
    answers: dict[tuple[str, str], Answers] = field(repr=False)

    @property
    def name(self) -> str:
        """The run's name."""
        return self.record.name

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self.record.config.get("seed", 0))

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods that do anything, with their options."""
        return tuple(
            Method(str(entry["name"]), dict(entry.get("options", {})))
            for entry in self.record.methods
            if entry.get("name") != "baseline"
        )

    def paired(self, id: str) -> PairedRun:
        """Return what pairing needs to know.

        Args:
            id: name of the run, unique in the analysis.
        """
        weights = {evaluation.weights for evaluation in self.record.evaluations} | set(self.record.weights)
        if not weights - {"theta_0", "theta_base"}:
            # A run whose weights were neither saved nor scored still has a last iterate with curves.
            weights.add("final")
        return PairedRun(id, self.seed, self.record.config, self.methods, tuple(sorted(weights)))

    def evaluations(self, weights: str, kind: str) -> list[Evaluation]:
        """Return the evaluations of a weight set on suites of a kind whose prompts were put as they are.

        Those under an attack are never among them, so that no rate mixes attacks: see `attacked`.

        Args:
            weights: name of the weight set.
            kind: of the suites.

        Returns:
            The evaluations, in the order of the record.
        """
        return [
            one
            for one in self.record.evaluations
            if (one.weights, one.kind) == (weights, kind) and one.attack == DIRECT
        ]

    def attacked(self, weights: str) -> list[Evaluation]:
        """Return the evaluations of a weight set under attacks, in the order of the record."""
        return [one for one in self.record.evaluations if one.weights == weights and one.attack != DIRECT]

    def completions(self, weights: str, suite: str) -> list[dict[str, Any]]:
        """Return the answers of one evaluation with their text, read now; empty where it was not run."""
        return [
            row
            for one in self.record.evaluations
            if (one.weights, one.suite) == (weights, suite)
            for row in read_jsonl(self.path / one.file)
        ]


def read_run(path: Path) -> RunData:
    """Read a finished run.

    Args:
        path: the run directory.

    Returns:
        The run.

    Raises:
        RecordError: no record, a run that is not finished, or a torn or missing file.
    """
    record = read_record(path)
    if record.status != "finished":
        raise RecordError(f"'{path}' is {record.status}: {unfinished_cause(record)}")
    return RunData(
        path,
        record,
        list(read_jsonl(path / "steps.jsonl")),
        [read_capture(file) for file in sorted((path / "captures").glob("step-*.safetensors"))],
        {(one.weights, one.suite): read_answers(path / one.file) for one in record.evaluations},
    )


def unfinished_cause(record: RunRecord) -> str:
    """Return why a run is not finished, in words."""
    if record.failure is None:
        return "interrupted or still going, continue with 'geomsafe train --resume'"
    where = [f"step {record.failure.step}"] if record.failure.step is not None else []
    where += [f"layer {record.failure.layer}"] if record.failure.layer else []
    return record.failure.cause + (f" ({', '.join(where)})" if where else "")
