"""Which run directories are analysed: those given, and those of a sweep; what is left out, and why."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from geomsafe.errors import RecordError
from geomsafe.records import SweepRecord, is_sweep, read_record, read_sweep
from geomsafe.reports.runs import RunData, read_run, unfinished_cause

LEFT_OUT = ["run", "path", "status", "cause"]
MOST_CAUSES = 3


class SweepSource(NamedTuple):
    """The folder of a sweep and its record."""

    folder: Path
    record: SweepRecord


class Sources(NamedTuple):
    """Finished runs by their unique name, rows of the table of runs left out, and the sweep if one was given."""

    runs: dict[str, RunData]
    left_out: list[dict[str, Any]]
    sweep: SweepSource | None


def read_sources(paths: Sequence[Path]) -> Sources:
    """Read run directories and the runs of a sweep's folder.

    Args:
        paths: run directories, and at most one folder of a sweep.

    Returns:
        What was found.

    Raises:
        RecordError: no finished run, a broken one, or two sweeps.
    """
    sweep, folders = _expand(paths)
    planned = {(sweep.folder / point.run).resolve() for point in sweep.record.points} if sweep else set()
    runs, left_out = [], []
    for path in folders:
        if path in planned and not (path / "run.json").exists():
            cause = "not begun, there is no run.json: continue the sweep"
            left_out.append({"run": path.name, "path": shown_path(path), "status": "missing", "cause": cause})
            continue
        record = read_record(path)
        if record.status == "finished":
            runs.append(read_run(path))
        else:
            cause = unfinished_cause(record)
            left_out.append({"run": record.name, "path": shown_path(path), "status": record.status, "cause": cause})
    if not runs:
        raise RecordError(f"no finished run to analyse: {_causes(left_out) or 'no run directory was given'}")
    return Sources(_named(runs), left_out, sweep)


def shown_path(path: Path) -> str:
    """Return a path as short as it can be named from here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _expand(paths: Sequence[Path]) -> tuple[SweepSource | None, list[Path]]:
    sweep: SweepSource | None = None
    folders: list[Path] = []
    for path in dict.fromkeys(path.resolve() for path in paths):
        if not is_sweep(path):
            folders.append(path)
            continue
        if sweep is not None:
            raise RecordError(
                f"'{sweep.folder}' and '{path}' are both sweeps: their arms are not one plan, analyse them apart"
            )
        sweep = SweepSource(path, read_sweep(path))
        folders += [(path / point.run).resolve() for point in sweep.record.points]
    return sweep, list(dict.fromkeys(folders))


def _named(runs: Sequence[RunData]) -> dict[str, RunData]:
    # Folders may share their last name, as in seed-0/careless and seed-1/careless.
    twice = {name for name, count in Counter(run.name for run in runs).items() if count > 1}
    return {"/".join(run.path.resolve().parts[-2:]) if run.name in twice else run.name: run for run in runs}


def _causes(left_out: Sequence[dict[str, Any]]) -> str:
    shown = [f"{row['run']} {row['status']}, {row['cause']}" for row in left_out[:MOST_CAUSES]]
    more = [f"{len(left_out) - MOST_CAUSES} more"] if len(left_out) > MOST_CAUSES else []
    return "; ".join(shown + more)
