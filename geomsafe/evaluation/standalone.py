"""`evaluate`: score a model, or every set of weights of a run, on its own.

A run's record gains the new evaluations when they lie in the run's own directory, so that
`geomsafe analyze` sees them. Settings that are not given are those of the run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from geomsafe.config import TrainConfig, make_config
from geomsafe.errors import ConfigError, RecordError
from geomsafe.evaluation.engines import LocalEngine
from geomsafe.evaluation.judges import JudgeSpec
from geomsafe.evaluation.later import finish, perplexity_judge
from geomsafe.evaluation.measure_spec import MeasureSpec
from geomsafe.evaluation.measures import make_measures
from geomsafe.evaluation.measuring import FOLDER, Work, add_measurements, measure_model
from geomsafe.evaluation.request import PERPLEXITY, Request
from geomsafe.evaluation.score import START, Progress, Scored, evaluate_engine
from geomsafe.evaluation.served import score_server
from geomsafe.evaluation.suite_file import SuiteSpec, read_suite, suites_of
from geomsafe.evaluation.suites import slug, suites_for
from geomsafe.models import Loaded, load_model, no_loading_bars
from geomsafe.records import Evaluation, Measurement, RunRecord, content_sha256, read_record, write_record

MODEL = "model"
"""What the weights of a model that is no run are called: whether they are a start is not known."""


def evaluate(
    source: str | Path,
    prompts: Sequence[str] = (),
    out: Path | None = None,
    *,
    suite: str | None = None,
    judges: Sequence[JudgeSpec] = (),
    weights: Sequence[str] | None = None,
    whole_answers: bool = False,
    leave_out_long: bool = False,
    base_url: str | None = None,
    progress: Progress | None = None,
    measures: MeasureSpec | None = None,
    measured: Callable[[Measurement], None] | None = None,
    **given: Any,
) -> list[Evaluation]:
    """Generate, judge and store.

    Settings that are left out are those of the suite file, then of the run, then the defaults of `geomsafe train`.

    Args:
        source: a run directory, a model folder, "organism" or a hub name; with `base_url` the server's name for it.
        prompts: "kind=source" or known names; none = the run's, or the organism's own.
        out: where `evaluations/` goes (default: `default_out(source)`).
        suite: "quick", "full" or a suite file, in place of `prompts`.
        judges: judges of refusal where the suite names none (default: the usual keyword lists).
        weights: sets of weights of a run (default: theta_0 and all that were saved).
        whole_answers: let every answer run to its end, also where the verdicts are settled before.
        leave_out_long: leave out prompts that fill the model's context, and count them, instead of refusing the set.
        base_url: of an OpenAI-compatible server that answers in place of a model loaded here.
        progress: called as prompts are done.
        measures: what is measured beside prompt sets; without prompts and suite, only this is done.
        measured: called with each measurement as it is there.
        given: of `request.SETTINGS`; None means not given.

    Returns:
        One evaluation a set of weights and suite; `file` is relative to `out`.

    Raises:
        ConfigError: `weights` or a judge that needs theta_0 is given for what is no run.
    """
    taken: list[Measurement] = []

    def keep(measurement: Measurement) -> None:
        taken.append(measurement)
        if measured is not None:
            measured(measurement)

    asked = Request(
        tuple(prompts),
        suite,
        tuple(judges),
        whole_answers,
        leave_out_long,
        {name: value for name, value in given.items() if value is not None},
        tuple(make_measures(measures, suite, given.get("limit"))),
        keep,
    )
    asked.check()
    if PERPLEXITY in judges and (base_url is not None or not is_run(source)):
        raise ConfigError("judge 'perplexity' asks theta_0 of a run how likely an answer is: score a run")
    folder = out if out is not None else default_out(source)
    if base_url is not None:
        return finish(folder, score_server(str(source), base_url, MODEL, asked, folder, progress), None, progress)
    if not is_run(source):
        if weights is not None:
            raise ConfigError(f"'{source}' is no run directory, so it has no weights named {', '.join(weights)}")
        config = make_config({"model": str(source)} | asked.config())
        return finish(folder, _score(load_scored(config), config, asked, folder, MODEL, progress), None, progress)
    run = Path(source)
    record = read_record(run)
    scored: list[Scored] = []
    for name, config in _weight_sets(run, record, asked.config(), weights).items():
        loaded = load_scored(config)
        if name == START and config.dtype == record.config.get("dtype"):
            _check_same_start(record, loaded)
        fresh = _score(loaded, config, asked, folder, name, progress)
        if folder.resolve() == run.resolve():
            # At once: rows and record are not to disagree for longer than they must.
            add_to_record(run, [one.stored.evaluation for one in fresh])
        scored += fresh
        # Else the next model would be loaded beside this one.
        del loaded
    perplexity = None
    if PERPLEXITY in judges:
        start = make_config(record.config | asked.config())
        perplexity = perplexity_judge(folder, lambda: load_scored(start), record, start.system_prompt)
    evaluations = finish(folder, scored, perplexity, progress)
    if folder.resolve() == run.resolve():
        add_to_record(run, evaluations)
        add_measurements(run, taken)
    return evaluations


def is_run(source: str | Path) -> bool:
    """Return whether `source` is a run directory."""
    return (Path(source) / "run.json").is_file()


def default_out(source: str | Path) -> Path:
    """Return where evaluations go when no folder is named: a run's own, else runs/evaluate-<name>."""
    if is_run(source):
        return Path(source)
    name = str(source)
    # Two models may have one last name: "a/model" and "b/model".
    which = f"-{content_sha256([name])[:8]}" if re.search(r"[/\\\\]", name) else ""
    return Path("runs") / f"evaluate-{slug(name)}{which}"


