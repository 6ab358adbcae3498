"""What a sweep is to run, as a user writes it: named arms, a grid, random draws; conditions and seeds.

    name: rates
    base: {max_steps: 200, probe_schedule: "off"}     settings of every run
    seeds: [0, 1, 2]
    conditions:                                      every arm is run under each of them; may be left out
      benign: {}
      harmful: {harmful_ratio: 0.1}
    arms:
      careless: {lr: 4.0e-4}
      ema: {lr: 4.0e-4, method: ["ema:eta=0.25,mode=feedback"], controls: [matched]}
      matched: {lr: 1.0e-4}
    reference: careless                              the arm that all others are shown against
    beside: ["interpolate:alpha=0.5"]                methods that leave training alone, in every run
    grid: {lr: [2.0e-5, 1.0e-4], batch_size: [4, 16]}
    random: {lr: {low: 1.0e-5, high: 1.0e-3, log: true}, schedule: {choices: [linear, cosine]}}
    budget: 40                                       draws of `random`

Arms, grid and draws add up. Any setting of `geomsafe train` is a key, nested ones as `lora.rank`; its folder and its
seed are the sweep's own.
"""

from __future__ import annotations

import difflib
import itertools
import math
import random
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from geomsafe.config import LoraSettings, Settings, TrainConfig, load_config
from geomsafe.errors import ConfigError

OWN = ("out", "seed")
"""Settings that the sweep decides for each run."""

_ARM_KEYS = ("controls", "family", "weights")


