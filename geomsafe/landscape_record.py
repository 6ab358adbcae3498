"""The record of a landscape: where a model was scored around theta_0, and what it scored, prompt by prompt.

    landscape/<name>/
      landscape.json         this module's `Landscape`
      points.jsonl           one line a point, this module's `Point`; appended as points are done
      answers.jsonl          what was generated at each point, one line a point; only where something was generated
      directions/*.safetensors   directions that cannot be made again from a seed or from saved weights

A landscape is either a *plane*, theta_0 + a d_1 + b d_2 with orthogonal directions, or a set of *lines*,
theta_0 + a d_i, each direction for itself. Coordinates are distances from theta_0 as a fraction of ||theta_0||, the L2
norm over all weights of the model: every direction is scaled to ||d_i|| = ||theta_0||. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from geomsafe.records import read_jsonl, read_versioned, validated, write_atomic

SCHEMA = "geomsafe.landscape/1"
FILE = "landscape.json"
POINTS = "points.jsonl"
ANSWERS = "answers.jsonl"
FOLDER = "landscape"

Group = Literal["harmful", "look-alike", "utility", "retained", "sham"]
"""A set of prompts that values are measured on."""


class Measured(BaseModel):
    """A quantity that every point has a value of, for each prompt of a group.

    `kind` "rate": each prompt counts 0 or 1, the value is the mean. "mean": each prompt has a number. `None` where a
    prompt has no value (a refusal_nll needs a prompt that theta_0 refuses). `better` is "lower", "higher" or "".
    """

    model_config = ConfigDict(extra="forbid")
    name: str
    group: Group
    kind: Literal["rate", "mean"]
    unit: str
    better: Literal["lower", "higher", ""]


class PromptGroup(BaseModel):
    """The prompts of one group, in the order in which points list their values."""

    model_config = ConfigDict(extra="forbid")
    suite: str
    source: str
    sha256: str
    ids: list[str]
    clusters: list[str]


class Direction(BaseModel):
    """One direction, scaled to the length of theta_0.

    `length` is the L2 norm of what the direction was made of (a displacement theta_T - theta_0, a draw as published),
    as a fraction of ||theta_0||: a coordinate divided by it is in units of that displacement. In a plane it is that of
    the part that is orthogonal to the axes before. `facts`: what else is known, such as an eigenvalue, how it was
    drawn, a hash, or which tensors have no part in it.
    """

    model_config = ConfigDict(extra="forbid")
    name: str
    kind: str
    options: dict[str, Any] = Field(default_factory=dict)
    run: str | None = None
    length: float
    facts: dict[str, Any] = Field(default_factory=dict)


class Curvature(BaseModel):
    """The safety loss at theta_0 along one direction: slope u^T g and curvature u^T H_s u per unit of coordinate."""

    model_config = ConfigDict(extra="forbid")
    direction: int
    slope: float
    curvature: float
    examples: int


class PathPoint(BaseModel):
    """A saved weight set of a run as seen from the directions.

    `coordinates`: its displacement's inner product with each unit direction, over ||theta_0||. In a plane `residual` is
    the share of its squared length that lies outside; among lines there is one residual a line.
    """

    model_config = ConfigDict(extra="forbid")
    run: str
    weights: str
    step: int | None
    distance: float  # ||displacement|| / ||theta_0||
    coordinates: list[float]
    residual: list[float]


class Place(BaseModel):
    """A run that the landscape has to do with; the first one's theta_0 is the origin."""

    model_config = ConfigDict(extra="forbid")
    name: str
    path: str


class Grid(BaseModel):
    """Where points are asked for: `points` an axis for a uniform grid, a coarse start for an adaptive one.

    `low` and `high` bound each axis (lines: each direction), as coordinates. `tolerance`: how near an adaptive grid
    comes to each edge, as a coordinate, one a direction; `relative`: the same as a share of the edge's distance, where
    no tolerance was asked for. A uniform grid has neither.
    """

    model_config = ConfigDict(extra="forbid")
    kind: Literal["uniform", "adaptive"]
    points: list[int]
    low: list[float]
    high: list[float]
    tolerance: list[float] | None = None
    relative: float | None = None


class Landscape(BaseModel):
    """The whole of landscape.json. Field names are format: a change takes a new schema version."""

    model_config = ConfigDict(extra="forbid")
    schema_version: str = SCHEMA
    name: str
    status: Literal["started", "finished"] = "started"
    created: str
    geomsafe: str
    runs: list[Place]
    theta_0: dict[str, Any]  # source, fingerprint, norm (L2), parameters, dtype, template_sha256
    shape: Literal["lines", "plane"]
    directions: list[Direction]
    gram: list[list[float]]  # float64 cosines of the directions as they are used; the identity in a plane
    grid: Grid
    scores: list[str]
    measured: list[Measured]
    prompts: dict[str, PromptGroup]
    primary: str | None = None  # the rate of `measured` that the safety edge is read from; None without answers
    settings: dict[str, Any] = Field(default_factory=dict)
    curvature: list[Curvature] = Field(default_factory=list)
    paths: list[PathPoint] = Field(default_factory=list)
    cost: dict[str, float] = Field(default_factory=dict)
    not_run: dict[str, str] = Field(default_factory=dict)


class Point(BaseModel):
    """One point: where it is, what rounding left of the displacement, and the values of every prompt.

    `at` has one coordinate on a line, two in a plane. `moved`: ||placed - theta_0|| / ||theta_0|| after rounding to the
    weights' dtype. `rounding`: ||placed - (theta_0 + asked)|| / ||asked||, 0 at the origin. `resolved` is False where
    the step is below one unit in the last place of the weights, so that the point is not plotted.
    """

    model_config = ConfigDict(extra="forbid")
    line: int | None  # index of the direction; None in a plane
    at: list[float]
    moved: float
    rounding: float
    resolved: bool
    seconds: dict[str, float] = Field(default_factory=dict)  # "place", "score"
    values: dict[str, list[float | None]]  # name of a `Measured` -> one value a prompt of its group


def write_landscape(folder: Path, record: Landscape) -> None:
    """Write landscape.json atomically."""
    write_atomic(folder / FILE, record.model_dump_json(indent=1) + "\n")


def read_landscape(folder: Path) -> Landscape:
    """Read landscape.json.

    Args:
        folder: the landscape's folder.

    Returns:
        The record.

    Raises:
        RecordError: no landscape.json there, not JSON, another schema version, or a broken field.
    """  # noqa: DOC502
    return read_versioned(Landscape, folder / FILE, f"'{folder}' is no landscape: it has no {FILE}", (SCHEMA,))


def read_points(folder: Path) -> Iterator[Point]:
    """Yield the points of a landscape in the order in which they were done; whether it is finished is the record's.

    Args:
        folder: the landscape's folder.

    Yields:
        The points.

    Raises:
        RecordError: a line is torn or has a broken field.
    """  # noqa: DOC502
    for number, row in enumerate(read_jsonl(folder / POINTS), start=1):
        yield validated(Point, row, f"'{folder / POINTS}' line {number}")


def landscapes_of(run: Path) -> list[Path]:
    """Return the folders of the landscapes that lie in a run directory, by name."""
    return sorted(path.parent for path in (run / FOLDER).glob(f"*/{FILE}"))