def load_scored(config: TrainConfig) -> Loaded:
    """Load the model that settings name, as it is scored: whole, without new adapters, its weights frozen.

    Args:
        config: the settings.

    Returns:
        The model.
    """
    with no_loading_bars():
        return load_model(
            config.model,
            revision=config.revision,
            dtype=config.dtype,
            device=config.device,
            chat_template=config.chat_template,
            trust_remote_code=config.trust_remote_code,
            training=False,
        )


def _weight_sets(
    run: Path, record: RunRecord, changed: dict[str, Any], weights: Sequence[str] | None
) -> dict[str, TrainConfig]:
    """Return the settings under which each set of weights is loaded and scored.

    Raises:
        RecordError: the run has not finished, or has no weights of a name.
    """
    if record.status == "started":
        raise RecordError(f"run '{run}' has not finished: resume it with 'geomsafe train --resume {run}' first")
    start = make_config(record.config | changed)
    known = {START: start}
    for name, saved in record.weights.items():
        # A saved folder has the template of the run in it, whatever became of the file it came from.
        own = {"model": str(run / saved.path), "revision": None, "chat_template": changed.get("chat_template")}
        known[name] = make_config(start.model_dump() | own)
    for name in weights or ():
        if name not in known:
            raise RecordError(f"run '{run}' has no weights named '{name}': it has {', '.join(known)}")
    return {name: config for name, config in known.items() if weights is None or name in weights}


def _check_same_start(record: RunRecord, loaded: Loaded) -> None:
    """Compare theta_0 with what the run started from.

    Raises:
        RecordError: the model's weights have changed since.
    """
    if record.model.get("fingerprint") not in {None, loaded.fingerprint}:
        raise RecordError(f"'{loaded.source}' is no longer the model that run '{record.name}' started from: restore it")


def _score(
    loaded: Loaded, config: TrainConfig, asked: Request, folder: Path, name: str, progress: Progress | None
) -> list[Scored]:
    """Return the evaluations of one model.

    Raises:
        ConfigError: there is nothing to score it on.
    """
    spec = read_suite(asked.suite, loaded.world is not None) if asked.suite is not None else None
    if spec is not None:
        suites = suites_of(spec, loaded.world, loaded.source)
    elif asked.measures and not asked.prompts:
        suites = []
    else:
        suites = suites_for(loaded, config.eval_prompts, config.data)
    if not suites and not asked.measures:
        raise ConfigError(f"nothing to score '{loaded.source}' on: name prompts, as in '--prompts harmful=FILE'")
    engine = LocalEngine(
        loaded,
        asked.setting("max_new_tokens", spec, config.max_new_tokens),
        config.eval_batch_size,
        config.system_prompt,
        asked.choosing(spec),
        asked.leave_out_long,
    )
    scored = evaluate_engine(
        engine,
        suites,
        folder,
        name,
        limit=config.eval_limit,
        judges=asked.refusal_judges,
        whole_answers=asked.whole_answers,
        progress=progress,
    )
    _measure(loaded, config, asked, spec, folder / FOLDER, name, progress)
    return scored


def _measure(
    loaded: Loaded,
    config: TrainConfig,
    asked: Request,
    spec: SuiteSpec | None,
    folder: Path,
    name: str,
    progress: Progress | None,
) -> None:
    work = Work(
        loaded,
        name,
        folder,
        batch_size=asked.given.get("batch_size"),
        answers_together=config.eval_batch_size,
        max_new_tokens=asked.setting("max_new_tokens", spec, None),
        seed=asked.setting("seed", spec, 0),
        system_prompt=config.system_prompt,
    )
    measure_model(work, asked.measures, progress, asked.measured)


def add_to_record(run: Path, evaluations: Sequence[Evaluation]) -> None:
    """Write evaluations into a run's record, in place of those of the same weights and suite.

    Args:
        run: the run directory.
        evaluations: fresh ones.
    """
    record = read_record(run)
    fresh = {(evaluation.weights, evaluation.suite) for evaluation in evaluations}
    kept: list[Any] = [old for old in record.evaluations if (old.weights, old.suite) not in fresh]
    write_record(run, record.model_copy(update={"evaluations": [*kept, *evaluations]}))
