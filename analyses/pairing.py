"""What is compared with what: arms of equal settings, and each arm's matched control.

An arm is one kind of weights ("final", "ema") of all runs that differ only in their seed.
Its control is fixed by rule, before any outcome is looked at:

- shadow EMA, and any other set made beside training or at its end: the last iterate of the *same* runs;
- EMA fed back every step: the runs without it at learning rate x eta, all else equal,
  because the two are the same algorithm;
- EMA fed back every k > 1 steps or every epoch: Lookahead, for which no learning rate is
  exact; it has no matched control here;
- any other method: the runs without it at equal settings;
- a baseline: the baseline with the largest learning rate per example. That is a contrast of
  settings, not the effect of a method.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

# Settings that a careful person would tune; baselines may differ in these and be contrasted.
TUNABLE = (
    "lr", "batch_size", "accumulation", "epochs", "max_steps", "warmup",
    "optimizer", "schedule", "weight_decay", "clip",
)  # fmt: skip
# All settings that decide the weights of a run, but for its seed.
DECISIVE = (
    "model", "revision", "chat_template", "system_prompt", "dtype", "lora",
    "data", "columns", "data_limit", "harmful_ratio", "harmful_data", "max_length", *TUNABLE,
)  # fmt: skip

# Methods that leave training alone and offer a weight set beside the last iterate, under their own name.
BESIDE = ("swa", "early-stop", "interpolate", "shrink", "random", "safe-lora", "one-shot")

# Methods whose weights depend on the setting `base_model`, which no other run's do.
NEED_BASE = ("safe-lora", "asft")

MOST_NAMED = 2

Kind = Literal["own last iterate", "learning rate x eta", "without the method", "settings", "none"]


@dataclass(frozen=True)
class Method:
    """One method of a run with its options, defaults filled in."""

    name: str
    options: Mapping[str, str | int | float | bool]

    @property
    def is_ema(self) -> bool:
        """Whether this is the exponential moving average of the weights."""
        return self.name == "ema"

    @property
    def is_shadow(self) -> bool:
        """Whether its weights stand beside training, which it never acts on."""
        return self.name in BESIDE or (self.is_ema and self.options.get("mode", "shadow") == "shadow")

    @property
    def eta(self) -> float:
        """Weight of the new iterate."""
        return float(self.options.get("eta", 0.25))

    @property
    def every(self) -> int | None:
        """Steps between two updates; None where the period is counted in epochs."""
        return None if self.options.get("unit", "step") == "epoch" else int(self.options.get("every", 1))


@dataclass(frozen=True)
class Run:
    """What pairing needs to know of a run; `weights` are the scored or saved weight sets."""

    id: str
    seed: int
    settings: Mapping[str, Any]
    methods: tuple[Method, ...]
    weights: tuple[str, ...]


@dataclass(frozen=True)
class Arm:
    """One kind of weights of the runs that differ only in their seed.

    `effective_lr` is lr, or lr x eta where an EMA is fed back every step, None where it is fed
    back less often; `window` is the memory of an EMA in optimizer steps, every / eta.
    """

    key: str
    label: str
    weights: str
    runs: Mapping[int, str]
    settings: Mapping[str, Any]
    methods: tuple[Method, ...]
    effective_lr: float | None
    window: float | None

    @property
    def is_baseline(self) -> bool:
        """Whether no method acted on these weights."""
        return not self.methods


@dataclass(frozen=True)
class Contrast:
    """An arm beside its control; `control` None means there is none, `basis` says why or how."""

    arm: str
    control: str | None
    kind: Kind
    basis: str
    baseline: str | None = field(default=None)


def make_arms(runs: Sequence[Run]) -> list[Arm]:
    """Form the arms: same decisive settings, methods and kind of weights.

    A shadow EMA does not act on training, so the last iterate of its runs is kept as an arm
    of its own, "last iterate of ...", never pooled with other runs. Intermediate weight sets
    ("step-...") are points on curves, not arms. Of two runs with equal seed and settings the
    first counts.

    Args:
        runs: the finished runs.

    Returns:
        The arms: baselines by falling learning rate per example, then methods.
    """
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(_signature(run.settings, run.methods), []).append(run)
    varying = _varying([group[0] for group in grouped.values()])
    arms = [
        _arm(group, weights, varying)
        for group in grouped.values()
        for weights in _kinds(group)
        if not weights.startswith(("step-", "theta_"))
    ]
    return sorted(arms, key=lambda arm: (len(arm.methods), _careful(arm), arm.label))


def make_contrasts(arms: Sequence[Arm]) -> list[Contrast]:
    """Give each arm its control by the rules at the head of this file.

    Args:
        arms: as `make_arms` returns them.

    Returns:
        (arms,) one contrast an arm, in their order.
    """
    return [_contrast(arm, arms) for arm in arms]


def rerun_pairs(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Name the runs that repeat another one: equal decisive settings, methods and seed.

    Args:
        runs: the finished runs.

    Returns:
        Pairs (first, repeat) of run ids.
    """
    first: dict[str, str] = {}
    pairs = []
    for run in runs:
        key = f"{run.seed} {_signature(run.settings, run.methods)}"
        if key in first:
            pairs.append((first[key], run.id))
        first.setdefault(key, run.id)
    return pairs


