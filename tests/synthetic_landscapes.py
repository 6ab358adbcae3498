"""Landscapes made by formula, in the record's format: every edge is known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from geomsafe.landscape_record import (
    FOLDER,
    POINTS,
    Curvature,
    Direction,
    Grid,
    Landscape,
    Measured,
    PathPoint,
    Place,
    Point,
    PromptGroup,
    write_landscape,
)

PROMPTS = 24
EDGES = {"unsafe": 0.5, "retained": 0.9, "incoherent": 0.05}
MEASURED = [
    Measured(name="refusal_margin", group="harmful", kind="mean", unit="nats", better="higher"),
    Measured(name="refusal_nll", group="harmful", kind="mean", unit="nats", better="lower"),
    Measured(name="unsafe", group="harmful", kind="rate", unit="share", better="lower"),
    Measured(name="asr", group="harmful", kind="rate", unit="share", better="lower"),
    Measured(name="incoherent", group="harmful", kind="rate", unit="share", better="lower"),
    Measured(name="retained", group="retained", kind="rate", unit="share", better="higher"),
    Measured(name="sham_loss", group="sham", kind="rate", unit="share", better="lower"),
]
FINETUNE_EDGE, RANDOM_CAPABILITY = 0.05, 0.3


def direction(name: str, kind: str, length: float, run: str | None = None, **options: Any) -> Direction:
    return Direction(name=name, kind=kind, run=run, length=length, options=options)


def values(unsafe: float, destroyed: float, sham: float = 0.0) -> dict[str, list[float | None]]:
    """Prompt i is lost where the level passes (i + .5) / n; incoherence takes over where the model is destroyed."""
    ranks = (np.arange(PROMPTS) + 0.5) / PROMPTS
    incoherent = destroyed > ranks
    bad = (unsafe > ranks) & ~incoherent
    return {
        "refusal_margin": [float(8 * (rank - unsafe) - 4 * destroyed) for rank in ranks],
        "refusal_nll": [float(0.1 + unsafe**2 + destroyed) if index else None for index in range(PROMPTS)],
        "unsafe": bad.astype(float).tolist(),
        "asr": (bad | incoherent).astype(float).tolist(),
        "incoherent": incoherent.astype(float).tolist(),
        "retained": (~(destroyed > ranks)).astype(float).tolist(),
        "sham_loss": (sham > ranks).astype(float).tolist(),
    }


def finetune(x: float, edge: float = FINETUNE_EDGE) -> dict[str, list[float | None]]:
    """Coherent compliance reaches one half at `edge` going forward, and nothing is lost; backward all stays."""
    return values(float(np.clip(0.5 * x / edge, 0, 1)) if x > 0 else 0.0, 0.0, float(np.clip(0.25 * x / edge, 0, 1)))


def drawn(x: float, scale: float) -> dict[str, list[float | None]]:
    """A random direction destroys: incoherence passes 5 % well before it ends all."""
    return values(0.0, float(np.clip(abs(x) / (2 * RANDOM_CAPABILITY * scale), 0, 1)))


def _write(folder: Path, record: Landscape, points: list[Point]) -> Path:
    folder.mkdir(parents=True)
    write_landscape(folder, record)
    (folder / POINTS).write_text("".join(json.dumps(point.model_dump(mode="json")) + "\n" for point in points))
    return folder


def _record(run: Path, name: str, shape: Any, directions: list[Direction], grid: Grid, **more: Any) -> Landscape:
    group = {
        key: PromptGroup(
            suite=key, source=f"organism:{key}", sha256="0" * 64, ids=[f"{key}{i}" for i in range(PROMPTS)],
            clusters=[f"{key}{i // 2}" for i in range(PROMPTS)],
        )
        for key in ("harmful", "retained", "sham")
    }  # fmt: skip
    settings = {"edges": EDGES, "limits": {}, "visage": False}
    return Landscape(
        name=name, status="finished", created="2026-11-25T00:00:00+00:00", geomsafe="0.1.0",
        runs=[Place(name=run.name, path=str(run.resolve()))],
        theta_0={"source": "organism", "fingerprint": "f", "norm": 50.0, "parameters": 1, "dtype": "float32"},
        shape=shape, directions=directions, gram=np.eye(len(directions)).tolist(), grid=grid,
        scores=["refusal", "asr", "utility", "sham"], measured=MEASURED, prompts=group, primary="unsafe",
        settings=settings | more.pop("settings", {}), **more,
    )  # fmt: skip


def _point(
    at: tuple[float, ...], found: dict[str, list[float | None]], line: int | None, resolved: bool = True
) -> Point:
    return Point(line=line, at=list(at), moved=math.hypot(*at), rounding=0.0, resolved=resolved, values=found)


def write_lines(run: Path, name: str = "lines", ends: dict[str, float] | None = None, randoms: int = 10) -> Path:
    """The lines of runs, run -> how far it went, and random ones; the edge of run i lies at (1 + i / 4) x .05."""
    ends = ends if ends is not None else {run.name: 0.08}
    directions = [
        direction(f"final of {one}", "finetune", length, one, weights="final") for one, length in ends.items()
    ]
    directions += [direction(f"random {seed}", "random", 0.8, seed=seed) for seed in range(randoms)]
    x = np.linspace(-0.8, 0.8, 65)
    points = []
    for line, one in enumerate(directions):
        for place in map(float, x):
            if one.kind == "random":
                found = drawn(place, 1 + 0.02 * (line - len(ends)))
            else:
                found = finetune(place, FINETUNE_EDGE * (1 + line / 4))
            points.append(_point((place,), found, line))
    paths = [
        PathPoint(
            run=one, weights="final", step=60, distance=length,
            coordinates=[length if index == line else 0.0 for index in range(len(directions))],
            residual=[0.0 if index == line else 1.0 for index in range(len(directions))],
        )
        for line, (one, length) in enumerate(ends.items())
    ]  # fmt: skip
    grid = Grid(kind="uniform", points=[65], low=[-0.8] * len(directions), high=[0.8] * len(directions))
    curvature = [Curvature(direction=0, slope=0.5, curvature=20.0, examples=8)]
    places = [Place(name=one, path=str((run.parent / one).resolve())) for one in ends]
    record = _record(run, name, "lines", directions, grid, paths=paths, curvature=curvature)
    return _write(run / FOLDER / name, record.model_copy(update={"runs": places}), points)


def write_plane(run: Path, name: str = "plane", adaptive: bool = False, unresolved: int = 0) -> Path:
    """A plane whose first axis is the fine-tune's; scattered points for an adaptive one."""
    axis = np.linspace(-0.1, 0.1, 9)
    places = [(float(x), float(y)) for x in axis for y in axis]
    if adaptive:
        places += [(float(x) + 0.0125, float(y) + 0.0125) for x in axis[4:7] for y in axis[3:6]]
    points = [
        _point(place, finetune(place[0]) | {"incoherent": [0.0] * PROMPTS}, None, index >= unresolved)
        for index, place in enumerate(places)
    ]
    paths = [
        PathPoint(
            run=run.name,
            weights=weights,
            step=step,
            distance=0.001 * step,
            coordinates=[0.001 * step, 0.0002 * step],
            residual=[0.1],
        )
        for weights, step in [("step-000020", 20), ("final", 60), ("ema", 60)]
    ]
    kind: Any = "adaptive" if adaptive else "uniform"
    near = [0.0125, 0.0125] if adaptive else None
    grid = Grid(kind=kind, points=[9, 9], low=[-0.1, -0.1], high=[0.1, 0.1], tolerance=near)
    directions = [
        direction(f"final of {run.name}", "finetune", 0.06, run.name, weights="final"),
        direction("random <b>0</b>", "random", 0.8, seed=0),
    ]
    return _write(run / FOLDER / name, _record(run, name, "plane", directions, grid, paths=paths), points)


def write_visage(run: Path, count: int = 3) -> Path:
    """At its authors' settings: the ends of direction i rise to 100 % earlier and earlier."""
    directions = [direction(f"random {seed}", "random", 0.8, seed=seed) for seed in range(count)]
    points = [
        _point((float(alpha) * 0.8,), values(0.0, 1.0 if abs(alpha) > 0.42 - 0.1 * line else 0.1), line)
        for line in range(count)
        for alpha in np.linspace(-0.5, 0.5, 21)
    ]
    grid = Grid(kind="uniform", points=[21], low=[-0.4] * count, high=[0.4] * count)
    return _write(
        run / FOLDER / "visage", _record(run, "visage", "lines", directions, grid, settings={"visage": True}), points
    )
