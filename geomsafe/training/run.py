"""A run from settings to record: fit, save, score; and again from wherever it stopped.

    create run directory -> fit (checkpoints) -> save weight sets -> score each -> finished

run.json says `started` until the last of it is done. Weight sets enter the record together, once
all are saved: a run that has them does not train again, and a score that is there is not made again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from geomsafe.config import TrainConfig
from geomsafe.data import collate
from geomsafe.errors import GeomsafeError
from geomsafe.evaluation import Suite, suites_for
from geomsafe.methods import Method, MethodsCallback, NotFiniteError, make_methods
from geomsafe.models import Anchor, find_device, no_loading_bars
from geomsafe.probes import Probes
from geomsafe.records import Failure, JsonLines, RunRecord, truncate_steps, write_record
from geomsafe.training.anchors import give_anchors
from geomsafe.training.bookkeeping import Bookkeeper
from geomsafe.training.checkpoint import SealCheckpoints, checkpoint_step, newest_whole
from geomsafe.training.engine import Engine, make_engine
from geomsafe.training.interrupt import Interrupt
from geomsafe.training.prepare import Material, load_start, prepare, refuse_launchers
from geomsafe.training.probing import make_probes
from geomsafe.training.progress import StepProgress
from geomsafe.training.record import create_run, now, open_run, remove_leftovers, require_free, run_folder
from geomsafe.training.safety import mix_safety
from geomsafe.training.scoring import score_run
from geomsafe.training.selfcheck import gradient_check
from geomsafe.training.threads import threads_set
from geomsafe.training.weights import LAST, WeightStore


def train(config: TrainConfig, *, resume: Path | None = None, console: Console | None = None) -> Path:
    """Fine-tune a model, probe it while it trains, score it, and record everything.

    Args:
        config: the settings.
        resume: an interrupted run directory to continue; `config` must be its own.
        console: where progress goes (default: standard error).

    Returns:
        The run directory.

    Raises:
        RecordError: the run directory is not empty, or is not the run of these settings.
        TrainingError: the loss or a gradient is not finite; run.json says `failed` and where.
        KeyboardInterrupt: Ctrl-C; a checkpoint is there and run.json still says `started`.
    """  # noqa: DOC502
    shown = console if console is not None else Console(stderr=True)
    refuse_launchers()
    methods = make_methods(config.methods)
    with threads_set(config.threads), no_loading_bars():
        if resume is None:
            folder = run_folder(config)
            require_free(folder)
            material: Material | None = prepare(config, methods, folder)
            run = Run(folder, config, create_run(folder, config, find_device(config.device)), methods, shown)
        else:
            run = Run(resume, config, open_run(resume, config), methods, shown)
            if run.record.status == "finished":
                shown.print(f"'{resume}' is finished: nothing to resume")
                shutil.rmtree(resume / "checkpoint", ignore_errors=True)
                return resume
            remove_leftovers(resume)
            material = None if run.fitted else prepare(config, methods, resume)
        with run.failures_recorded():
            suites = run.fit(material) if material is not None else None
            del material
            run.score(suites)
            run.finish()
    return run.folder


class Run:
    """One run directory and the phases that fill it."""

    def __init__(
        self, folder: Path, config: TrainConfig, record: RunRecord, methods: list[Method], console: Console
    ) -> None:
        """Open the run.

        Args:
            folder: the run directory.
            config: its settings.
            record: its record, as it is on disk.
            methods: its methods, not yet started.
            console: where progress goes.
        """
        self.folder = folder
        self.record = record
        self._config = config
        self._methods = methods
        self._console = console

    @property
    def fitted(self) -> bool:
        """Whether training is over and all its weights are saved."""
        return LAST in self.record.weights

    def fit(self, material: Material) -> list[Suite]:
        """Train, from the newest whole checkpoint if there is one, and save the weight sets.

        Args:
            material: theta_0 and the data.

        Returns:
            The suites, so that scoring need not load them again.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed; a checkpoint has been written.
        """
        checkpoint = newest_whole(self.folder / "checkpoint")
        self._rewind(checkpoint_step(checkpoint) if checkpoint is not None else 0)
        model = material.loaded.model
        anchor = Anchor(model)
        # Gradient checkpointing has switched the cache off already; whoever loads the weights wants it.
        use_cache = bool(model.config.use_cache) or self._config.gradient_checkpointing
        store = WeightStore(material.loaded, anchor, self.folder, use_cache)
        probes = make_probes(self._config, material, anchor, self.folder)
        if checkpoint is None and probes is not None:
            pad_id = material.loaded.tokenizer.pad_token_id
            self.record.provenance["checks"] = {"gradients": gradient_check(model, material.rows, pad_id)}
        give_anchors(self._config, material, self._methods, self.folder)
        mix_safety(self._config, material, self._methods, self.folder)
        self._describe(material, anchor, probes)
        with JsonLines(self.folder / "steps.jsonl") as rows, Interrupt(self._console) as interrupt:
            callback = MethodsCallback(self._methods, probes=probes, anchor=anchor)
            progress = StepProgress(self._console, self.record.name)
            books = Bookkeeper(self.folder, self.record, self._config, callback, store)
            engine = make_engine(
                self._config,
                model,
                material.rows,
                lambda batch: collate(batch, material.loaded.tokenizer.pad_token_id),
                self.folder / "checkpoint",
                material.loaded.device,
                [callback, books, progress, interrupt, SealCheckpoints()],
            )
            callback.log = lambda row: progress.update(books.keep(row, engine, rows))
            try:
                self._train(engine, callback, material, checkpoint)
            finally:
                progress.stop()
        if interrupt.requested:
            self._console.print(f"stopped at step {self.record.steps}; continue with --resume {self.folder}")
            raise KeyboardInterrupt
        if probes is not None:
            self.record.warnings = sorted({*self.record.warnings, *probes.notes})
            self.record.not_run = probes.not_run | self.record.not_run
        earlier = store.align(self.record.weights)
        self.record.weights = earlier | store.save_last(self._methods, self.record.steps)
        write_record(self.folder, self.record)
        return material.suites

    def score(self, suites: list[Suite] | None) -> None:
        """Score theta_0 and every saved weight set.

        Args:
            suites: what to score on; None: find out from theta_0.
        """
        if not self._config.evaluate:
            return
        if suites is None:
            suites = suites_for(load_start(self._config), self._config.eval_prompts, self._config.data)
        if suites:
            score_run(self.folder, self._config, self.record, suites, self._console)

    def finish(self) -> None:
        """Say that the run is finished and drop what only resume needs."""
        self.record.status, self.record.finished, self.record.failure = "finished", now(), None
        write_record(self.folder, self.record)
        shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)

    @contextmanager
    def failures_recorded(self) -> Iterator[None]:
        """Write `failed` and the cause into run.json when an error passes; an interrupt is none.

        Yields:
            Nothing.
        """
        try:
            yield
        except Exception as error:
            known = isinstance(error, GeomsafeError)
            self.record.failure = Failure(
                cause=str(error) if known else f"{type(error).__name__}: {error}",
                step=error.step if isinstance(error, NotFiniteError) else self.record.steps,
                layer=error.layer if isinstance(error, NotFiniteError) else None,
            )
            self.record.status = "failed"
            write_record(self.folder, self.record)
            raise

    def _train(self, engine: Engine, callback: MethodsCallback, material: Material, checkpoint: Path | None) -> None:
        callback.schedule, callback.state_folder = material.schedule, checkpoint
        self.record.steps = checkpoint_step(checkpoint) if checkpoint is not None else 0
        if checkpoint is not None and self.record.steps >= material.schedule.total_steps:
            engine.restore(checkpoint)
            callback.begin(material.loaded.model, None, self.record.steps, checkpoint.parent)
        else:
            engine.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)

    def _describe(self, material: Material, anchor: Anchor, probes: Probes | None) -> None:
        lora = self._config.lora
        self.record.model = material.loaded.record() | {
            "theta_0_norm": anchor.norm(),
            "lora": lora.model_dump(mode="json") if lora is not None else None,
        }
        self.record.data = material.data
        self.record.not_run = dict(material.not_run)
        notes = probes.notes if probes is not None else []
        self.record.warnings = sorted({*self.record.warnings, *material.warnings, *notes})
        self.record.status, self.record.failure = "started", None
        write_record(self.folder, self.record)

    def _rewind(self, step: int) -> None:
        """Remove what a former attempt left behind beyond the step that it is resumed from."""
        truncate_steps(self.folder / "steps.jsonl", step)
        for capture in (self.folder / "captures").glob("step-*.safetensors"):
            if int(capture.stem.rpartition("-")[2]) > step:
                capture.unlink()
        self.record.weights = {name: entry for name, entry in self.record.weights.items() if entry.step <= step}
        saved = self.folder / "weights"
        for folder in saved.iterdir() if saved.is_dir() else ():
            if folder.name not in self.record.weights:
                shutil.rmtree(folder)