def settings_difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Name the decisive settings in which two arms differ.

    Args:
        a: settings of one arm.
        b: settings of the other.

    Returns:
        Setting -> (value in a, value in b).
    """
    return {name: (a.get(name), b.get(name)) for name in DECISIVE if not _equal(a.get(name), b.get(name))}


def describe_method(method: Method) -> str:
    """Return a short name such as "EMA shadow, η 0.25" with unbroken spaces in it."""
    if not method.is_ema:
        options = ", ".join(f"{key} {value}" for key, value in method.options.items() if value is not None)
        return f"{method.name} ({options})" if options else method.name
    every, unit = method.options.get("every", 1), method.options.get("unit", "step")
    period = "" if method.every == 1 else f", every {every} {unit}s" if every != 1 else f", every {unit}"
    return f"EMA {method.options.get('mode', 'shadow')}, η\u00a0{method.eta:g}{period}"


def _contrast(arm: Arm, arms: Sequence[Arm]) -> Contrast:
    if arm.is_baseline:
        return _settings_contrast(arm, arms)
    own = next((other for other in arms if other.weights == "final" and _same_runs(other, arm)), None)
    # A set made beside a run that feeds an EMA back is beside that run's last iterate all the same.
    fed = any(method.is_ema and not method.is_shadow for method in arm.methods)
    if arm.weights != "final" and (not fed or any(method.is_shadow for method in arm.methods)):
        plain = own.key if own else None
        basis = "the last iterate of the same runs" if own else "the last iterate of the same runs was not scored"
        same = plain if own and own.is_baseline else None
        return Contrast(arm.key, plain, "own last iterate" if own else "none", basis, same)
    acting = [method for method in arm.methods if not method.is_shadow]
    feedback = [method for method in acting if method.is_ema]
    rest = tuple(method for method in acting if not method.is_ema)
    baseline = _find(arms, arm.settings, (), arm.weights)
    plain = baseline.key if baseline else None
    if not feedback:
        basis = "the same settings without the method" if plain else "no run without the method at these settings"
        return Contrast(arm.key, plain, "without the method" if plain else "none", basis, plain)
    if len(feedback) > 1 or feedback[0].every != 1:
        return Contrast(
            arm.key, None, "none", "fed back less than every step it is Lookahead: no learning rate matches it", plain
        )
    lr = float(arm.settings.get("lr", math.nan)) * feedback[0].eta
    control = _find(arms, {**arm.settings, "lr": lr}, rest, arm.weights)
    if control is None:
        return Contrast(arm.key, None, "none", f"no run at learning rate × η = {_number(lr)} and equal settings", plain)
    return Contrast(
        arm.key, control.key, "learning rate x eta", f"learning rate × η = {_number(lr)}, all else equal", plain
    )


def _same_runs(final: Arm, arm: Arm) -> bool:
    # One seed's set may not have been scored; its last iterate then stands alone.
    return bool(arm.runs) and all(final.runs.get(seed) == run for seed, run in arm.runs.items())


def _settings_contrast(arm: Arm, arms: Sequence[Arm]) -> Contrast:
    fixed = [name for name in DECISIVE if name not in TUNABLE]
    rivals = [
        other
        for other in arms
        if other.is_baseline
        and not _repeats(other, arms)
        and all(_equal(other.settings.get(name), arm.settings.get(name)) for name in fixed)
    ]
    if not rivals:
        return Contrast(arm.key, None, "none", "the last iterate of shadow runs, a control itself")
    careless = min(rivals, key=_careful)
    if careless.key == arm.key:
        return Contrast(arm.key, None, "none", "reference of the settings contrasts")
    differing = settings_difference(careless.settings, arm.settings)
    if not differing:
        return Contrast(arm.key, None, "none", f"a control itself; it repeats {careless.label}")
    changed = ", ".join(f"{name} {_number(was)} → {_number(now)}" for name, (was, now) in differing.items())
    return Contrast(arm.key, careless.key, "settings", f"a contrast of settings: {changed}")


def _repeats(arm: Arm, arms: Sequence[Arm]) -> bool:
    """Whether an arm is the last iterate of shadow runs beside runs of its own at equal settings."""  # noqa: DOC201
    return arm.label.startswith("last iterate") and any(
        other.is_baseline
        and other.weights == arm.weights
        and not other.label.startswith("last iterate")
        and not settings_difference(other.settings, arm.settings)
        for other in arms
    )


def _find(arms: Sequence[Arm], settings: Mapping[str, Any], methods: tuple[Method, ...], weights: str) -> Arm | None:
    same = [
        arm
        for arm in arms
        if arm.methods == methods and arm.weights == weights and not settings_difference(arm.settings, settings)
    ]
    # A run of its own is preferred to the last iterate of a shadow run, which equals it.
    return min(same, key=lambda arm: arm.label.startswith("last iterate"), default=None)


def _arm(group: Sequence[Run], weights: str, varying: Sequence[str]) -> Arm:
    first = group[0]
    runs: dict[int, str] = {}
    for run in group:
        if weights in run.weights:
            runs.setdefault(run.seed, run.id)
    shadows = [method for method in first.methods if method.is_shadow]
    acting = tuple(method for method in first.methods if not method.is_shadow)
    methods = acting if weights == "final" else _behind(first.methods, weights)
    emas = [method for method in methods if method.is_ema]
    lr: float | None = float(first.settings.get("lr", math.nan))
    for method in emas:
        lr = lr if lr is None or method.is_shadow else lr * method.eta if method.every == 1 else None
    window = emas[-1].every / emas[-1].eta if emas and emas[-1].every and emas[-1].eta > 0 else None
    name = " + ".join(describe_method(method) for method in methods) or "baseline"
    if weights == "final" and shadows:
        name = "last iterate of " + _several(first.methods)
    suffix = ", ".join(_short(key, first.settings.get(key)) for key in varying)
    label = f"{name} · {suffix}" if suffix else name
    return Arm(
        key=f"{_signature(first.settings, first.methods)} {weights}",
        label=label,
        weights=weights,
        runs=dict(sorted(runs.items())),
        settings=first.settings,
        methods=methods,
        effective_lr=lr,
        window=window,
    )


def _behind(methods: Sequence[Method], weights: str) -> tuple[Method, ...]:
    """Return the methods that made a weight set: those that act on training, and the one whose set it is."""
    seen: dict[str, int] = {}
    labels = []
    for method in methods:
        seen[method.name] = seen.get(method.name, 0) + 1
        labels.append(method.name if seen[method.name] == 1 else f"{method.name}-{seen[method.name]}")
    if weights not in labels:
        return tuple(methods)
    return tuple(
        method for method, label in zip(methods, labels, strict=True) if label == weights or not method.is_shadow
    )


def _kinds(group: Sequence[Run]) -> list[str]:
    return sorted({weights for run in group for weights in run.weights})


def _careful(arm: Arm) -> tuple[float, float]:
    examples = float(arm.settings.get("batch_size") or 1) * float(arm.settings.get("accumulation") or 1)
    lr = float(arm.settings.get("lr", math.nan))
    return (-lr / examples, -lr)


def _varying(runs: Sequence[Run]) -> list[str]:
    return [
        name for name in DECISIVE if any(not _equal(run.settings.get(name), runs[0].settings.get(name)) for run in runs)
    ]


def _short(name: str, value: Any) -> str:
    names = {"batch_size": "batch", "max_steps": "steps", "weight_decay": "decay", "accumulation": "accum."}
    return f"{names.get(name, name)}\u00a0{_number(value)}"


def _several(methods: Sequence[Method]) -> str:
    # Many methods may share one fine-tune; a label names what acted on it and counts the rest.
    acting = [describe_method(method) for method in methods if not method.is_shadow]
    beside = [describe_method(method) for method in methods if method.is_shadow]
    if len(beside) > MOST_NAMED:
        beside = [*beside[:1], f"{len(beside) - 1} more beside it"]
    return " + ".join(acting + beside)


def _number(value: Any) -> str:
    """Return 2.5e-4 rather than 0.00025; anything but a float as it is."""
    if not isinstance(value, float) or value == 0 or 0.01 <= abs(value) < 1e4:
        return f"{value:g}" if isinstance(value, float) else str(value)
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, (int, float)) and isinstance(b, (int, float)) and not isinstance(a, bool):
        # 5e-4 x .25 and 1.25e-4 differ in the last bit.
        return math.isclose(a, b, rel_tol=1e-9)
    return bool(a == b)


def _signature(settings: Mapping[str, Any], methods: Sequence[Method]) -> str:
    decisive = {name: settings.get(name) for name in DECISIVE}
    if any(method.name in NEED_BASE for method in methods):
        decisive["base_model"] = settings.get("base_model")
    acting = [[method.name, dict(sorted(method.options.items()))] for method in methods]
    return json.dumps([decisive, acting], sort_keys=True, default=str)
