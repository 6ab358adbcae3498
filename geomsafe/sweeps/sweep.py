"""A sweep from its description to finished runs: plan, write it down, run, say what failed."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from geomsafe.errors import ConfigError
from geomsafe.models import find_device
from geomsafe.records import is_sweep, read_sweep, write_atomic, write_sweep
from geomsafe.sweeps.execute import Outcome, run_all
from geomsafe.sweeps.plan import RUNS, Plan, make_plan
from geomsafe.sweeps.spec import SweepSpec
from geomsafe.sweeps.watch import watched
from geomsafe.workers import Backend


@dataclass(frozen=True)
class Result:
    """What a sweep came to."""

    folder: Path
    plan: Plan
    outcomes: list[Outcome]

    @property
    def failed(self) -> list[Outcome]:
        """The runs that failed, with their causes."""
        return [one for one in self.outcomes if one.status != "finished"]


def plan_sweep(spec: SweepSpec, workers: int) -> Plan:
    """Lay out a sweep for this machine: runs that do not say how many threads they have share its cores.

    Args:
        spec: the sweep.
        workers: runs at a time.

    Returns:
        The plan.
    """
    device = find_device(str(spec.base.get("device", "auto")))
    return make_plan(spec, max(1, (os.cpu_count() or 1) // workers), device.type)


def sweep(
    spec: SweepSpec,
    out: Path,
    *,
    workers: int = 1,
    backend: Backend = "loky",
    address: str | None = None,
    retry_failed: bool = False,
    console: Console | None = None,
) -> Result:
    """Run a sweep, or what is left of it.

    Args:
        spec: the sweep.
        out: its folder; sweep.json and `runs/` go there.
        workers: runs at a time.
        backend: "loky" or "ray".
        address: of a Ray cluster; None starts one on this machine.
        retry_failed: run failed ones again.
        console: where progress goes (default: standard error).

    Returns:
        The plan and how each run ended.

    Raises:
        ConfigError: the settings of an arm are not valid, or workers or address make no sense.
        KeyboardInterrupt: Ctrl-C; runs that were under way can be resumed.
    """  # noqa: DOC502
    if workers < 1:
        raise ConfigError(f"--workers {workers}: at least one run at a time")
    if address is not None and backend != "ray":
        raise ConfigError(f"--address '{address}' is that of a Ray cluster: add --backend ray")
    # Bound to the stream itself: with one worker a run's own output, standard error, goes into its log.
    shown = console if console is not None else Console(file=sys.stderr)
    plan = plan_sweep(spec, workers)
    _write_plan(plan, out, shown)
    try:
        with watched(out / RUNS, plan.runs, shown):
            outcomes = run_all(
                plan.runs, out / RUNS, workers=workers, backend=backend, address=address, retry_failed=retry_failed
            )
    except KeyboardInterrupt:
        shown.print(f"stopped; the same command goes on with what is left of '{out}'")
        raise
    return Result(out, plan, outcomes)


def _write_plan(plan: Plan, out: Path, console: Console) -> None:
    """Write sweep.json, unless it says the same already."""  # noqa: DOC501
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out '{out}' is a file: name a folder")
    if is_sweep(out):
        before = read_sweep(out)
        if before.points == plan.record.points and before.source == plan.record.source:
            return
        if before.name != plan.record.name:
            raise ConfigError(
                f"'{out}' holds the sweep '{before.name}', not '{plan.record.name}': choose another --out"
            )
        kept = out / f"sweep-{before.created.replace(':', '')}.json"
        write_atomic(kept, before.model_dump_json(indent=1) + "\n")
        console.print(f"the plan of '{out}' has changed: the former one is kept as {kept.name}, its runs are too")
    write_sweep(out, plan.record)
