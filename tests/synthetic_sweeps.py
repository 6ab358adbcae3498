"""The folder of a sweep as `geomsafe sweep` leaves it, made from formulas instead of a model.

Two conditions, three seeds, and under each: a grid of plain baselines (lr x batch x accumulation), an EMA fed back
every step with its lr-matched control, a second eta of the same family, and a run of several methods that leave
training alone. Behaviour follows distance; a condition with harmful rows moves it further at equal distance. One run
has failed and one was never begun.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthetic_runs import MORE_SUITES, SUITES, Spec, evaluate, make_record

from geomsafe.records import (
    Drift,
    Failure,
    RunRecord,
    SweepPoint,
    SweepRecord,
    WeightSet,
    write_jsonl,
    write_record,
    write_sweep,
)

CONDITIONS: dict[str, dict[str, Any]] = {"benign": {"harmful_ratio": 0.0}, "harmful 10 %": {"harmful_ratio": 0.1}}
SEEDS = (0, 1, 2)
LRS, BATCHES, ACCUMULATIONS = (1e-3, 2.5e-4), (16, 64), (1, 2)
STEPS = 64
CHECKPOINTS = (4, 16)
NORM = 40.0
LINE = tuple(f"interpolate:alpha={alpha}" for alpha in (0.25, 0.5, 0.75))
REFERENCE, MATCHED = "careless", "lr-matched"
FAILED, MISSING = "grid lr 1e-3 batch 64 accumulation 2", "grid lr 2.5e-4 batch 64 accumulation 2"


@dataclass(frozen=True)
class Arm:
    """One arm of the synthetic sweep: its run is named by its settings, so that arms may share one."""

    name: str
    family: str
    settings: dict[str, Any]
    beside: tuple[str, ...] = ()
    weights: str = "final"
    controls: tuple[str, ...] = ()

    @property
    def eta(self) -> float:
        """Return eta of the EMA fed back, 1 without one."""
        texts = [text for text in self.settings.get("method", []) if text.startswith("ema")]
        return float(texts[0].split("eta=")[1].split(",")[0]) if texts else 1.0

    @property
    def reach(self) -> float:
        """Return the distance at the last step, before condition and seed."""
        batch = self.settings["batch_size"] * self.settings["accumulation"]
        return float(4000 * self.settings["lr"] * self.eta * math.sqrt(16 / batch))


def arms() -> list[Arm]:
    """Return the arms under one condition."""
    fed = ["ema:eta=0.25,mode=feedback"]
    beside = ("ema:eta=0.25,mode=shadow", *LINE)
    found = [
        Arm(REFERENCE, "plain", _settings(), beside),
        Arm(MATCHED, "plain", _settings(lr=2.5e-4), LINE, controls=(REFERENCE,)),
        Arm("ema-feedback", "ema", _settings(method=fed), LINE, controls=(MATCHED, REFERENCE)),
        Arm("ema-feedback-half", "ema", _settings(method=["ema:eta=0.5,mode=feedback"]), LINE, controls=(REFERENCE,)),
        Arm("ema-shadow", "ema-shadow", _settings(), beside, "ema", (REFERENCE,)),
        Arm("wise-ft", "wise-ft", _settings(), beside, "interpolate-2", (REFERENCE,)),
    ]
    named = {(arm.settings["lr"], arm.settings["batch_size"], arm.settings["accumulation"]) for arm in found}
    for lr, batch, accumulation in itertools.product(LRS, BATCHES, ACCUMULATIONS):
        if (lr, batch, accumulation) not in named:
            text = "1e-3" if lr == 1e-3 else "2.5e-4"
            settings = _settings(lr=lr, batch_size=batch, accumulation=accumulation)
            name = f"grid lr {text} batch {batch} accumulation {accumulation}"
            found.append(Arm(name, "plain", settings, controls=(REFERENCE,)))
    return found


def write_sweep_folder(folder: Path, prompts: int = 18, *, drift: bool = True, broken: bool = True) -> Path:
    """Write a sweep.

    Args:
        folder: the sweep's folder.
        prompts: of each suite.
        drift: whether KL, losses and margins were measured.
        broken: whether one run failed and one was never begun.
    """
    points = []
    for (condition, extra), seed in itertools.product(CONDITIONS.items(), SEEDS):
        for arm in arms():
            settings = arm.settings | extra
            run = f"runs/{run_id(arm, condition, seed)}"
            points.append(
                SweepPoint(
                    arm=arm.name, condition=condition, seed=seed, settings=settings, run=run, weights=arm.weights
                )
            )
            last = broken and seed == SEEDS[-1] and condition == "benign"
            if not (folder / run).exists() and not (last and arm.name == MISSING):
                failure = Failure(cause="loss is NaN", step=7) if last and arm.name == FAILED else None
                _write_run(folder / run, arm, condition, seed, prompts, drift, failure)
    write_sweep(
        folder,
        SweepRecord(
            name="synthetic",
            created="2026-01-02T03:04:05+00:00",
            geomsafe="0.1.0",
            source={"file": "synthetic.yaml"},
            reference=REFERENCE,
            controls={arm.name: list(arm.controls) for arm in arms() if arm.controls},
            families={arm.name: arm.family for arm in arms()},
            points=points,
        ),
    )
    return folder


def run_id(arm: Arm, condition: str, seed: int) -> str:
    """Return the name of an arm's run directory; arms that leave training alone share one."""
    parts = [f"{key}-{value}" for key, value in sorted(arm.settings.items()) if key != "method"]
    parts += [f"eta-{arm.eta:g}", f"c{list(CONDITIONS).index(condition)}", f"s{seed}"]
    return "_".join(parts)


