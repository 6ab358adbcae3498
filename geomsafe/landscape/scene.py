"""What scores a point: theta_0, the directions and the prompts, opened once and kept for all points of a process."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from geomsafe.config import make_config
from geomsafe.errors import GeomsafeError, RecordError
from geomsafe.evaluation import load_scored
from geomsafe.landscape.frame import Frame
from geomsafe.landscape.grids import Where
from geomsafe.landscape.making import Maker, reopen
from geomsafe.landscape.places import RunPlace, read_places
from geomsafe.landscape.placing import Placer
from geomsafe.landscape.scoring import Limits, Scorer
from geomsafe.landscape_record import Point, read_landscape
from geomsafe.models import Loaded, no_loading_bars


class Done(NamedTuple):
    """A point and what was answered there."""

    point: Point
    answers: dict[str, Any]


class Scene:
    """A model with a way to go to points and a way to score them."""

    def __init__(self, model: Any, placer: Placer, scorer: Scorer) -> None:
        self._model, self._placer, self._scorer = model, placer, scorer

    def score(self, where: Where) -> Done:
        """Score one point; afterwards the model is theta_0 again.

        Args:
            where: the point.

        Returns:
            Its scores. An error says at which point it came.
        """
        started = time.perf_counter()
        try:
            with self._placer.at(where.line, where.at) as placed:
                there = time.perf_counter()
                found = self._scorer.score(self._model)
                scored = time.perf_counter()
        except GeomsafeError as error:
            raise type(error)(f"at {where_text(where)}: {error}") from error
        except Exception as error:
            error.add_note(f"at {where_text(where)} of the landscape")
            raise
        seconds = {"place": there - started + time.perf_counter() - scored, "score": scored - there}
        point = Point(
            line=where.line,
            at=list(where.at),
            moved=placed.moved,
            rounding=placed.rounding,
            resolved=placed.resolved,
            seconds=seconds,
            values=found.values,
        )
        return Done(point, found.answers)


def where_text(where: Where) -> str:
    """Return a point in words."""
    place = ", ".join(f"{value:.6g}" for value in where.at)
    return f"point ({place})" + ("" if where.line is None else f" of line {where.line}")


def load_start(places: Sequence[RunPlace], device: str | None) -> Loaded:
    """Load theta_0 as it is scored: whole, without adapters.

    Args:
        places: the runs.
        device: where to; None for the run's.

    Returns:
        The model.

    Raises:
        RecordError: it is no longer the model that the runs started from.
    """
    first = places[0]
    config = first.config if device is None else make_config(first.config.model_dump() | {"device": device})
    loaded = load_scored(config)
    if first.record.model.get("fingerprint") not in {None, loaded.fingerprint}:
        raise RecordError(f"'{loaded.source}' is no longer the model that run '{first.path}' started from: restore it")
    return loaded


_OPEN: dict[str, Scene] = {}


def score_in_worker(folder: str, runs: list[str], device: str | None, where: Where) -> Done:
    """Score a point in a worker process, which opens the landscape with its first one.

    Args:
        folder: of the landscape.
        runs: run directories.
        device: where the model is.
        where: the point.

    Returns:
        Its scores.
    """
    if folder not in _OPEN:
        _OPEN.clear()
        with no_loading_bars():
            _OPEN[folder] = _opened(Path(folder), [Path(run) for run in runs], device)
    return _OPEN[folder].score(Where(*where))


def _opened(folder: Path, runs: Sequence[Path], device: str | None) -> Scene:
    record = read_landscape(folder)
    places = read_places(runs)
    if places[0].config.threads is not None:
        # Sums have the order of the threads: with the run's own, workers give the bits of one process.
        torch.set_num_threads(places[0].config.threads)
    start = load_start(places, device)
    maker = Maker(start, places, folder)
    frame = Frame(start.model, reopen(maker, record.directions), record.shape)
    limits = Limits(**record.settings["limits"])
    scorer = Scorer(start, places[0].config, places[0].path, record.scores, limits)
    return Scene(start.model, Placer(start.model, frame), scorer)