class Draw(Settings):
    """How one setting is drawn: uniformly between two bounds (in the logarithm if `log`), or one of some choices."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: list[Any] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _one_kind(self) -> Draw:
        bounds = self.low is not None and self.high is not None
        if bounds == (self.choices is not None) or (bounds and not self.low < self.high):  # type: ignore[operator]
            raise ValueError("give low and high with low < high, or choices")
        if bounds and self.log and not self.low > 0:  # type: ignore[operator]
            raise ValueError(f"log needs low > 0, not {self.low}")
        return self

    def sample(self, rng: random.Random) -> Any:
        """Draw one value.

        Args:
            rng: the sweep's random numbers.

        Returns:
            The value; numbers to four figures.
        """
        if self.choices is not None or self.low is None or self.high is None:
            return rng.choice(self.choices or [])
        drawn = (
            math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
            if self.log
            else rng.uniform(self.low, self.high)
        )
        # Digits that nobody would type again are no part of a setting.
        return float(f"{drawn:.4g}")


class Arm(Settings):
    """Named settings, the arms that could explain its effect away, and the weight set that is meant.

    `weights` None means the set of its last method that has one, else the last iterate. `family` names what a user
    would tune as one method; None means the arm stands for itself.
    """

    settings: dict[str, Any]
    controls: list[str] = []
    family: str | None = None
    weights: str | None = None


class SweepSpec(Settings):
    """A sweep; see the head of this file."""

    name: str = Field("sweep", pattern=r"^[A-Za-z0-9._-]+$")
    base: dict[str, Any] = {}
    seeds: list[int] = Field([0], min_length=1)
    conditions: dict[str, dict[str, Any]] = {}
    arms: dict[str, Arm] = {}
    beside: list[str] = []
    reference: str | None = None
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    random: dict[str, Draw] = {}
    budget: int | None = Field(default=None, ge=1)
    random_seed: int = 0

    @field_validator("conditions", mode="before")
    @classmethod
    def _conditions_may_be_empty(cls, value: Any) -> Any:
        return {name: given or {} for name, given in value.items()} if isinstance(value, Mapping) else value

    @field_validator("arms", mode="before")
    @classmethod
    def _arms_are_settings(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        found = {}
        for name, given in value.items():
            if given is not None and not isinstance(given, Mapping | Arm):
                found[name] = given
                continue
            entry = dict(given or {})
            if "settings" in entry:
                found[name] = entry
                continue
            own = {key: entry.pop(key) for key in _ARM_KEYS if key in entry}
            found[name] = {"settings": entry, **own}
        return found

    @model_validator(mode="after")
    def _whole(self) -> SweepSpec:
        if bool(self.random) != (self.budget is not None):
            raise ValueError("'random' and 'budget' go together: what is drawn, and how often")
        if not (self.arms or self.grid or self.random):
            raise ValueError("nothing to run: give arms, grid, or random with budget")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {self.seeds} repeat one")
        known = set(self.arms)
        for name, arm in self.arms.items():
            for other in arm.controls:
                if other not in known or other == name:
                    raise ValueError(
                        f"arm '{name}' has control '{other}', which is no other arm: {_near(other, known)}"
                    )
        if self.reference is not None and self.reference not in known:
            raise ValueError(f"reference '{self.reference}' is no arm: {_near(self.reference, known)}")
        for settings in (self.base, *self.conditions.values(), *(arm.settings for arm in self.arms.values())):
            _require_known(settings)
        _require_known(self.grid)
        _require_known(self.random)
        return self

    def all_arms(self) -> Iterator[tuple[str, Arm]]:
        """Yield every arm once: named ones, then the grid, then the draws, named by their settings.

        Yields:
            (name, arm).
        """
        yield from self.arms.items()
        if self.grid:
            for values in itertools.product(*self.grid.values()):
                yield _named(dict(zip(self.grid, values, strict=True)))
        rng = random.Random(self.random_seed)
        drawn = [_named({key: draw.sample(rng) for key, draw in self.random.items()}) for _ in range(self.budget or 0)]
        # Of a few choices the same ones are drawn again: a trial that was made already.
        yield from dict(drawn).items()


def load_sweep(path: Path) -> SweepSpec:
    """Read a sweep from YAML.

    Args:
        path: the file.

    Returns:
        The sweep.
    """
    return make_sweep(load_config(path), f"sweep file '{path}'")


def load_preset(name: str) -> SweepSpec:
    """Read a sweep that comes with geomsafe.

    Args:
        name: "paper-a", "paper-b" or "ema-controls".

    Returns:
        The sweep.

    Raises:
        ConfigError: there is no such preset; the near one is suggested.
    """
    folder = resources.files("geomsafe.sweeps") / "presets"
    known = sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    if name not in known:
        raise ConfigError(f"unknown preset '{name}': {_near(name, known)}")
    with resources.as_file(folder / f"{name}.yaml") as path:
        return load_sweep(path)


def make_sweep(values: Mapping[str, Any], source: str = "sweep") -> SweepSpec:
    """Validate a sweep.

    Args:
        values: as in YAML.
        source: what to call it in messages.

    Returns:
        The sweep.

    Raises:
        ConfigError: a key is unknown or a value does not fit.
    """
    try:
        return SweepSpec.model_validate(dict(values))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            known = Draw.model_fields if problem["loc"][0] == "random" else SweepSpec.model_fields
            raise ConfigError(f"{source}: unknown key '{where}': {_near(str(problem['loc'][-1]), known)}") from None
        reason = str(problem["msg"]).removeprefix("Value error, ")
        raise ConfigError(f"{source}: {f'{where}: ' if where else ''}{reason}") from None


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Lay settings over each other, later ones on top; `lora.rank` changes one key of `lora`.

    Args:
        layers: settings.

    Returns:
        Nested settings as `geomsafe.config.make_config` takes them.
    """
    found: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            outer, _, inner = key.partition(".")
            if inner:
                found[outer] = dict(found.get(outer) or {}) | {inner: value}
            else:
                found[key] = value
    return found


def _named(settings: dict[str, Any]) -> tuple[str, Arm]:
    return " ".join(f"{key}={_written(value)}" for key, value in settings.items()), Arm(settings=settings)


def _written(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if float(f"{value:.4g}") == value else repr(value)
    return "+".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _require_known(settings: Mapping[str, Any]) -> None:
    for key in settings:
        outer, _, inner = key.partition(".")
        if outer in OWN:
            raise ValueError(f"setting '{key}' is the sweep's own: seeds go under 'seeds', the folder is --out")
        if outer not in TrainConfig.model_fields:
            raise ValueError(f"unknown setting '{key}': {_near(outer, TrainConfig.model_fields)}")
        if inner and (outer != "lora" or inner not in LoraSettings.model_fields):
            raise ValueError(
                f"unknown setting '{key}': nested ones are {', '.join(f'lora.{k}' for k in LoraSettings.model_fields)}"
            )


def _near(wrong: str, known: Any) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(wrong, names, n=1)
    return f"did you mean '{near[0]}'?" if near else f"known are {', '.join(names) or 'none'}"
