"""From a sweep's arms to the runs that give them, each trained once.

Methods that stand beside training (shadow averages, weights at the end, post-hoc patches) do not change a bit of it.
So arms that differ in such methods alone become one run that carries all of them, and each arm is one of its weight
sets; the second `ema` of a run has the set `ema-2`, and a reference such as `shrink:to=ema` follows.

An arm whose list has such a method before one that acts on training keeps a run of its own: the order of methods is
the order in which they see the weights.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class _Wanted:
    """An arm under a condition with a seed: which fine-tune, and which of its weight sets."""

    arm: str
    condition: str
    seed: int
    settings: dict[str, Any]
    training: str
    weights: str


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
    wanted: list[_Wanted] = []
    families: dict[str, str] = {}
    names: set[str] = set()
    for name, arm in spec.all_arms():
        if name in names:
            raise ConfigError(f"sweep '{spec.name}' has two arms named '{name}': their settings are the same")
        names.add(name)
        for condition, conditions in (spec.conditions or {"": {}}).items():
            for seed in spec.seeds:
                settings = {**conditions, **arm.settings}
                config = _config(spec, name, merged(spec.base, conditions, arm.settings, {"seed": seed}), threads)
                training, weights = _place(trainings, config, arm)
                wanted.append(_Wanted(name, condition, seed, settings, training, weights))
        families[name] = arm.family or _family(arm, spec.base)
    _add_beside(spec, trainings.values())
    runs = {key: training.config.model_copy(update={"method": training.methods}) for key, training in trainings.items()}
    addresses = {key: run_address(config, device) for key, config in runs.items()}
    points = [
        SweepPoint(
            arm=one.arm,
            condition=one.condition,
            seed=one.seed,
            settings=one.settings,
            run=f"{RUNS}/{addresses[one.training]}",
            weights=one.weights,
        )
        for one in wanted
    ]
    record = SweepRecord(
        name=spec.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        geomsafe=__version__,
        source=spec.model_dump(mode="json"),
        reference=spec.reference,
        controls={name: arm.controls for name, arm in spec.arms.items() if arm.controls},
        families=families,
        points=points,
    )
    return Plan(record, {addresses[key]: config for key, config in runs.items()})


def _config(spec: SweepSpec, name: str, settings: dict[str, Any], threads: int) -> TrainConfig:
    try:
        config = make_config(settings)
        make_methods(config.methods)
    except ConfigError as error:
        raise ConfigError(f"sweep '{spec.name}', arm '{name}': {error}") from None
    return config if config.threads is not None else config.model_copy(update={"threads": threads})


def _place(trainings: dict[str, _Training], config: TrainConfig, arm: Arm) -> tuple[str, str]:
    """Find or add the fine-tune of an arm, and add its methods to it.

    Returns:
        Key of the fine-tune and the arm's weight set in it.
    """  # noqa: DOC501
    methods = make_methods(config.methods)
    specs = [str(spec) for spec in config.methods]
    meant = arm.weights or _offered(methods, config)
    acting = [not method.stands_beside for method in methods] if specs else []
    plain = config.model_copy(update={"method": []})
    if any(acting[place] for place in range(len(acting)) if not all(acting[: place + 1])):
        # A method that acts comes after one that looks on.
        key = f"{plain.model_dump_json()} {specs} alone"
        trainings.setdefault(key, _Training(config, tuple(specs)))
        return key, meant
    kept = tuple(spec for spec, acts in zip(specs, acting, strict=True) if acts)
    key = f"{plain.model_dump_json()} {kept}"
    training = trainings.setdefault(key, _Training(plain, kept))
    own = {method.label: method for method in methods}
    renamed: dict[str, str] = {}
    for method, spec, acts in zip(methods, specs, acting, strict=False):
        renamed[method.label] = method.label if acts else _added(training, spec, renamed)
    if meant not in {_LAST, *own} and not meant.startswith("step-"):
        raise ConfigError(f"arm has no weight set '{meant}': it has {', '.join([_LAST, *own])}")
    return key, renamed.get(meant, meant)


def _add_beside(spec: SweepSpec, trainings: Iterable[_Training]) -> None:
    """Give every fine-tune the methods that the sweep wants in all of them."""  # noqa: DOC501
    for method, text in zip(make_methods(spec.beside), spec.beside, strict=False):
        if not method.stands_beside:
            raise ConfigError(f"sweep '{spec.name}': 'beside' holds '{text}', which acts on training: make it an arm")
    for training in trainings:
        for text in spec.beside:
            _added(training, text, {})


def _added(training: _Training, spec: str, renamed: Mapping[str, str]) -> str:
    """Add a method that stands beside, once, and return its label in the run."""  # noqa: DOC201
    wanted = MethodSpec.parse(spec)
    target = wanted.options.get("to")
    if isinstance(target, str) and target in renamed:
        wanted = MethodSpec(name=wanted.name, options=wanted.options | {"to": renamed[target]})
    if str(wanted) not in training.beside:
        training.beside.append(str(wanted))
    place = len(training.acting) + training.beside.index(str(wanted))
    return make_methods(training.methods)[place].label


def _offered(methods: Sequence[Method], config: TrainConfig) -> str:
    """Return the weight set of the last method that has one, else the last iterate's."""  # noqa: DOC201
    schedule = Schedule(total_steps=config.max_steps or 1, steps_per_epoch=1, lr=config.lr)
    sets = [str(method.describe(schedule)["weight_set"]) for method in methods]
    return next((name for name in reversed(sets) if name != _LAST), _LAST)


def _family(arm: Arm, base: Mapping[str, Any]) -> str:
    """Name what would be tuned as one method: the methods' names, without options."""  # noqa: DOC201
    given = merged(base, arm.settings).get("method") or []
    listed = [given] if isinstance(given, str) else given
    return " + ".join(MethodSpec.parse(text).name for text in listed) or "baseline"
