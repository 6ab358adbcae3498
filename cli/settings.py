"""The options of `geomsafe train`, made from `TrainConfig`: one list of settings, not two.

Each field becomes `--field-name` with the field's description as help and its default
shown. An option that was not given stays None, so that it does not override the YAML.
Nested settings are written `--lora rank=8,alpha=16` and `--columns prompt=question`.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from geomsafe.config import MethodSpec, Settings, TrainConfig
from geomsafe.errors import ConfigError


def with_config_options(command: Callable[..., None], names: Collection[str] | None = None) -> Callable[..., None]:
    """Give `command`, whose last parameter is `**settings`, one option a field of TrainConfig.

    Args:
        command: a function with its own parameters and `**settings`.
        names: only these fields.

    Returns:
        The function with a signature that Typer can read.
    """
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
    options = [
        _option(name, field) for name, field in TrainConfig.model_fields.items() if names is None or name in names
    ]
    command.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in [*own, *options]} | {"return": None}
    return command


def given_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Keep the options that were given, nested ones parsed into mappings.

    Args:
        settings: option values by field name; None or an empty list where not given.

    Returns:
        What goes on top of the YAML file.
    """
    given = {name: value for name, value in settings.items() if value is not None and value != []}
    for name in given:
        if _nested(TrainConfig.model_fields[name]):
            given[name] = _parse_nested(name, given[name])
    return given


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    flag = f"--{name.replace('_', '-')}"
    kind = _option_type(field)
    flags = f"{flag}/--no-{name.replace('_', '-')}" if kind is bool else flag
    default = field.get_default(call_default_factory=True)
    shown = "none" if default is None or isinstance(default, Settings) or default == [] else str(default)
    info = typer.Option(flags, help=field.description, show_default=shown, metavar=_metavar(field))
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, info]
    )


def _option_type(field: FieldInfo) -> Any:
    """Return what Typer parses: scalars as they are, choices and nested settings as text."""
    inner = _without_none(field.annotation)
    if _nested(field):
        return str
    if get_origin(inner) is list:
        # Typer hands a repeated option over as a list.
        return list[get_args(inner)[0]]  # type: ignore[misc]
    if get_origin(inner) is Literal:
        return str
    return inner if inner in {str, int, float, bool, Path} else str


def _metavar(field: FieldInfo) -> str | None:
    inner = _without_none(field.annotation)
    if get_origin(inner) is Literal:
        return "|".join(str(choice) for choice in get_args(inner))
    return "KEY=VALUE,..." if _nested(field) else None


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in {Union, types.UnionType}:
        kept = [part for part in get_args(annotation) if part is not type(None)]
        return kept[0] if len(kept) == 1 else str
    return annotation


def _nested(field: FieldInfo) -> bool:
    inner = _without_none(field.annotation)
    return isinstance(inner, type) and issubclass(inner, Settings)


def _parse_nested(name: str, text: str) -> dict[str, Any]:
    if ":" in text.split("=", 1)[0]:
        raise ConfigError(f"--{name} '{text}': write key=value,key=value, as in '--{name} rank=8,alpha=16'")
    options: dict[str, Any] = dict(MethodSpec.parse(f"{name}:{text}").options) if text else {}
    targets = options.get("targets")
    if isinstance(targets, str) and targets != "all-linear":
        options["targets"] = targets.split("+")
    return options
