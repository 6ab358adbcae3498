"""The methods by name, and how a specification becomes a method."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pydantic import ValidationError

from geomsafe.config import MethodSpec
from geomsafe.errors import ConfigError
from geomsafe.methods.asft import Asft
from geomsafe.methods.base import Method
from geomsafe.methods.baseline import Baseline
from geomsafe.methods.clip import Clip
from geomsafe.methods.early_stop import EarlyStop
from geomsafe.methods.ema import Ema
from geomsafe.methods.interpolate import Interpolate
from geomsafe.methods.kl import Kl
from geomsafe.methods.l2sp import L2SP
from geomsafe.methods.mix import Mix
from geomsafe.methods.one_shot import OneShot
from geomsafe.methods.pcgrad import PcGrad
from geomsafe.methods.random_direction import RandomDirection
from geomsafe.methods.safe_lora import SafeLora
from geomsafe.methods.safegrad import SafeGrad
from geomsafe.methods.shrink import Shrink
from geomsafe.methods.spf import Spf
from geomsafe.methods.swa import Swa

METHODS: tuple[type[Method], ...] = (
    Baseline,
    Spf,
    PcGrad,
    SafeGrad,
    Clip,
    Ema,
    Swa,
    L2SP,
    EarlyStop,
    Interpolate,
    Shrink,
    RandomDirection,
    SafeLora,
    OneShot,
    Asft,
    Kl,
    Mix,
)
REGISTRY: dict[str, type[Method]] = {method.name: method for method in METHODS}


def make_method(spec: MethodSpec | str) -> Method:
    """Build one method.

    Args:
        spec: its specification, or the text of one (`ema:eta=0.25,mode=feedback`).

    Returns:
        The method, its options validated.

    Raises:
        ConfigError: the name, an option or a value is unknown; the near one is suggested.
    """
    wanted = MethodSpec.parse(spec) if isinstance(spec, str) else spec
    kind = REGISTRY.get(wanted.name)
    if kind is None:
        raise ConfigError(f"unknown method '{wanted.name}': {_suggestion(wanted.name, REGISTRY, 'methods')}")
    known = kind.Options.model_fields
    for option in wanted.options:
        if option not in known:
            hint = _suggestion(option, known, "options") if known else "it has no options"
            raise ConfigError(f"method '{wanted}': unknown option '{option}': {hint}")
    try:
        return kind(kind.Options.model_validate(dict(wanted.options)))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        reason = str(problem["msg"]).removeprefix("Value error, ")
        value = f"option '{where}' = {problem['input']!r}: " if where else ""
        raise ConfigError(f"method '{wanted}': {value}{reason}") from None


def make_methods(specs: Iterable[MethodSpec | str]) -> list[Method]:
    """Build the methods of a run in the order in which they act.

    Args:
        specs: the specifications; none means `baseline`.

    Returns:
        The methods, each with a label of its own: the second `ema` is `ema-2`.
    """
    methods = [make_method(spec) for spec in specs] or [Baseline()]
    seen: dict[str, int] = {}
    for method in methods:
        seen[method.name] = seen.get(method.name, 0) + 1
        if seen[method.name] > 1:
            method.label = f"{method.name}-{seen[method.name]}"
    return methods


def _suggestion(wrong: str, known: Iterable[str], kind: str) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(wrong, names, n=1)
    return f"did you mean '{near[0]}'?" if near else f"known {kind} are {', '.join(names)}"
