"""The progress of a sweep, read from the records of its runs while others write them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from geomsafe.errors import RecordError
from geomsafe.records import RunRecord, read_record

EVERY = 2.0
"""Seconds between two looks."""

FITTING = 0.6
"""Share of a run that its steps are taken to be; the rest is scoring. Only the bar and its estimate depend on it."""


def share_done(run: Path) -> float:
    """Estimate how much of a run is done.

    Args:
        run: the run directory; need not exist.

    Returns:
        0 for a run that has not begun, 1 for one that has finished or failed; else by steps taken and sets scored.
    """
    try:
        record = read_record(run)
    except RecordError:
        return 0.0
    if record.status != "started":
        return 1.0
    if "final" not in record.weights:
        return FITTING * _steps_share(run, record)
    scored = len({one.weights for one in record.evaluations})
    return FITTING + (1 - FITTING) * scored / (len(record.weights) + 1)


@contextmanager
def watched(folder: Path, runs: Iterable[str], console: Console) -> Iterator[None]:
    """Show a bar over runs for the body: how many are done, how fast, how long it will take.

    Args:
        folder: where the run directories are.
        runs: their ids.
        console: where the bar is drawn.

    Yields:
        Nothing.
    """
    listed = list(runs)
    bar = Progress(
        TextColumn("runs"),
        BarColumn(),
        TextColumn("{task.fields[done]}/{task.total:.0f} · {task.fields[rate]} runs/min ·"),
        TimeElapsedColumn(),
        TextColumn("· left"),
        TimeRemainingColumn(elapsed_when_finished=False),
        console=console,
    )
    task = bar.add_task("runs", total=len(listed), done=0, rate="-")
    stop = threading.Event()
    earlier = sum(share_done(folder / run) for run in listed)

    def look() -> None:
        shares = [share_done(folder / run) for run in listed]
        elapsed = bar.tasks[0].elapsed or 0.0
        rate = f"{60 * (sum(shares) - earlier) / elapsed:.1f}" if elapsed else "-"
        bar.update(task, completed=sum(shares), done=sum(share == 1.0 for share in shares), rate=rate)

    def watch() -> None:
        while not stop.wait(EVERY):
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    with bar:
        look()
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()
            look()


def _steps_share(run: Path, record: RunRecord) -> float:
    steps = run / "steps.jsonl"
    if not record.total_steps or not steps.exists():
        return 0.0
    with steps.open("rb") as stream:
        return min(1.0, sum(1 for _ in stream) / record.total_steps)
