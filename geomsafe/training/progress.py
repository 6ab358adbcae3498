"""The progress bar of a run: step, loss, rate and the time that is left."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StepProgress(TrainerCallback):
    """A bar over optimizer steps, in place of Trainer's own; `update` gets each step's row."""

    def __init__(self, console: Console, name: str) -> None:
        """Prepare the bar.

        Args:
            console: where it is drawn.
            name: name of the run.
        """
        self._name = name
        self._task: TaskID | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]} · {task.fields[rate]} steps/s ·"),
            TimeRemainingColumn(),
            console=console,
        )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show the bar."""
        self._task = self._bar.add_task(
            self._name, total=state.max_steps, completed=state.global_step, loss="-", rate="-"
        )
        self._bar.start()

    def update(self, row: dict[str, Any]) -> None:
        """Move on.

        Args:
            row: the row of steps.jsonl.
        """
        if self._task is not None:
            rate = f"{1 / row['seconds']:.1f}" if row["seconds"] else "-"
            self._bar.update(self._task, completed=row["step"], loss=f"{row['loss']:.3f}", rate=rate)

    def stop(self) -> None:
        """Leave the bar as it is; also after an error."""
        self._bar.stop()


class ScoreProgress:
    """A bar for each weight set and suite that is scored, or for whatever else is counted by label."""

    def __init__(self, console: Console, verb: str = "score") -> None:
        """Prepare the bars.

        Args:
            console: where they are drawn.
            verb: stands before each label.
        """
        self._tasks: dict[str, TaskID] = {}
        self._bar = Progress(
            TextColumn(verb + " {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
        )

    def __enter__(self) -> ScoreProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._tasks:
            self._bar.stop()

    def update(self, label: str, done: int, total: int) -> None:
        """Move on.

        Args:
            label: weights and suite.
            done: prompts done.
            total: prompts in all.
        """
        if label not in self._tasks:
            # Not before there is something to draw: an error would come after an empty line.
            self._bar.start()
            self._tasks[label] = self._bar.add_task(label, total=total)
        self._bar.update(self._tasks[label], completed=done)
