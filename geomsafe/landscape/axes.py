"""How directions are written: "random:seed=3,norm=row,safety-gradient" is two of them."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from geomsafe.config import Settings
from geomsafe.errors import ConfigError


class RandomOptions(Settings):
    """A Gaussian direction.

    `norm` says which parts get the norm of theta_0's: each tensor (as VISAGE's authors do), each row of a matrix (the
    "filters" of Li et al. 2018), each layer, or all together.
    """

    seed: int = Field(0, ge=0, description="seed of the draw")
    count: int = Field(1, ge=1, description="so many directions, with seeds from `seed` on")
    norm: Literal["tensor", "row", "layer", "global"] = Field("tensor", description="what is scaled to theta_0's norm")
    norms: bool = Field(False, description="whether weights of normalisation layers take part")
    embeddings: bool = Field(True, description="whether input and output embeddings take part")


class WeightsOptions(Settings):
    """theta - theta_0 of a saved weight set."""

    run: str | int | None = Field(None, description="name of the run, or its number from 1")
    weights: str | None = Field(None, description="weight set: final, ema, step-000120, ...")


class AlignmentOptions(Settings):
    """theta_0 - theta_base."""


class GradientOptions(Settings):
    """The gradient of a set's loss; or a singular direction of its examples' span; or cut in rank weight by weight."""

    component: int | None = Field(None, ge=1, description="singular direction of the span of the examples' gradients")
    rank: int | None = Field(None, ge=1, description="singular vectors that each weight matrix keeps")


class ConflictOptions(Settings):
    """What SPF takes out of the utility descent direction."""

    rank: int = Field(20, ge=1, description="left singular vectors of each weight's safety gradient")


class HessianOptions(Settings):
    """The sharpest direction of the safety loss."""


class PcaOptions(Settings):
    """Principal component of the displacements of a run's saved weights."""

    component: int = Field(1, ge=1, description="which one, from 1")
    run: str | int | None = Field(None, description="name of the run, or its number from 1")


KINDS: dict[str, type[Settings]] = {
    "random": RandomOptions,
    "finetune": WeightsOptions,
    "ema": WeightsOptions,
    "alignment": AlignmentOptions,
    "safety-gradient": GradientOptions,
    "utility-gradient": GradientOptions,
    "conflict": ConflictOptions,
    "hessian": HessianOptions,
    "pca": PcaOptions,
}


class AxisSpec(NamedTuple):
    """A direction as it is asked for."""

    kind: str
    options: Any


def parse_axes(text: str) -> list[AxisSpec]:
    """Read directions off the command line.

    Args:
        text: kind[:key=value,...] with commas between; a piece with '=' and without ':' belongs to the one before.

    Returns:
        The directions.

    Raises:
        ConfigError: a kind, an option or a value is not known.
    """
    asked: list[tuple[str, dict[str, str]]] = []
    for piece in (part.strip() for part in text.split(",")):
        kind, colon, option = piece.partition(":")
        if "=" in piece and not colon:
            if not asked:
                raise ConfigError(f"directions '{text}' begin with the option '{piece}': begin with a kind")
            _add(asked[-1], piece)
            continue
        asked.append((kind.strip(), {}))
        if colon:
            _add(asked[-1], option.strip())
    return [_spec(kind, options) for kind, options in asked]


def _add(axis: tuple[str, dict[str, str]], option: str) -> None:
    """Take up one option.

    Raises:
        ConfigError: it has no value.
    """
    key, equals, value = option.partition("=")
    if not equals or not key or not value:
        raise ConfigError(f"direction '{axis[0]}': option '{option}' has no value: write key=value")
    axis[1][key.strip()] = value.strip()


def _spec(kind: str, options: dict[str, str]) -> AxisSpec:
    """Check one direction.

    Returns:
        It.

    Raises:
        ConfigError: the kind, an option or a value is not known.
    """
    if kind not in KINDS:
        raise ConfigError(f"direction '{kind}' is not known: choose from {', '.join(KINDS)}")
    known = KINDS[kind].model_fields
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(f"direction '{kind}' has no option '{unknown[0]}': it has {', '.join(known) or 'none'}")
    try:
        checked = KINDS[kind].model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"direction '{kind}': {first['loc'][0]}={first['input']}: {first['msg']}") from None
    if isinstance(checked, GradientOptions) and checked.component and checked.rank:
        raise ConfigError(f"direction '{kind}': component and rank are two meanings of low rank, give one")
    return AxisSpec(kind, checked)
