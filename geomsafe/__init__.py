"""geomsafe: why did this optimizer keep the model safe, and that one break it?

    import geomsafe
    run = geomsafe.train({"lr": 4e-4, "method": ["ema:eta=0.25"]})
    geomsafe.analyze([run], "report")

Importing the package is cheap: torch and transformers are loaded by the first call.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geomsafe.config import TrainConfig
    from geomsafe.records import Evaluation

__version__ = "0.1.0"
__all__ = ["__version__", "analyze", "evaluate", "explore", "sweep", "train"]


def train(config: TrainConfig | dict[str, Any] | None = None, *, resume: str | Path | None = None) -> Path:
    """Fine-tune, probe and score a model, as `geomsafe train` does.

    Args:
        config: the settings, whole or as a mapping of the ones that differ from the defaults.
        resume: an interrupted run directory to continue, in place of `config`.

    Returns:
        The run directory.

    Raises:
        ConfigError: an unknown setting, a value that does not fit, or both arguments given.
    """  # noqa: DOC502 - make_config raises it too
    from geomsafe.config import TrainConfig, load_config, make_config
    from geomsafe.errors import ConfigError
    from geomsafe.training import train as run_training

    if resume is not None:
        if config is not None:
            raise ConfigError(f"resume continues '{resume}' with its own settings: leave out config")
        config = load_config(Path(resume) / "config.yaml")
    checked = config if isinstance(config, TrainConfig) else make_config(config or {})
    return run_training(checked, resume=None if resume is None else Path(resume))


def evaluate(source: str | Path, prompts: Sequence[str] = (), out: str | Path | None = None) -> list[Evaluation]:
    """Score a model, or every weight set of a run, as `geomsafe evaluate` does.

    Args:
        source: a run directory, a model folder, "organism" or a hub name.
        prompts: "kind=source" or known names; none means the run's or the organism's own.
        out: folder for the completions; by default the run itself, else runs/evaluate-NAME.

    Returns:
        One evaluation for each weight set and prompt set.
    """
    from geomsafe.evaluation import evaluate as run_evaluation

    return run_evaluation(source, prompts, None if out is None else Path(out))


def sweep(
    design: str | Path | dict[str, Any], out: str | Path, *, workers: int = 1, retry_failed: bool = False
) -> Path:
    """Run a sweep, or what is left of it, as `geomsafe sweep` does; `analyze([out])` then compares its runs.

    Args:
        design: a YAML file, the name of a design that comes with geomsafe, or the design as a mapping.
        out: folder of the sweep.
        workers: runs at a time, each in a process of its own.
        retry_failed: run failed runs again.

    Returns:
        The folder.

    Raises:
        TrainingError: runs failed; names the first with its cause.
    """
    from geomsafe.errors import TrainingError
    from geomsafe.sweeps import load_preset, load_sweep, make_sweep
    from geomsafe.sweeps import sweep as run_sweep

    if isinstance(design, dict):
        spec = make_sweep(design)
    else:
        spec = load_sweep(Path(design)) if Path(design).exists() else load_preset(str(design))
    result = run_sweep(spec, Path(out), workers=workers, retry_failed=retry_failed)
    if result.failed:
        first = result.failed[0]
        raise TrainingError(
            f"{len(result.failed)} of {len(result.outcomes)} runs failed, first '{first.run}': {first.cause}"
        )
    return result.folder


def explore(runs: Sequence[str | Path], out: str | Path | None = None, *, workers: int = 1, **asked: Any) -> Path:
    """Score a model around theta_0, as `geomsafe landscape` does; `analyze(runs)` then shows edges and figures.

    Args:
        runs: run directories from one theta_0, or the folder of a sweep.
        out: folder of the landscape; by default the first run's landscape/NAME.
        workers: points at a time, each in a process of its own.
        asked: one of axes, lines and visage, and as wanted grid, scores, prompts, reach, tolerance, max_new_tokens.

    Returns:
        The folder.
    """
    from geomsafe.landscape import Asked, make_landscape

    places = [Path(run) for run in runs]
    return make_landscape(places, Asked(**asked), out=None if out is None else Path(out), workers=workers)


def analyze(runs: Sequence[str | Path], out: str | Path = "report", *, allow_mixed: bool = False) -> Path:
    """Analyse run directories and write report.html, as `geomsafe analyze` does.

    Args:
        runs: run directories, or the folder of a sweep.
        out: folder for the report, analysis.json and the tables.
        allow_mixed: compare runs of different models, templates or prompt sets.

    Returns:
        The path of report.html.
    """
    from geomsafe.reports import analyze as run_analysis

    return run_analysis([Path(run) for run in runs], Path(out), allow_mixed=allow_mixed)
