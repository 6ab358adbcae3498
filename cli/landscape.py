"""`geomsafe landscape`: scores around theta_0, along directions or over a plane."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def landscape(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Run directories from one theta_0, or the folder of a sweep."),
    ],
    axes: Annotated[
        str | None, typer.Option(metavar="A[,B]", help="One direction, or two for a plane, as in 'finetune,random'.")
    ] = None,
    lines: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="Directions walked one by one, as in 'finetune,random:count=10'."),
    ] = None,
    visage: Annotated[
        int | None,
        typer.Option(
            metavar="COUNT", min=1, help="VISAGE at its authors' settings, over so many random directions (theirs: 1)."
        ),
    ] = None,
    grid: Annotated[
        str | None, typer.Option(metavar="adaptive|N|NxM", help="Points of each axis, or 'adaptive' (the default).")
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(metavar="SCORE,...", help="refusal (the default), asr, over-refusal, utility, sham."),
    ] = None,
    prompts: Annotated[int | None, typer.Option(min=1, help="Prompts of each set (default 100).")] = None,
    reach: Annotated[
        float | None, typer.Option(min=0, help="How far to go from theta_0, as a fraction of its norm.")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(min=0, help="How near an adaptive grid comes to each edge, in the same unit.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the landscape (default: its directions).")] = None,
    out: Annotated[Path | None, typer.Option(help="Its folder (default: the first run's landscape/NAME).")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Points at a time, each worker with a model of its own.")] = 1,
    backend: Annotated[Literal["loky", "ray"], typer.Option(help="Processes on this machine, or Ray.")] = "loky",
    address: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster (default: one on this machine).")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer in tokens (default 64; VISAGE 512).")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Most prompts in one batch.")] = None,
    device: Annotated[str | None, typer.Option(help="'cpu', 'cuda', ... (default: the run's).")] = None,
) -> None:
    """Find the edge of the region around theta_0 in which the model stays safe.

    Directions: finetune, ema, alignment, random, safety-gradient, utility-gradient, conflict, hessian, pca, each with
    options as in 'random:seed=3,norm=row'. Coordinates are distances from theta_0 as a fraction of its norm. Points
    that are there already are not scored again: the same command goes on where it stopped. 'geomsafe analyze' then
    shows edges, widths and figures.
    """
    from rich.console import Console

    from geomsafe.cli.tables import print_table
    from geomsafe.landscape import Asked, make_landscape
    from geomsafe.reports.landscape_summary import edge_summary
    from geomsafe.training.progress import ScoreProgress

    asked = Asked(
        axes=axes,
        lines=lines,
        visage=visage,
        grid=grid,
        scores=None if score is None else [one.strip() for one in score.split(",") if one.strip()],
        prompts=prompts,
        reach=reach,
        tolerance=tolerance,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    with ScoreProgress(Console(stderr=True), "landscape") as progress:
        folder = make_landscape(
            runs,
            asked,
            name=name,
            out=out,
            workers=workers,
            backend=backend,
            address=address,
            device=device,
            progress=progress.update,
        )
    said = edge_summary(folder)
    for line in said.lines:
        typer.echo(line)
    print_table(said.rows)
    typer.echo(f"landscape: {folder}; figures: geomsafe analyze {' '.join(map(str, runs))}")
