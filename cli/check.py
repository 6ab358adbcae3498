"""`geomsafe check`: is this model measured exactly, and what will the run take? Before a long job."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from geomsafe.cli.settings import given_settings, with_config_options
from geomsafe.config import make_config

_SETTINGS = {
    "revision", "chat_template", "system_prompt", "dtype", "device", "gradient_checkpointing", "trust_remote_code",
    "lora", "data", "columns", "data_limit", "max_length", "method", "batch_size", "accumulation", "epochs",
    "max_steps", "optimizer", "seed", "threads", "probe_schedule", "probe_examples", "save_every", "save_weights_at",
    "curve_points", "out",
}  # fmt: skip


def check(
    model: Annotated[str, typer.Argument(help="Hub name, model folder or 'organism'.")] = "organism",
    rows: Annotated[int, typer.Option(min=1, help="Rows of the data to check on.")] = 4,
    **settings: Any,
) -> None:
    """Check a model on a few rows of its data, before a long job; exit code 1 where a check fails.

    Two passes must agree bit by bit, rows of a batch must not see each other, and the engine's inner products must
    equal plain autograd's. Lists tied weights and slow paths, and estimates memory, disk and time of the run that the
    same options give to `geomsafe train`. Writes nothing.
    """
    config = make_config(given_settings(settings) | {"model": model})

    from rich.console import Console

    from geomsafe.cli.tables import check_rows, cost_rows, print_table
    from geomsafe.training.checking import check as run_check
    from geomsafe.training.progress import ScoreProgress

    with ScoreProgress(Console(stderr=True), "check") as progress:
        report = run_check(config, rows=rows, progress=lambda _, done, total: progress.update(model, done, total))
    print_table(check_rows(report))
    typer.echo("")
    print_table(cost_rows(report))
    for note in report.notes:
        typer.echo(f"note: {note}")
    report.require_passed()
    typer.echo("all checks passed")


with_config_options(check, _SETTINGS)
