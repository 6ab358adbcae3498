"""The runs that a landscape has to do with, and where their saved weights lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from geomsafe.config import TrainConfig, make_config
from geomsafe.errors import ConfigError, RecordError
from geomsafe.records import RunRecord, WeightSet, is_sweep, read_record, read_sweep


@dataclass(frozen=True)
class RunPlace:
    """A finished run.

    Attributes:
        name: unique among the runs of a landscape.
        path: its directory.
        record: its record.
        config: its settings.
    """

    name: str
    path: Path
    record: RunRecord
    config: TrainConfig

    def weights(self, name: str) -> WeightSet:
        """Return a saved weight set.

        Args:
            name: "final", "ema", "step-000120", ...

        Returns:
            Its entry.

        Raises:
            RecordError: the run has no such set.
        """
        found = self.record.weights.get(name)
        if found is None:
            known = ", ".join(self.record.weights) or "none"
            raise RecordError(f"run '{self.path}' has no weights named '{name}': it has {known}")
        return found

    def folder(self, name: str) -> Path:
        """Return the folder of a saved weight set."""
        return self.path / self.weights(name).path


def read_places(paths: Sequence[Path]) -> list[RunPlace]:
    """Read runs that start from one theta_0.

    Args:
        paths: run directories; the folder of a sweep stands for its finished runs.

    Returns:
        The runs, the first being the one whose theta_0, refusals and prompts are used.

    Raises:
        ConfigError: none is given, or two have one name.
        RecordError: a run has not finished, or starts from another theta_0 than the first.
    """
    places: list[RunPlace] = []
    for path in _expanded(paths):
        record = read_record(path)
        if record.status != "finished":
            raise RecordError(f"run '{path}' is {record.status}: resume it with 'geomsafe train --resume {path}' first")
        places.append(RunPlace(path.resolve().name, path, record, make_config(record.config)))
    if not places:
        raise ConfigError("a landscape starts from a run: name a run directory of 'geomsafe train'")
    names = [place.name for place in places]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two runs are named '{twice}': rename a folder, or give one of them")
    first = places[0].record.model.get("fingerprint")
    for place in places[1:]:
        if place.record.model.get("fingerprint") != first:
            raise RecordError(
                f"runs '{places[0].path}' and '{place.path}' start from different models: a landscape has one theta_0"
            )
    return places


def _expanded(paths: Sequence[Path]) -> list[Path]:
    found: dict[Path, None] = {}
    for path in paths:
        if not is_sweep(path):
            found.setdefault(path)
            continue
        for point in read_sweep(path).points:
            run = path / point.run
            if (run / "run.json").is_file() and read_record(run).status == "finished":
                found.setdefault(run)
    return list(found)


def place_of(places: Sequence[RunPlace], wanted: str | int | None) -> RunPlace:
    """Find a run by name or by number from 1.

    Args:
        places: the runs.
        wanted: name or number; None for the first.

    Returns:
        The run.

    Raises:
        ConfigError: there is no such run.
    """
    if wanted is None:
        return places[0]
    for number, place in enumerate(places, start=1):
        if str(wanted) in {place.name, str(number)}:
            return place
    raise ConfigError(
        f"run={wanted} is none of the runs given: use a number from 1 to {len(places)}, or a name such as "
        f"'{places[0].name}'"
    )
