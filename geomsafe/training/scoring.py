"""The end of a run: theta_0 and every saved weight set, scored on every suite."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console

from geomsafe.config import TrainConfig, make_config
from geomsafe.errors import RecordError
from geomsafe.evaluation import Suite, evaluate_model, load_scored, suites_for
from geomsafe.models import Loaded
from geomsafe.records import RunRecord, read_record, write_record
from geomsafe.training.drift import DriftMeter, measured_refusals
from geomsafe.training.progress import ScoreProgress
from geomsafe.training.readings import SafetyReader

START = "theta_0"


def score_run(folder: Path, config: TrainConfig, record: RunRecord, suites: list[Suite], console: Console) -> None:
    """Score a run whose weights are saved; what is scored already is not generated again.

    Every set is loaded from where it lies, so that what is scored is what was saved.

    Args:
        folder: the run directory.
        config: its settings.
        record: its record; evaluations are added and written set by set.
        suites: what to score on.
        console: where progress goes.
    """
    record.evaluations, record.drift = [], {}
    meter: DriftMeter | None = None
    reader: SafetyReader | None = None
    with ScoreProgress(console) as progress:
        for name, loaded in _weight_sets(folder, config, record):
            record.evaluations += evaluate_model(
                loaded,
                suites,
                folder,
                name,
                max_new_tokens=config.max_new_tokens,
                batch_size=config.eval_batch_size,
                limit=config.eval_limit,
                system_prompt=config.system_prompt,
                progress=progress.update,
            )
            if name == START and config.drift:
                meter = DriftMeter(loaded, config, suites, folder)
                reader = SafetyReader(loaded, config, suites, folder, meter.refusals)
                record.not_run = meter.not_run | record.not_run
            if meter is not None:
                record.drift[name] = meter.measure(loaded.model)
            if reader is not None:
                reader.read(loaded, name)
            write_record(folder, record)
            # Else the next model would be loaded beside this one.
            del loaded
    if reader is not None:
        _read_base(reader, config)
        record.not_run = reader.not_run | record.not_run
        write_record(folder, record)


def probe_run(folder: Path, *, device: str | None = None) -> None:
    """Read proxies, shallow-alignment curve and refusal direction of a scored run again, as `score_run` does.

    Nothing is generated but theta_0's refusals of the probes' prompts, where the run does not hold them.

    Args:
        folder: the run directory; its lines in `probes/` are replaced.
        device: where to run (default: the run's setting).

    Raises:
        RecordError: the run has not finished.
    """
    record = read_record(folder)
    if record.status == "started":
        raise RecordError(f"run '{folder}' has not finished: resume it with 'geomsafe train --resume {folder}' first")
    config = make_config(record.config | ({"device": device} if device is not None else {}))
    reader: SafetyReader | None = None
    for name, loaded in _weight_sets(folder, config, record):
        if reader is None:
            suites = suites_for(loaded, config.eval_prompts, config.data)
            reader = SafetyReader(loaded, config, suites, folder, measured_refusals(loaded, config, folder))
        reader.read(loaded, name)
        del loaded
    if reader is not None:
        _read_base(reader, config)
        record.not_run = reader.not_run | record.not_run
        write_record(folder, record)


def _weight_sets(folder: Path, config: TrainConfig, record: RunRecord) -> Iterator[tuple[str, Loaded]]:
    """Load theta_0 and every saved weight set, one after another; whoever takes one lets go of it."""  # noqa: DOC402
    # Trainer, model and optimizer refer to each other in circles: only the collector frees their memory.
    gc.collect()
    for name in (START, *record.weights):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        saved = {} if name == START else {"model": str(folder / record.weights[name].path), "revision": None}
        yield name, load_scored(config.model_copy(update=saved))


def _read_base(reader: SafetyReader, config: TrainConfig) -> None:
    if reader.base is not None:
        reader.read_base(load_scored(config.model_copy(update={"model": reader.base, "revision": None})))
