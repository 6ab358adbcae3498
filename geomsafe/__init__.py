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
__all__ = ["__version__", "analyze", "evaluate", "train"]


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
