"""From a sweep's arms to the runs that give them, each trained once.

Methods that stand beside training (shadow averages, weights at the end, post-hoc patches) do not change a bit of it.
So arms that differ in such methods alone become one run that carries all of them, and each arm is one of its weight
sets; the second `ema` of a run has the set `ema-2`, and a reference such as `shrink:to=ema` follows.

An arm whose list has such a method before one that acts on training keeps a run of its own: the order of methods is
the order in which they see the weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from geomsafe import __version__
from geomsafe.config import MethodSpec, TrainConfig, make_config
from geomsafe.errors import ConfigError
from geomsafe.methods import Method, Schedule, make_methods
from geomsafe.records import SweepPoint, SweepRecord
from geomsafe.sweeps.address import run_address
from geomsafe.sweeps.spec import Arm, SweepSpec, merged

RUNS = "runs"
_LAST = "final"


@dataclass
class Plan:
    """What a sweep runs, and what its points are.

    Attributes:
        record: sweep.json.
        runs: run id -> settings, without `out`; in the order in which they are begun.
    """

    record: SweepRecord
    runs: dict[str, TrainConfig]


@dataclass
class _Training:
    """One fine-tune: the settings without methods, those that act, and those that stand beside, in order."""

    config: TrainConfig
    acting: tuple[str, ...]
    beside: list[str] = field(default_factory=list)

    @property
    def methods(self) -> list[str]:
        return [*self.acting, *self.beside]


def make_plan(spec: SweepSpec, threads: int, device: str) -> Plan:
    """Lay out a sweep.

    Args:
        spec: the sweep.
        threads: CPU threads of runs that do not set them.
        device: kind of device the runs will be on, part of their address.

    Returns:
        The plan.

    Raises:
        ConfigError: settings of an arm are not valid, or two arms share a name.
    """
    trainings: dict[str, _Training] = {}
    points: list[SweepPoint] = []
    families: dict[str, str] = {}
    names: set[str] = set()
    for name, arm in spec.all_arms():
        if name in names:
            raise ConfigError(f"sweep '{spec.name}' has two arms named '{name}': their settings are the same")
        names.add(name)
        for condition, conditions in (spec.conditions or {"": {}}).items():
            for seed in spec.seeds:
                settings = {**conditions, **arm.settings}
                try:
                    layers = merged(spec.base, conditions, arm.settings, {"seed": seed})
                    training, weights = _place(trainings, _config(layers, threads), arm)
                except ConfigError as error:
                    raise ConfigError(f"sweep '{spec.name}', arm '{name}': {error}") from None
                # Until all methods of a fine-tune are known, its key stands for its run.
                points.append(
                    SweepPoint(
                        arm=name, condition=condition, seed=seed, settings=settings, run=training, weights=weights
                    )
                )
        families[name] = arm.family or _family(arm, spec.base)
    try:
        _add_beside(spec, trainings.values())
    except ConfigError as error:
        raise ConfigError(f"sweep '{spec.name}': {error}") from None
    runs = {key: training.config.model_copy(update={"method": training.methods}) for key, training in trainings.items()}
    addresses = {key: run_address(config, device) for key, config in runs.items()}
    record = SweepRecord(
        name=spec.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        geomsafe=__version__,
        source=spec.model_dump(mode="json"),
        reference=spec.reference,
        controls={name: arm.controls for name, arm in spec.arms.items() if arm.controls},
        families=families,
        points=[point.model_copy(update={"run": f"{RUNS}/{addresses[point.run]}"}) for point in points],
    )
    return Plan(record, {addresses[key]: config for key, config in runs.items()})


def _config(settings: dict[str, Any], threads: int) -> TrainConfig:
    config = make_config(settings)
    return config if config.threads is not None else config.model_copy(update={"threads": threads})


def _place(trainings: dict[str, _Training], config: TrainConfig, arm: Arm) -> tuple[str, str]:
    """Find or add the fine-tune of an arm, and add its methods to it.

    Returns:
        Key of the fine-tune and the arm's weight set in it.
    """
    specs = [str(spec) for spec in config.methods]
    methods = make_methods(specs)
    meant = _meant(methods, config, arm)
    acting = [not method.stands_beside for method in methods] if specs else []
    plain = config.model_copy(update={"method": []})
    if any(acting[place] for place in range(len(acting)) if not all(acting[: place + 1])):
        # A method that acts comes after one that looks on.
        key = f"{plain.model_dump_json()} {specs} alone"
        trainings.setdefault(key, _Training(plain, tuple(specs)))
        return key, meant
    kept = tuple(spec for spec, acts in zip(specs, acting, strict=True) if acts)
    key = f"{plain.model_dump_json()} {kept}"
    training = trainings.setdefault(key, _Training(plain, kept))
    renamed = _carried(training, methods, specs)
    return key, renamed.get(meant, meant)


def _add_beside(spec: SweepSpec, trainings: Iterable[_Training]) -> None:
    """Give every fine-tune the methods that the sweep wants in all of them."""  # noqa: DOC501
    methods = make_methods(spec.beside)
    for method, text in zip(methods, spec.beside, strict=False):
        if not method.stands_beside:
            raise ConfigError(f"'beside' holds '{text}', which acts on training: make it an arm")
    for training in trainings:
        _carried(training, methods, spec.beside)


def _carried(training: _Training, methods: Sequence[Method], specs: Sequence[str]) -> dict[str, str]:
    """Add a list's methods that stand beside to a fine-tune, each once; what a list refers to goes in before.

    Returns:
        Label in the list -> label in the run.
    """  # noqa: DOC501
    listed = list(zip(methods, specs, strict=False))
    renamed = {method.label: method.label for method, _ in listed if not method.stands_beside}
    left = [(method, spec) for method, spec in listed if method.stands_beside]
    while left:
        ready = [(method, spec) for method, spec in left if _target(spec) in {None, _LAST, *renamed}]
        if not ready:
            wrong = left[0][1]
            others = [method.label for method, _ in listed if method.label != left[0][0].label]
            raise ConfigError(
                f"method '{wrong}': there is no weight set '{_target(wrong)}' beside it: "
                f"choose one of {', '.join([_LAST, *others])}"
            )
        for method, spec in ready:
            renamed[method.label] = _added(training, spec, renamed)
        left = [one for one in left if one not in ready]
    return renamed


def _target(spec: str) -> str | None:
    """Return the weight set that a method refers to, such as that of `shrink:to=ema`."""  # noqa: DOC201
    target = MethodSpec.parse(spec).options.get("to")
    return None if target is None else str(target)


def _added(training: _Training, spec: str, renamed: Mapping[str, str]) -> str:
    """Add a method that stands beside, once, and return its label in the run."""  # noqa: DOC201
    wanted, target = MethodSpec.parse(spec), _target(spec)
    if target is not None and target in renamed:
        wanted = MethodSpec(name=wanted.name, options=wanted.options | {"to": renamed[target]})
    if str(wanted) not in training.beside:
        training.beside.append(str(wanted))
    place = len(training.acting) + training.beside.index(str(wanted))
    return make_methods(training.methods)[place].label


def _meant(methods: Sequence[Method], config: TrainConfig, arm: Arm) -> str:
    """Return the weight set that an arm is about: the one it names, else that of its last method with one."""  # noqa: DOC201, DOC501
    schedule = Schedule(total_steps=config.max_steps or 1, steps_per_epoch=1, lr=config.lr)
    offered = [name for method in methods if (name := str(method.describe(schedule)["weight_set"])) != _LAST]
    if arm.weights is None:
        return offered[-1] if offered else _LAST
    # Which steps a curve has is known once the data are: any well-written one may be among them.
    steps = {f"step-{step:06d}" for step in config.save_weights_at}
    curve = config.curve_points is not None and re.fullmatch(r"step-\d{6}", arm.weights)
    if arm.weights not in {_LAST, *offered, *steps} and not curve:
        raise ConfigError(
            f"it has no weight set '{arm.weights}': choose one of {', '.join([_LAST, *offered, *sorted(steps)])}"
        )
    return arm.weights


def _family(arm: Arm, base: Mapping[str, Any]) -> str:
    """Name what would be tuned as one method: the methods' names, without options."""  # noqa: DOC201
    given = merged(base, arm.settings).get("method") or []
    listed = [given] if isinstance(given, str) else given
    return " + ".join(MethodSpec.parse(text).name for text in listed) or "baseline"
