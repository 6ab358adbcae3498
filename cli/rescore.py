"""`geomsafe rescore`: judge stored completions again, without the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def rescore(
    folder: Annotated[Path, typer.Argument(metavar="RUN_OR_FOLDER", help="A run, or what `evaluate` wrote.")],
    judge: Annotated[
        list[str] | None, typer.Option(help="A further judge: a name or a YAML file; repeat it. See docs/judges.md.")
    ] = None,
) -> None:
    """Judge every stored completion again; the same judges give the same numbers."""
    from rich.console import Console

    from geomsafe.cli.tables import print_table, score_rows
    from geomsafe.evaluation import rescore as run_rescore
    from geomsafe.training.progress import ScoreProgress

    with ScoreProgress(Console(stderr=True), "judge") as progress:
        evaluations = run_rescore(folder, list(judge or []), progress.update)
    print_table(score_rows(evaluations, folder))
