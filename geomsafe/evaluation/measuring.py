"""Measures of a model that are no counts of verdicts: how they are stored and not taken twice.

    measurements/<weights>--<name>.jsonl   one row an item, for measures that have rows
    measurements/<weights>--<name>.json    identity and numbers, and a hash of the rows; written last

They have a folder of their own beside `evaluations/`, so that no prompt set can be called like one of them. What lies
there is used again if it has the identity that the measure would have now: weights, template, data and settings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import transformers

from geomsafe.evaluation.identity import model_sha256
from geomsafe.evaluation.score import labelled
from geomsafe.models import Loaded
from geomsafe.records import Measurement, content_sha256, read_record, write_atomic, write_jsonl, write_record

SCHEMA = "geomsafe.measurement/1"

MEASUREMENT_VERSION = 1
"""Raised when the same input would give other numbers."""

FOLDER = "measurements"

Kind = Literal["choices", "held-out", "lm-eval", "mt-bench"]


@dataclass(frozen=True)
class Work:
    """What a measure is taken of.

    Attributes:
        loaded: the model.
        weights: name of its weight set.
        folder: where measurements lie.
        batch_size: items that run together; None for each measure's own number.
        answers_together: most answers that are generated together.
        max_new_tokens: longest generated answer; None for the published one.
        seed: of sampled answers.
        system_prompt: system turn before prompts that have none.
        report: called with (done, in all).
    """

    loaded: Loaded
    weights: str
    folder: Path
    batch_size: int | None = None
    answers_together: int = 128
    max_new_tokens: int | None = None
    seed: int = 0
    system_prompt: str | None = None
    report: Callable[[int, int], None] = lambda done, total: None

    def path(self, name: str, suffix: str) -> Path:
        """Return a file of one measure, such as `<weights>--<name>.json`."""
        return self.folder / f"{self.weights}--{name}{suffix}"


@dataclass(frozen=True)
class Taken:
    """What a measure found: fields as those of `Measurement`, and its rows."""

    values: Mapping[str, float]
    errors: Mapping[str, float | None] = field(default_factory=dict)
    n: Mapping[str, int] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    higher_is_better: Mapping[str, bool] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[dict[str, Any]] | None = None


class Measure(Protocol):
    """Something that can be measured, its data at hand.

    Attributes:
        name: unique among those of one command; part of file names.
        kind: which sort.
        source: where its items come from.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def kind(self) -> Kind: ...  # noqa: D102
    @property
    def source(self) -> str: ...  # noqa: D102

    def identity(self, work: Work) -> dict[str, Any]:
        """Return what decides the numbers beside the model, as JSON values; what cannot be measured fails here."""

    def take(self, work: Work, identity: Mapping[str, Any]) -> Taken:
        """Measure.

        Args:
            work: the model and how it is run. Work in progress may be kept in `work.path(name, ".partial.jsonl")`,
                which is removed when the measurement is written.
            identity: what decides the numbers, the model included.
        """


def measure_model(
    work: Work,
    measures: Sequence[Measure],
    progress: Callable[[str, int, int], None] | None = None,
    measured: Callable[[Measurement], None] | None = None,
) -> list[Measurement]:
    """Take every measure of a model that is not there yet.

    Args:
        work: the model; `report` is set here.
        measures: what to take, names unique.
        progress: called with ("<weights>: <name>", done, in all).
        measured: called with each measurement as it is there.

    Returns:
        One measurement a measure, `file` relative to the folder that holds `measurements/`.
    """
    if not measures:
        return []
    model = _model_identity(work.loaded)
    # First all of this: what cannot be measured fails at once, not after an hour.
    identities = [{**model, "measure": measure.kind, **measure.identity(work)} for measure in measures]
    found = []
    for measure, identity in zip(measures, identities, strict=True):
        one = _one(replace(work, report=labelled(progress, f"{work.weights}: {measure.name}")), measure, identity)
        found.append(one)
        if measured is not None:
            measured(one)
    return found


def add_measurements(run: Path, measurements: Sequence[Measurement]) -> None:
    """Write measurements into a run's record, in place of those of the same weights and name.

    Args:
        run: the run directory.
        measurements: fresh ones.
    """
    if not measurements:
        return
    record = read_record(run)
    fresh = {(one.weights, one.name) for one in measurements}
    kept = [old for old in record.measurements if (old.weights, old.name) not in fresh]
    write_record(run, record.model_copy(update={"measurements": [*kept, *measurements]}))


def _one(work: Work, measure: Measure, identity: dict[str, Any]) -> Measurement:
    path, rows_path = work.path(measure.name, ".json"), work.path(measure.name, ".jsonl")
    before = _read(path, rows_path, identity)
    if before is not None:
        work.report(1, 1)
        return before
    taken = measure.take(work, identity)
    settings = {key: value for key, value in identity.items() if key not in {"model", "measure"}}
    measurement = Measurement(
        weights=work.weights,
        name=measure.name,
        kind=measure.kind,
        source=measure.source,
        values={metric: _finite(value) for metric, value in taken.values.items()},
        errors={metric: _finite(error) for metric, error in taken.errors.items()},
        n=dict(taken.n),
        counts=dict(taken.counts),
        higher_is_better=dict(taken.higher_is_better),
        settings=settings | dict(taken.settings),
        file=None if taken.rows is None else f"{work.folder.name}/{rows_path.name}",
    )
    if taken.rows is not None:
        write_jsonl(rows_path, taken.rows)
    described = {
        "schema": SCHEMA,
        "identity": identity,
        "rows_sha256": None if taken.rows is None else content_sha256(taken.rows),
        "measurement": measurement.model_dump(mode="json"),
    }
    write_atomic(path, json.dumps(described, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    work.path(measure.name, ".partial.jsonl").unlink(missing_ok=True)
    return measurement


def _read(path: Path, rows_path: Path, identity: dict[str, Any]) -> Measurement | None:
    """Return what lies there, None unless it is whole and has this identity."""
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        if described["schema"] != SCHEMA or described["identity"] != identity:
            return None
        if described["rows_sha256"] is not None:
            lines = rows_path.read_bytes().decode("utf-8").split("\n")[:-1]
            if content_sha256(json.loads(line) for line in lines) != described["rows_sha256"]:
                return None
        return Measurement.model_validate(described["measurement"])
    # Missing, torn or of another version: it is taken anew.
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _model_identity(loaded: Loaded) -> dict[str, Any]:
    return {
        "version": MEASUREMENT_VERSION,
        "model": model_sha256(loaded.model),
        "template_sha256": loaded.template_sha256,
        "dtype": str(next(loaded.model.parameters()).dtype).removeprefix("torch."),
        "device": loaded.device.type,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }


def _finite(value: float | None) -> float | None:
    # JSON has no infinity and no NaN.
    return None if value is None or not math.isfinite(value) else value
