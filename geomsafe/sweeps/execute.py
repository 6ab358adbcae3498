"""Running a plan's runs, several at a time, here or on a cluster, and again from wherever it stopped.

Every worker takes one run: finished ones are skipped, started ones resumed, failed ones left alone unless a retry is
asked for. Who does the work is joblib's affair (its own processes, or Ray through joblib's registry of backends); what
has been done is read from the runs' records, by whoever looks.

A lock beside each run keeps two workers off it: those of a second sweep on the same folder, or one that outlived a
sweep which was killed.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock
from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import BrokenProcessPool
from rich.console import Console

from geomsafe.config import TrainConfig, make_config
from geomsafe.errors import GeomsafeError, RecordError
from geomsafe.records import read_record
from geomsafe.training import train
from geomsafe.workers import Backend, parallel_backend

FAILED = "failed"
DONE = "finished"

KILLED = "its worker process was killed, alone too, often for want of memory: give it more, or a smaller batch"


class Outcome(NamedTuple):
    """How one run ended: "finished" or "failed", why it failed, and whether this sweep ran it."""

    run: str
    status: str
    cause: str | None
    ran: bool


def run_all(
    runs: Mapping[str, TrainConfig],
    folder: Path,
    *,
    workers: int,
    backend: Backend = "loky",
    address: str | None = None,
    retry_failed: bool = False,
    work: Callable[[str, dict[str, Any], bool, str], Outcome] | None = None,
) -> list[Outcome]:
    """Run what is not finished.

    Args:
        runs: run id -> settings, in the order in which they are begun.
        folder: where the run directories are, `<folder>/<id>`.
        workers: runs at a time.
        backend: "loky", processes on this machine, or "ray".
        address: of the Ray cluster; None starts one on this machine.
        retry_failed: run failed ones again, from their newest checkpoint.
        work: what brings one run to its end, in a worker (default: `run_one`).

    Returns:
        One outcome a run, in the order of `runs`.

    Raises:
        BrokenProcessPool: workers cannot be kept alive, and no run was under way that could be the cause.
    """  # noqa: DOC502
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = {run: known for run in runs if (known := _known(folder / run, retry_failed)) is not None}
    job = delayed(work if work is not None else run_one)
    left = {
        run: job(str(folder / run), config.model_dump(mode="json"), retry_failed, os.getcwd())
        for run, config in runs.items()
        if run not in outcomes
    }
    with parallel_backend(backend, address, workers):
        while left:
            try:
                ended = Parallel(n_jobs=workers, batch_size=1)(left.values())
            except BrokenProcessPool as error:
                ended = _after_a_death(folder, left, error)
            outcomes |= {one.run: one for one in ended}
            left = {run: call for run, call in left.items() if run not in outcomes}
    return [outcomes[run] for run in runs]


def _after_a_death(folder: Path, left: Mapping[str, Any], error: BrokenProcessPool) -> list[Outcome]:
    """Find out what has ended, and which run it was: a worker died and took the pool with it.

    Which one is not said. So those that were under way are run again, one at a time: the one that kills its worker
    alone is a failure, and the others have lost nothing but time.

    Returns:
        Outcomes, at least one.

    Raises:
        BrokenProcessPool: workers die before they have begun anything.
    """  # noqa: DOC501, DOC502 - the error handed in is raised
    ended = [known._replace(ran=True) for run in left if (known := _known(folder / run, False)) is not None]
    suspects = [run for run in left if run_status(folder / run)[0] == "started"]
    if not ended and not suspects:
        raise error
    for run in suspects:
        try:
            # Two workers, as one would be this process.
            ended += Parallel(n_jobs=2, batch_size=1)([left[run]])
        except BrokenProcessPool:
            ended.append(Outcome(run, FAILED, KILLED, True))
    return ended


def run_one(folder: str, settings: dict[str, Any], retry_failed: bool, here: str) -> Outcome:
    """Bring one run to its end, in a worker.

    Args:
        folder: the run directory.
        settings: of the run, as JSON.
        retry_failed: whether a failed run is run again.
        here: the folder that relative paths in the settings start from; a worker of a cluster begins elsewhere.

    Returns:
        How it ended.
    """
    run = Path(folder)
    with FileLock(run.parent / f".{run.name}.lock"):
        known = _known(run, retry_failed)
        if known is not None:
            return known
        try:
            with contextlib.chdir(here):
                _train(run, settings, resume=(run / "run.json").exists())
        except Exception as error:
            # The sweep goes on: the cause is in the run's record and in the list of failed runs.
            return Outcome(run.name, FAILED, str(error) if isinstance(error, GeomsafeError) else repr(error), True)
    return Outcome(run.name, DONE, None, True)


def run_status(run: Path) -> tuple[str | None, str | None]:
    """Return the status of a run and why it failed; None where there is no record yet.

    Args:
        run: the run directory.
    """
    try:
        record = read_record(run)
    except RecordError as error:
        return (FAILED, str(error)) if (run / "run.json").exists() else (None, None)
    return record.status, record.failure.cause if record.failure is not None else None


def _known(run: Path, retry_failed: bool) -> Outcome | None:
    """Return the outcome of a run that is not to be touched, None for one that is to be run."""  # noqa: DOC201
    status, cause = run_status(run)
    if status == DONE or (status == FAILED and not retry_failed):
        return Outcome(run.name, str(status), cause, False)
    return None


def _train(run: Path, settings: dict[str, Any], resume: bool) -> None:
    log = run.parent / f"{run.name}.log"
    config = make_config(settings | {"out": str(run)})
    with log.open("a", encoding="utf-8") as stream, contextlib.redirect_stderr(stream), warnings.catch_warnings():
        warnings.simplefilter("default")
        train(config, resume=run if resume else None, console=Console(file=stream, width=120))
