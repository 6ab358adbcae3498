"""`geomsafe evaluate`: score a model or every weight set of a run on prompt sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    source: Annotated[str, typer.Argument(metavar="MODEL_OR_RUN", help="Hub name, model folder or run directory.")],
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            help="KIND=SOURCE or a known name; repeat it. Harmful, look-alike, utility, validation, retained or sham."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the completions (default: the run, else runs/evaluate-NAME).")
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option(help="Weight sets of a run; repeat it (default: theta_0 and all saved).")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest completion (default: the run's, else 512).")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Prompts in one batch (default: the run's, else 128).")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N prompts of each set.")] = None,
    dtype: Annotated[str | None, typer.Option(help="dtype of the weights (default: the run's, else float32).")] = None,
    device: Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda', ...")] = "auto",
    system_prompt: Annotated[str | None, typer.Option(help="System turn before every prompt.")] = None,
    chat_template: Annotated[Path | None, typer.Option(help="Jinja file, for a tokenizer without template.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with a hub model.")
    ] = False,
) -> None:
    """Generate greedily, judge, and print rates with n and their 95 % intervals."""
    from rich.console import Console

    from geomsafe.cli.tables import print_table, score_rows
    from geomsafe.evaluation import default_out
    from geomsafe.evaluation import evaluate as run_evaluation
    from geomsafe.training.progress import ScoreProgress

    folder = out if out is not None else default_out(source)
    with ScoreProgress(Console(stderr=True)) as progress:
        evaluations = run_evaluation(
            source,
            list(prompts or []),
            folder,
            weights=weights or None,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            limit=limit,
            dtype=dtype,
            device=device,
            system_prompt=system_prompt,
            chat_template=chat_template,
            trust_remote_code=trust_remote_code,
            progress=progress.update,
        )
    print_table(score_rows(evaluations))
    typer.echo(f"completions: {folder / 'evaluations'}")
