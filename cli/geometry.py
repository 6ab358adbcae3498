"""`geomsafe geometry`: the gradient geometry of one checkpoint, once, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from geomsafe.cli.settings import given_settings, with_config_options
from geomsafe.config import make_config

_SETTINGS = {
    "revision", "chat_template", "system_prompt", "dtype", "device", "trust_remote_code", "max_length",
    "refusal_text", "probe_batch_size", "seed", "threads",
}  # fmt: skip


def geometry(
    model: Annotated[str, typer.Argument(help="Hub name, model folder or 'organism'.")],
    safety: Annotated[
        str | None, typer.Option(help="Harmful prompts: a file, a known name or a hub id (default: the organism's).")
    ] = None,
    utility: Annotated[
        str | None, typer.Option(help="Benign conversations: a file, a known name or a hub id; nulls come from it too.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the record (default: runs/geometry-NAME).")] = None,
    examples: Annotated[int, typer.Option(min=4, help="Examples in each set.")] = 64,
    nulls: Annotated[
        bool, typer.Option("--nulls/--no-nulls", help="Measure sham, benign anchor, nulls and single examples too.")
    ] = True,
    curvature: Annotated[
        bool, typer.Option("--curvature", help="Take the safety loss's curvature along both gradients.")
    ] = False,
    **settings: Any,
) -> None:
    """Measure conflict and rank of a model's safety and utility gradients, beside their nulls.

    Writes one capture in a record that `geomsafe analyze` reads. --refusal-text measures one stated refusal on all
    harmful prompts, also where the model refuses none of them.
    """
    given = given_settings(settings) | {"model": model, "probe_examples": examples, "nulls": nulls, "evaluate": False}
    named = {"safety_data": safety, "utility_data": utility, "out": out}
    config = make_config(given | {name: value for name, value in named.items() if value is not None})

    from rich.console import Console

    from geomsafe.cli.tables import print_table
    from geomsafe.reports.checkpoint import checkpoint_summary
    from geomsafe.training.geometry import measure_checkpoint
    from geomsafe.training.progress import ScoreProgress

    with ScoreProgress(Console(stderr=True), "geometry") as progress:
        folder = measure_checkpoint(
            config, curvature=curvature, progress=lambda _, done, total: progress.update(model, done, total)
        )
    summary = checkpoint_summary(folder)
    for line in summary.lines:
        typer.echo(line)
    print_table(summary.rows)
    typer.echo(f"record: {folder}; report: geomsafe analyze {folder}")


with_config_options(geometry, _SETTINGS)