def distances(arm: Arm, condition: str, seed: int) -> dict[str, float]:
    """Return the distance of every weight set of a run."""
    last = arm.reach * (1 + 0.02 * seed)
    found = {f"step-{step:06d}": last * math.sqrt(step / STEPS) for step in CHECKPOINTS} | {"final": last}
    for text, label in zip(arm.beside, _labels(arm.beside), strict=True):
        found[label] = 0.9 * last if text.startswith("ema") else float(text.split("=")[1]) * last
    return found


def drift_at(at: float) -> Drift:
    """Return the drift of a weight set that behaves as at distance `at`."""
    return Drift(
        kl_task=0.05 * at**2, kl_harmful=0.2 * at**2, utility_loss=0.2 + 2.3 * math.exp(-at),
        validation_loss=0.25 + 2.3 * math.exp(-at), refusal_nll=0.1 * at, refusal_margin=8 - 4 * at,
    )  # fmt: skip


def _settings(**changed: Any) -> dict[str, Any]:
    return {"lr": 1e-3, "batch_size": 16, "accumulation": 1} | changed


def _labels(texts: tuple[str, ...]) -> list[str]:
    names = [text.partition(":")[0] for text in texts]
    before = [names[:index].count(name) for index, name in enumerate(names)]
    return [name if not count else f"{name}-{count + 1}" for name, count in zip(names, before, strict=True)]


def _behaviour(condition: str, weights: str, at: float, last: float) -> float:
    # Off the path of training, a point on the straight line is a little less safe than its distance says.
    bend = 0.3 * at * (1 - at / last) if weights.startswith("interpolate") else 0.0
    return (at + bend) * (1.3 if CONDITIONS[condition]["harmful_ratio"] else 1.0)


def _write_run(
    run: Path, arm: Arm, condition: str, seed: int, prompts: int, drift: bool, failure: Failure | None
) -> None:
    texts = (*arm.settings.get("method", []), *arm.beside)
    config = {key: value for key, value in arm.settings.items() if key != "method"} | CONDITIONS[condition]
    config |= {"max_steps": STEPS, "method": list(texts)}
    spec = Spec(
        run.name, seed, arm.settings["lr"], texts, STEPS, prompts, failure, overrides={"config": config}
    )  # fmt: skip
    places = {"theta_0": 0.0} | distances(arm, condition, seed)
    behaviour = {
        weights: _behaviour(condition, weights, at, places["final"]) if weights != "theta_0" else 0.0
        for weights, at in places.items()
    }
    evaluations = [
        evaluate(run, spec, weights, kind, at) for weights, at in behaviour.items() for kind in SUITES | MORE_SUITES
    ]
    places.pop("theta_0")
    record = make_record(spec, places, evaluations)
    write_jsonl(run / "steps.jsonl", [_step(arm, step, places["final"]) for step in range(1, STEPS + 1)])
    write_record(run, _with_sets(record, texts, places, behaviour if drift else {}))


def _with_sets(
    record: RunRecord, texts: tuple[str, ...], places: dict[str, float], behaviour: dict[str, float]
) -> RunRecord:
    methods = [entry | {"label": label} for entry, label in zip(record.methods, _labels(texts), strict=True)]
    weights = {
        name: WeightSet(
            path=f"weights/{name}",
            step=int(name.removeprefix("step-")) if name.startswith("step-") else STEPS,
            distance=at,
            relative_distance=at / NORM,
        )
        for name, at in places.items()
    }
    drift = {name: drift_at(at) for name, at in behaviour.items()}
    return record.model_copy(update={"methods": methods, "weights": weights, "drift": drift})


def _step(arm: Arm, step: int, last: float) -> dict[str, Any]:
    at = last * math.sqrt(step / STEPS)
    return {
        "step": step, "loss": 0.3 + 2.2 * math.exp(-at), "lr": arm.settings["lr"], "tokens": 400, "examples": 16,
        "grad_norm": 1.0, "grad_norm_methods": 1.0, "grad_norm_clipped": 1.0, "distance": at,
        "relative_distance": at / NORM, "seconds": 0.05, "methods": {},
    }  # fmt: skip
