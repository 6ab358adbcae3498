"""`geomsafe sweep`: many runs of one design, and the report that compares them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from geomsafe.errors import ConfigError


def parse_seeds(text: str) -> list[int]:
    """Read seeds off the command line.

    Args:
        text: whole numbers with spaces or commas between them.

    Returns:
        The seeds, each once.

    Raises:
        ConfigError: something else stands there.
    """
    parts = text.replace(",", " ").split()
    if not parts or not all(part.isdecimal() for part in parts):
        raise ConfigError(f"--seeds '{text}': write whole numbers, as in '0 1 2'")
    return list(dict.fromkeys(map(int, parts)))


def sweep(
    file: Annotated[Path | None, typer.Argument(metavar="[SWEEP.yaml]", help="What to run.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="A sweep that comes with geomsafe: paper-a, paper-b, ema-controls.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the sweep (default: runs/NAME).")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds in place of the sweep's own, as in '0 1 2'.", metavar="SEEDS")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    backend: Annotated[Literal["loky", "ray"], typer.Option(help="Processes on this machine, or Ray.")] = "loky",
    address: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster (default: one on this machine).")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed runs again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be run, and stop.")] = False,
    report: Annotated[bool, typer.Option(help="Write the report when all runs have ended.")] = True,
) -> None:
    """Run a grid, random draws or named arms over seeds, and compare them.

    Runs are named by the hash of what decides them: finished ones are skipped, and a sweep that was killed goes on
    with the same command. Arms that differ only in methods that leave training alone share one fine-tune.
    """  # noqa: DOC501 - the help shows this text
    if (file is None) == (preset is None):
        raise ConfigError("give either a SWEEP.yaml or --preset NAME")

    from geomsafe.cli.tables import plan_rows, print_table
    from geomsafe.sweeps import load_preset, load_sweep, plan_sweep
    from geomsafe.sweeps import sweep as run_sweep

    spec = load_sweep(file) if file is not None else load_preset(str(preset))
    if seeds is not None:
        spec = spec.model_copy(update={"seeds": parse_seeds(seeds)})
    folder = out if out is not None else Path("runs") / spec.name
    if dry_run:
        plan = plan_sweep(spec, workers)
        print_table(plan_rows(plan.record))
        typer.echo(f"{len(plan.record.points)} points from {len(plan.runs)} runs, into {folder}")
        return
    result = run_sweep(
        spec,
        folder,
        workers=workers,
        backend=backend,
        address=address,
        retry_failed=retry_failed,
    )
    for one in result.failed:
        typer.echo(f"failed: {folder / 'runs' / one.run}: {one.cause}", err=True)
    typer.echo(f"sweep: {folder} ({len(result.outcomes) - len(result.failed)} of {len(result.outcomes)} runs finished)")
    if report and len(result.failed) < len(result.outcomes):
        from geomsafe.reports import analyze

        typer.echo(f"report: {analyze([folder], folder / 'report')}")
    if result.failed:
        typer.echo("run the same command with --retry-failed to try failed runs again", err=True)
        raise typer.Exit(1)
