"""Suite files: prompt sets, attacks and judges as a YAML that a paper can print.

    sets:
      - advbench                      # a known name, or KIND=SOURCE
      - source: my_prompts.csv
        kind: harmful
        limit: 100
        attacks: [direct]             # of this set alone
    attacks: [direct, prefill:4]      # of every harmful set that names none
    judges: [keyword-29, keyword-19]  # of refusal; the usual ones where left out
    max_new_tokens: 256
    temperature: 0
    choices: [arc.jsonl]              # and held_out, lm_eval, mt_bench: see measure_spec; then sets may be left out

`quick` and `full` are files of this kind that come with geomsafe.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from geomsafe.data import load_prompts
from geomsafe.errors import ConfigError
from geomsafe.evaluation.attacks import Attack, Direct, parse_attack
from geomsafe.evaluation.choosing import Choosing
from geomsafe.evaluation.judges import named_judge
from geomsafe.evaluation.measure_spec import MeasureSpec
from geomsafe.evaluation.suites import Kind, Suite, check_world, parse_suite, slug, unique_names
from geomsafe.records import content_sha256
from geomsafe.world import World

PRESETS = ("quick", "full")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SetSpec(_Strict):
    """One prompt set of a suite file."""

    source: str
    kind: Kind | None = None
    limit: int | None = Field(default=None, ge=1)
    attacks: tuple[str, ...] | None = None
    judges: tuple[str | dict[str, Any], ...] | None = None


class SuiteSpec(MeasureSpec):
    """A whole suite file; fields left as None are those of the command or the run."""

    sets: tuple[SetSpec, ...] = ()
    attacks: tuple[str, ...] = ("direct",)
    judges: tuple[str | dict[str, Any], ...] | None = None
    max_new_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = None


def read_suite(name: str, organism: bool) -> SuiteSpec:
    """Read a suite file.

    Args:
        name: "quick", "full" or a YAML file.
        organism: whether the model lives in the organism's world; "quick" and "full" then are its own sets.

    Returns:
        The suite, its names checked.

    Raises:
        ConfigError: the file cannot be read, or says what no suite can.
    """
    if name in PRESETS:
        file = f"organism-{name}.yaml" if organism else f"{name}.yaml"
        text = resources.files("geomsafe.evaluation").joinpath("presets", file).read_text(encoding="utf-8")
    else:
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"suite '{name}' cannot be read ({error}): name quick, full or a YAML file") from None
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"suite '{name}' is no YAML: {' '.join(str(error).split())}") from None
    measures = isinstance(loaded, dict) and any(loaded.get(key) for key in MeasureSpec.model_fields)
    sets = loaded.get("sets", [] if measures else None) if isinstance(loaded, dict) else None
    if not isinstance(sets, list) or not (sets or measures):
        raise ConfigError(f"suite '{name}' names no sets: write 'sets:' with a list of prompt sets under it")
    loaded["sets"] = [{"source": one} if isinstance(one, str) else one for one in sets]
    try:
        spec = SuiteSpec.model_validate(loaded)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(f"suite '{name}': {place}: {first['msg']}") from None
    _check(spec)
    return spec


def suites_of(spec: SuiteSpec, world: World | None, model: str) -> list[Suite]:
    """Load the prompts of a suite file.

    Args:
        spec: the suite.
        world: the model's world, where it has one.
        model: name of the model, for messages.

    Returns:
        One suite a set and attack, in order; attacks other than "direct" are part of its name.
    """
    named = [_named(one) for one in spec.sets]
    for _, source in named:
        check_world(source, world, model)
    names = unique_names([slug(source) for _, source in named])
    suites: list[Suite] = []
    for one, name, (kind, source) in zip(spec.sets, names, named, strict=True):
        prompts = load_prompts(source, world=world)
        judges = one.judges if one.judges is not None else spec.judges
        for attack in _attacks(spec, one, kind):
            full = name if isinstance(attack, Direct) else f"{name}+{_short(attack.name)}"
            suites.append(Suite(full, kind, prompts, attack, judges, one.limit))
    return suites


def _short(attack: str) -> str:
    """Return an attack's name as a part of file names; a long one ends in a hash of the whole."""
    text = slug(attack.replace(":", "-"))
    return text if len(text) <= 60 else f"{text[:51]}-{content_sha256([attack])[:8]}"


def _named(one: SetSpec) -> tuple[Kind, str]:
    return parse_suite(one.source) if one.kind is None else (one.kind, one.source)


def _attacks(spec: SuiteSpec, one: SetSpec, kind: str) -> list[Attack]:
    names = one.attacks if one.attacks is not None else spec.attacks if kind == "harmful" else ("direct",)
    return [parse_attack(name) for name in names]


def _check(spec: SuiteSpec) -> None:
    """Find what is wrong with names before a model is loaded.

    Raises:
        ConfigError: an attack stands at prompts that are not harmful.
    """
    Choosing(spec.temperature or 0.0, spec.top_p if spec.top_p is not None else 1.0)
    for judges in (spec.judges, *(one.judges for one in spec.sets)):
        for judge in judges or ():
            named_judge(judge)
    for one in spec.sets:
        kind, source = _named(one)
        attacks = _attacks(spec, one, kind)
        if kind != "harmful" and any(not isinstance(attack, Direct) for attack in attacks):
            raise ConfigError(f"set '{source}' is {kind}: attacks are for harmful sets, leave them out here")
