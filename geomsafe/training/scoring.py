"""The end of a run: theta_0 and every saved weight set, scored on every suite."""

from __future__ import annotations

import gc
from pathlib import Path

import torch
from rich.console import Console

from geomsafe.config import TrainConfig
from geomsafe.evaluation import Suite, evaluate_model, load_scored
from geomsafe.records import RunRecord, write_record
from geomsafe.training.drift import DriftMeter
from geomsafe.training.progress import ScoreProgress

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
    # Trainer, model and optimizer refer to each other in circles: only the collector frees their memory.
    gc.collect()
    with ScoreProgress(console) as progress:
        for name in (START, *record.weights):
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            saved = {} if name == START else {"model": str(folder / record.weights[name].path), "revision": None}
            loaded = load_scored(config.model_copy(update=saved))
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
                record.not_run = meter.not_run | record.not_run
            if meter is not None:
                record.drift[name] = meter.measure(loaded.model)
            write_record(folder, record)
            # Else the next model would be loaded beside this one.
            del loaded
