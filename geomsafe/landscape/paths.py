"""Where saved weights lie as seen from the directions, and the curvature of the safety loss along them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from geomsafe.gradients.curvature import curvature_along
from geomsafe.landscape.frame import Frame
from geomsafe.landscape.gradients import Batch
from geomsafe.landscape.making import Maker, path_sets
from geomsafe.landscape.places import RunPlace
from geomsafe.landscape_record import Curvature, PathPoint, Place


def paths_of(frame: Frame, maker: Maker, places: Sequence[RunPlace]) -> list[PathPoint]:
    """Project every saved weight set of every run on the directions.

    Args:
        frame: the directions.
        maker: opens saved weights.
        places: the runs.

    Returns:
        One entry a weight set: by run, steps in their order, the last iterate, then averages and end points.
    """
    found = []
    for place in places:
        on_path = path_sets(place.record)
        for name in [*on_path, *(other for other in place.record.weights if other not in on_path)]:
            moved = maker.one("finetune", {"run": place.name, "weights": name})
            coordinates, residual, distance = frame.seen(moved.tensor)
            found.append(
                PathPoint(
                    run=place.name,
                    weights=name,
                    step=place.weights(name).step,
                    distance=distance,
                    coordinates=coordinates,
                    residual=residual,
                )
            )
    return found


def curvature_of(frame: Frame, model: object, safety: Batch) -> list[Curvature]:
    """Take slope and curvature of the safety loss at theta_0 along every direction, per unit of coordinate.

    Args:
        frame: the directions.
        model: at theta_0.
        safety: theta_0's refusals; the loss is their mean over target tokens.

    Returns:
        One entry a direction.
    """
    found = []
    for index in range(len(frame.directions)):
        line, at = (index, [1.0]) if frame.shape == "lines" else (None, [float(axis == index) for axis in range(2)])
        unit: dict[str, Tensor] = dict(frame.displacement(line, at))
        along = curvature_along(model, safety, unit)
        found.append(
            Curvature(direction=index, slope=along.slope, curvature=along.value, examples=len(safety["labels"]))
        )
    return found


def as_places(places: Sequence[RunPlace]) -> list[Place]:
    """Return runs as they are recorded: absolute paths, since a landscape may be read from anywhere."""
    return [Place(name=place.name, path=str(place.path.resolve())) for place in places]
