"""What a run writes down while it trains: a row a step, the methods, weights at chosen steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from geomsafe.config import TrainConfig
from geomsafe.methods import MethodsCallback
from geomsafe.records import JsonLines, RunRecord, write_record
from geomsafe.training.engine import Engine
from geomsafe.training.weights import WeightStore, saved_steps, step_name

_ORDER = (
    "step",
    "loss",
    "lr",
    "tokens",
    "examples",
    "grad_norm",
    "grad_norm_methods",
    "grad_norm_clipped",
    "distance",
    "relative_distance",
    "seconds",
    "methods",
)


class Bookkeeper(TrainerCallback):
    """Keeps run.json and steps.jsonl up to date; comes after `MethodsCallback`."""

    def __init__(
        self, folder: Path, record: RunRecord, config: TrainConfig, methods: MethodsCallback, store: WeightStore
    ) -> None:
        """Prepare the books.

        Args:
            folder: the run directory.
            record: its record; changed in place.
            config: its settings.
            methods: the callback that holds the methods.
            store: saves weights.
        """
        self._folder = folder
        self._record = record
        self._config = config
        self._methods = methods
        self._store = store
        self._saved: set[int] = set()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the methods, which know by now what they amount to."""
        self._record.methods = self._methods.describe()
        self._record.total_steps = state.max_steps
        self._saved = set(saved_steps(self._config, state.max_steps))
        write_record(self._folder, self._record)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count the step and save its weights where that was asked for."""
        step = self._record.steps = state.global_step
        if step in self._saved:
            self._record.weights[step_name(step)] = self._store.save_step(step)
            write_record(self._folder, self._record)

    def keep(self, row: dict[str, Any], engine: Engine, rows: JsonLines) -> dict[str, Any]:
        """Complete a step's row and append it.

        Args:
            row: what `MethodsCallback` measured.
            engine: knows what the step consumed; passes the numbers on to the trackers, if any.
            rows: steps.jsonl.

        Returns:
            The row as written.
        """
        whole = row | engine.take_consumed()
        ordered = {key: whole[key] for key in _ORDER}
        rows.append(ordered)
        if self._config.report_to:
            engine.log({key: value for key, value in ordered.items() if isinstance(value, float)})
        return ordered
