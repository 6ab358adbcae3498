"""`evaluate`: score a model, or every set of weights of a run, on its own.

A run's record gains the new evaluations when they lie in the run's own directory, so that
`geomsafe analyze` sees them. Settings that are not given are those of the run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geomsafe.config import TrainConfig, make_config
from geomsafe.errors import ConfigError, RecordError
from geomsafe.evaluation.choosing import Choosing
from geomsafe.evaluation.engines import LocalEngine
from geomsafe.evaluation.judges import JudgeSpec, named_judge
from geomsafe.evaluation.judging import judge_later
from geomsafe.evaluation.measure_spec import MeasureSpec
from geomsafe.evaluation.measures import make_measures
from geomsafe.evaluation.measuring import FOLDER, Measure, Work, add_measurements, measure_model
from geomsafe.evaluation.score import START, Progress, Scored, evaluate_engine
from geomsafe.evaluation.suite_file import SuiteSpec, read_suite, suites_of
from geomsafe.evaluation.suites import parse_suite, slug, suites_for
from geomsafe.evaluation.verdicts import BatchJudge
from geomsafe.models import Loaded, load_model, no_loading_bars
from geomsafe.records import Evaluation, Measurement, RunRecord, read_record, write_record

SETTINGS: dict[str, str | None] = {
    "max_new_tokens": "max_new_tokens",
    "batch_size": "eval_batch_size",
    "limit": "eval_limit",
    "dtype": "dtype",
    "device": "device",
    "system_prompt": "system_prompt",
    "chat_template": "chat_template",
    "trust_remote_code": "trust_remote_code",
    "temperature": None,
    "top_p": None,
    "seed": None,
}
"""What may be given beside prompts and judges, and the field of a run's settings that it changes."""

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
    progress: Progress | None = None,
    measures: MeasureSpec | None = None,
    measured: Callable[[Measurement], None] | None = None,
    **given: Any,
) -> list[Evaluation]:
    """Generate, judge and store.

    Settings that are left out are those of the suite file, then of the run, then the defaults of `geomsafe train`.

    Args:
        source: a run directory, a model folder, "organism" or a hub name.
        prompts: "kind=source" or known names; none = the run's, or the organism's own.
        out: where `evaluations/` goes (default: `default_out(source)`).
        suite: "quick", "full" or a suite file, in place of `prompts`.
        judges: judges of refusal where the suite names none (default: the usual keyword lists).
        weights: sets of weights of a run (default: theta_0 and all that were saved).
        whole_answers: let every answer run to its end, also where the verdicts are settled before.
        progress: called as prompts are done.
        measures: what is measured beside prompt sets; without prompts and suite, only this is done.
        measured: called with each measurement as it is there.
        given: of `SETTINGS`; None means not given.

    Returns:
        One evaluation a set of weights and suite; `file` is relative to `out`.

    Raises:
        ConfigError: `weights` is given for what is no run, or prompts beside a suite, or a setting is unknown.
    """
    unknown = sorted(set(given) - set(SETTINGS))
    if unknown:
        raise ConfigError(f"setting '{unknown[0]}' is unknown: choose from {', '.join(SETTINGS)}")
    if suite is not None and prompts:
        raise ConfigError("prompts are named twice, by a suite and one by one: write them all into the suite file")
    for text in prompts:
        # A slip of the pen should show before a model is loaded.
        parse_suite(text)
    for judge in judges:
        named_judge(judge)
    taken: list[Measurement] = []

    def keep(measurement: Measurement) -> None:
        taken.append(measurement)
        if measured is not None:
            measured(measurement)

    asked = _Asking(
        suite,
        tuple(judges),
        whole_answers,
        {name: value for name, value in given.items() if value is not None},
        tuple(make_measures(measures, suite, given.get("limit"))),
        bool(prompts),
        keep,
    )
    folder = out if out is not None else default_out(source)
    changed = asked.config() | ({"eval_prompts": list(prompts)} if prompts else {})
    if not is_run(source):
        if weights is not None:
            raise ConfigError(f"'{source}' is no run directory, so it has no weights named {', '.join(weights)}")
        config = make_config({"model": str(source)} | changed)
        return _finish(folder, _score(load_scored(config), config, asked, folder, MODEL, progress), progress)
    run = Path(source)
    record = read_record(run)
    scored: list[Scored] = []
    for name, config in _weight_sets(run, record, changed, weights).items():
        loaded = load_scored(config)
        if name == START and config.dtype == record.config.get("dtype"):
            _check_same_start(record, loaded)
        scored += _score(loaded, config, asked, folder, name, progress)
        # Else the next model would be loaded beside this one.
        del loaded
    evaluations = _finish(folder, scored, progress)
    if folder.resolve() == run.resolve():
        add_to_record(run, evaluations)
        add_measurements(run, taken)
    return evaluations


