"""`geomsafe analyze`: run directories in, analysis.json, tables and report.html out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def analyze(
    runs: Annotated[list[Path], typer.Argument(help="Run directories of `geomsafe train`, or the folder of a sweep.")],
    out: Annotated[Path, typer.Option(help="Folder for report.html, analysis.json and the tables.")] = Path("report"),
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Compare runs of different models, templates or prompt sets.")
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write figures as files too (pip install geomsafe[images])."),
    ] = None,
    which: Annotated[str, typer.Option(metavar="PATTERN", help="Which figures, as in 'landscape-*'.")] = "*",
    image_format: Annotated[Literal["svg", "png", "pdf"], typer.Option(help="Format of the files.")] = "svg",
) -> None:
    """Compare runs: distances, conflicts, spectra, attack success, and one HTML report. Needs no model.

    The folder of a sweep stands for its runs, which are then compared as its plan says.
    """
    import json

    from geomsafe.cli.tables import print_table
    from geomsafe.reports import analyze as run_analysis
    from geomsafe.reports import summary_table

    report = run_analysis(runs, out, allow_mixed=allow_mixed, images=images, which=which, kind=image_format)
    print_table(summary_table(json.loads((out / "analysis.json").read_text(encoding="utf-8"))))
    typer.echo(f"report: {report}")
