"""`geomsafe evaluate`: score models, or the weight sets of a run, on prompt sets."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class Engine(StrEnum):
    """What answers."""

    local = "local"
    openai = "openai"


def evaluate(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="MODEL_OR_RUN", help="Hub name, model folder or run directory; two with --paired."),
    ],
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            help="KIND=SOURCE or a known name; repeat it. Harmful, look-alike, utility, validation, retained or sham."
        ),
    ] = None,
    suite: Annotated[
        str | None, typer.Option(metavar="quick|full|FILE", help="Sets, attacks and judges from a YAML file.")
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(help="A judge of refusal: a name or a YAML file; repeat it (default: keyword-29, keyword-19)."),
    ] = None,
    choices: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Multiple-choice items, by log-likelihood; repeat it.")
    ] = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option(metavar="SOURCE", help="Loss on conversations, as named for 'train --data'; repeat it."),
    ] = None,
    lm_eval: Annotated[
        str | None, typer.Option(metavar="TASK,TASK", help="Tasks of lm-evaluation-harness, with commas between.")
    ] = None,
    lm_eval_path: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Task files of your own, for --lm-eval.")
    ] = None,
    mt_bench: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="MT-Bench's published files; needs the judge below.")
    ] = None,
    judge_url: Annotated[str | None, typer.Option(help="Server that rates MT-Bench, http://HOST:PORT/v1.")] = None,
    judge_model: Annotated[str | None, typer.Option(help="Its model.")] = None,
    paired: Annotated[
        bool, typer.Option("--paired", help="Compare two models prompt by prompt, by cluster permutation.")
    ] = False,
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Compare across different templates or system prompts.")
    ] = False,
    engine: Annotated[
        Engine, typer.Option(help="'local' loads the model; 'openai' asks a server that speaks OpenAI's protocol.")
    ] = Engine.local,
    base_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Of the server, as in http://localhost:8000/v1.")
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
    temperature: Annotated[float | None, typer.Option(min=0, help="0 is greedy, the default.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Share of probability that may be drawn from (default 1).")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of sampled answers (default 0).")] = None,
    whole_answers: Annotated[
        bool, typer.Option("--whole-answers", help="Let answers run on where the keyword verdicts are settled.")
    ] = False,
    leave_out_long: Annotated[
        bool, typer.Option("--leave-out-long", help="Leave out prompts that fill the context, and count them.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Most prompts in one batch (default: the run's, else 128).")
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
    """Generate, judge, and print rates with their 95 % intervals."""
    settings = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "batch_size": batch_size,
        "limit": limit,
        "dtype": dtype,
        "device": device,
        "system_prompt": system_prompt,
        "chat_template": chat_template,
        "trust_remote_code": trust_remote_code or None,
    }
    options: dict[str, Any] = {
        "suite": suite,
        "judges": list(judge or []),
        "weights": weights or None,
        "whole_answers": whole_answers,
        "leave_out_long": leave_out_long,
        "base_url": base_url,
    }
    options["measures"] = _measures(
        choices or [], held_out or [], lm_eval, lm_eval_path, mt_bench, judge_url, judge_model
    )
    _check(sources, paired, out)
    _check_engine(engine, base_url)
    scored = [_score(source, list(prompts or []), out, options | settings) for source in sources]
    if paired:
        _compare(sources, scored, allow_mixed)


def _measures(*options: Any) -> Any:
    # Not at the head of the file: it imports torch.
    from geomsafe.evaluation.measure_spec import asked_measures

    return asked_measures(*options)


def _check(sources: list[str], paired: bool, out: Path | None) -> None:
    """Refuse what two sources do not go with.

    Raises:
        ConfigError: two models without --paired, or one folder for both.
    """
    from geomsafe.errors import ConfigError

    if paired and len(sources) != 2:
        raise ConfigError(f"--paired compares two models, {len(sources)} given: name both")
    if not paired and len(sources) > 1:
        raise ConfigError("several models are scored one by one: name one, or two with --paired")
    if paired and out is not None:
        raise ConfigError("--out is one folder and --paired scores two models: leave it out")


def _check_engine(engine: Engine, base_url: str | None) -> None:
    """Refuse a server without an address and an address without a server.

    Raises:
        ConfigError: one is given and the other is not.
    """
    from geomsafe.errors import ConfigError

    if engine is Engine.openai and base_url is None:
        raise ConfigError("--engine openai needs the server's address: add --base-url, as in http://localhost:8000/v1")
    if engine is Engine.local and base_url is not None:
        raise ConfigError("--base-url is of a server: add --engine openai, or leave it out")


def _score(source: str, prompts: list[str], out: Path | None, options: dict[str, Any]) -> tuple[Path, list[Any]]:
    from rich.console import Console

    from geomsafe.cli.tables import measurement_rows, print_table, score_rows
    from geomsafe.evaluation import default_out
    from geomsafe.evaluation import evaluate as run_evaluation
    from geomsafe.training.progress import ScoreProgress

    folder = out if out is not None else default_out(source)
    measurements: list[Any] = []
    with ScoreProgress(Console(stderr=True)) as progress:
        evaluations = run_evaluation(
            source, prompts, folder, progress=progress.update, measured=measurements.append, **options
        )
    if evaluations:
        print_table(score_rows(evaluations, folder))
        _say_what_was_left_out(evaluations)
        typer.echo(f"completions: {folder / 'evaluations'}")
    if measurements:
        print_table(measurement_rows(measurements))
        typer.echo(f"measurements: {folder / 'measurements'}")
    return folder, evaluations


def _say_what_was_left_out(evaluations: list[Any]) -> None:
    for one in evaluations:
        if one.settings.get("left_out"):
            typer.echo(f"{one.weights}: {one.suite}: {one.settings['left_out']} prompts fill the context, left out")


def _compare(sources: list[str], scored: list[tuple[Path, list[Any]]], allow_mixed: bool) -> None:
    """Print the paired differences.

    Raises:
        ConfigError: a run was scored with several sets of weights.
    """
    from geomsafe.cli.tables import paired_rows, print_table
    from geomsafe.errors import ConfigError
    from geomsafe.reports.paired import Side, paired_scores

    for source, (_, evaluations) in zip(sources, scored, strict=True):
        if not evaluations:
            raise ConfigError(f"--paired compares answers to prompts, and '{source}' was only measured: add --prompts")
        names = dict.fromkeys(one.weights for one in evaluations)
        if len(names) > 1:
            raise ConfigError(
                f"'{source}' has weights {', '.join(names)}: choose one to compare, as in --weights final"
            )
    called = ["A", "B"] if sources[0] == sources[1] else sources
    first, second = (
        Side(name, folder, evaluations) for name, (folder, evaluations) in zip(called, scored, strict=True)
    )
    typer.echo(f"\n{first.name} against {second.name}, prompt by prompt:")
    print_table(paired_rows(paired_scores(first, second, allow_mixed), "first", "second"))