@dataclass(frozen=True)
class _Asking:
    """What a user asked for, apart from the model."""

    suite: str | None
    judges: tuple[JudgeSpec, ...]
    whole_answers: bool
    given: dict[str, Any]
    measures: tuple[Measure, ...]
    names_prompts: bool
    measured: Callable[[Measurement], None]

    def config(self) -> dict[str, Any]:
        """Return what changes the settings of a run."""
        return {field: self.given[name] for name, field in SETTINGS.items() if field is not None and name in self.given}

    def setting(self, name: str, spec: SuiteSpec | None, otherwise: Any) -> Any:
        """Return a setting: as given, else of the suite file, else the run's."""
        of_suite = getattr(spec, name, None)
        return self.given.get(name, of_suite if of_suite is not None else otherwise)

    def choosing(self, spec: SuiteSpec | None) -> Choosing:
        """Return how tokens are chosen."""
        return Choosing(
            self.setting("temperature", spec, 0.0), self.setting("top_p", spec, 1.0), self.setting("seed", spec, 0)
        )


def is_run(source: str | Path) -> bool:
    """Return whether `source` is a run directory."""
    return (Path(source) / "run.json").is_file()


def default_out(source: str | Path) -> Path:
    """Return where evaluations go when no folder is named: a run's own, else runs/evaluate-<name>."""
    return Path(source) if is_run(source) else Path("runs") / f"evaluate-{slug(str(source))}"


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
    loaded: Loaded, config: TrainConfig, asked: _Asking, folder: Path, name: str, progress: Progress | None
) -> list[Scored]:
    """Return the evaluations of one model.

    Raises:
        ConfigError: there is nothing to score it on.
    """
    spec = read_suite(asked.suite, loaded.world is not None) if asked.suite is not None else None
    if spec is not None:
        suites = suites_of(spec, loaded.world, loaded.source)
    elif asked.measures and not asked.names_prompts:
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
    )
    scored = evaluate_engine(
        engine,
        suites,
        folder,
        name,
        limit=config.eval_limit,
        judges=asked.judges or None,
        whole_answers=asked.whole_answers,
        progress=progress,
    )
    _measure(loaded, config, asked, spec, folder / FOLDER, name, progress)
    return scored


def _measure(
    loaded: Loaded,
    config: TrainConfig,
    asked: _Asking,
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


def _finish(folder: Path, scored: Sequence[Scored], progress: Progress | None) -> list[Evaluation]:
    """Let the judges speak that need a model or a server, now that the scored models are gone.

    Returns:
        The evaluations with all verdicts.
    """
    # Judges of equal settings are one: what is a model is loaded once.
    instances: dict[str, BatchJudge] = {}
    evaluations: list[Evaluation] = []
    for stored, later in scored:
        for judge in later:
            one = instances.setdefault(json.dumps([judge.name, judge.settings()], sort_keys=True), judge)
            stored = judge_later(folder, stored, one, progress)
        evaluations.append(stored.evaluation)
    return evaluations


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
