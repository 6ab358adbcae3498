"""Suites: which prompts are scored, and as what.

A kind says what a good answer is: "harmful" prompts should be refused, "look-alike" prompts only
look harmful and should be answered, "utility" prompts are the fine-tuning task, "validation" prompts
more of it, for choosing settings and never for claims, "retained" prompts the skills from before, and
"sham" prompts those of the organism's harmless twin of a refusal. A model organism brings its own; for
other models the user names them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from geomsafe.data import PromptSet, load_prompts
from geomsafe.errors import ConfigError
from geomsafe.evaluation.attacks import Attack, Direct
from geomsafe.evaluation.judges import JudgeSpec
from geomsafe.world import World

if TYPE_CHECKING:
    from geomsafe.models import Loaded

Kind = Literal["harmful", "look-alike", "utility", "validation", "retained", "sham"]
KINDS: tuple[str, ...] = get_args(Kind)

ORGANISM = "organism:"
KNOWN_KINDS: dict[str, Kind] = {
    "advbench": "harmful",
    "harmbench": "harmful",
    "jailbreakbench": "harmful",
    "jailbreakbench-benign": "look-alike",
    "strongreject": "harmful",
    "xstest": "look-alike",
    "xstest:safe": "look-alike",
    "xstest:unsafe": "harmful",
    "gsm8k": "utility",
    "gsm8k-test": "utility",
    "organism:harmful": "harmful",
    "organism:harmful-phrasing": "harmful",
    "organism:harmful-kind": "harmful",
    "organism:look-alike": "look-alike",
    "organism:benign": "retained",
    "organism:sham": "sham",
}
"""What a prompt set is when only its name is given."""

# xstest's other half is harmful: the bare name, being a look-alike set, means the safe one.
_MEANT = {"xstest": "xstest:safe"}


@dataclass(frozen=True)
class Suite:
    """A prompt set and what it is scored as.

    Attributes:
        name: unique among the suites of a run; part of file names.
        kind: one of `KINDS`.
        prompts: the prompts.
        attack: how they are put.
        judges: judges of refusal; None for the usual keyword lists.
        limit: only the first prompts.
    """

    name: str
    kind: Kind
    prompts: PromptSet
    attack: Attack = Direct()
    judges: tuple[JudgeSpec, ...] | None = None
    limit: int | None = None


def suites_for(loaded: Loaded, eval_prompts: Sequence[str] = (), data: str | None = None) -> list[Suite]:
    """Return the suites that a model is scored on.

    Args:
        loaded: the model; an organism has a world.
        eval_prompts: "kind=source" or known names. Given, they are all that is scored.
        data: the training set; "organism:downstream-neutral" makes "downstream-neutral-test" the utility suite and
            "downstream-neutral-validation" the validation suite.

    Returns:
        What the user named; else the organism's own: harmful, look-alike, utility and validation (where the
        training set is the world's and has such sets), retained and sham; else none.
    """
    if eval_prompts:
        return named_suites(eval_prompts, loaded.world, loaded.source)
    if loaded.world is None:
        return []
    rows: list[tuple[Kind, str]] = [("harmful", "harmful"), ("look-alike", "look-alike")]
    task = data.removeprefix(ORGANISM) if data is not None and data.startswith(ORGANISM) else ""
    held_out: list[tuple[Kind, str]] = [("utility", f"{task}-test"), ("validation", f"{task}-validation")]
    rows += [(kind, name) for kind, name in held_out if name in loaded.world.names()]
    rows += [("retained", "benign"), ("sham", "sham")]
    return [Suite(kind, kind, load_prompts(ORGANISM + name, world=loaded.world)) for kind, name in rows]


def named_suites(prompts: Sequence[str], world: World | None, model: str) -> list[Suite]:
    """Load prompt sets that are named one by one.

    Args:
        prompts: "kind=source" or known names.
        world: the model's world, where it has one.
        model: name of the model, for messages.

    Returns:
        One suite a set, put as they are.
    """
    named = [parse_suite(text) for text in prompts]
    for _, source in named:
        check_world(source, world, model)
    names = unique_names([slug(source) for _, source in named])
    return [
        Suite(name, kind, load_prompts(source, world=world)) for name, (kind, source) in zip(names, named, strict=True)
    ]


def parse_suite(text: str) -> tuple[Kind, str]:
    """Read "kind=source" or a known name.

    Args:
        text: as written on the command line or in YAML.

    Returns:
        Kind and source.

    Raises:
        ConfigError: the kind is unknown, the source is empty, or a bare name is not a known one.
    """
    before, equals, after = text.partition("=")
    if not equals:
        source = text.strip()
        kind = KNOWN_KINDS.get(source) or _kind_of_organism_rows(source)
        if kind is None:
            raise ConfigError(
                f"prompt set '{text}' is not a known name: write what it is, as in 'harmful={text}' "
                f"(kinds: {', '.join(KINDS)})"
            )
        return kind, _MEANT.get(source, source)
    if before.strip() not in KINDS:
        raise ConfigError(f"prompt set '{text}': kind '{before.strip()}' is unknown, choose from {', '.join(KINDS)}")
    if not after.strip():
        raise ConfigError(f"prompt set '{text}' names no source: write a name or file after '='")
    kinds: dict[str, Kind] = {str(kind): kind for kind in get_args(Kind)}
    return kinds[before.strip()], after.strip()


def check_world(source: str, world: World | None, model: str) -> None:
    """Refuse prompts of the organism's world for a model that does not live in it.

    Args:
        source: of a prompt set.
        world: the model's world.
        model: name of the model, for the message.

    Raises:
        ConfigError: the set belongs to a world and the model has none.
    """
    if source.startswith(ORGANISM) and world is None:
        raise ConfigError(f"prompt set '{source}' belongs to the organism: '{model}' has no world")


def _kind_of_organism_rows(source: str) -> Kind | None:
    """Return what a downstream test or validation set of the world is."""
    found = re.fullmatch(rf"{ORGANISM}downstream-\w+-(test|validation)", source)
    return None if found is None else "utility" if found[1] == "test" else "validation"


def slug(source: str) -> str:
    """Return a name for files: the last part of a path or hub id, letters, digits, '.', '_' and single '-'."""
    last = re.split(r"[/\\]", source.removeprefix(ORGANISM).rstrip("/\\"))[-1]
    stem = re.sub(r"\.(csv|json|jsonl|parquet|txt)$", "", last, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9._]+", "-", stem).strip("-.") or "prompts"


def unique_names(names: Sequence[str]) -> list[str]:
    """Return the names, later ones of a name with "-2", "-3", ... after it."""
    taken: list[str] = []
    for name in names:
        number, unique = 1, name
        while unique in taken:
            number += 1
            unique = f"{name}-{number}"
        taken.append(unique)
    return taken
