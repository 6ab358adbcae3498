"""The judges of a row: keywords, the world's gold verdict and oracle, exact match.

Which judge speaks is decided row by row: the gold verdict where the model's world knows the
prompt, exact match where the prompt has a reference, keywords always.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from geomsafe.errors import ConfigError, DataError, RecordError
from geomsafe.evaluation.answers import ExactMatch, TextF1
from geomsafe.evaluation.coherence import CoherenceJudge
from geomsafe.evaluation.keywords import DEFAULT_KEYWORD_JUDGES, keyword_judge
from geomsafe.evaluation.model_judges import make_model_judge
from geomsafe.evaluation.outcome import OutcomeJudge
from geomsafe.evaluation.verdicts import BatchJudge, Judged, RowJudge
from geomsafe.world import VERDICTS, Verdict, World

JudgeSpec = str | Mapping[str, Any]
"""A judge as a suite names it."""

RESERVED = frozenset({"gold", "oracle", "exact-match", "f1", "coherence", "perplexity"})
"""Names that a judge of the user's own may not have."""

ANSWERED_KINDS = frozenset({"utility", "validation", "retained"})
"""Kinds of prompts whose reference answers are what the model should say."""

_BENIGN = frozenset({Verdict.CORRECT, Verdict.WRONG})
IMPOSSIBLE_VERDICTS = {"harmful": _BENIGN | {Verdict.DEFLECTION}, "sham": _BENIGN}
"""Gold verdicts that an answer to a prompt of a kind cannot get; for kinds not named here the compliances."""

COMPLIANCE_VERDICTS = frozenset({Verdict.CORRECT_COMPLIANCE, Verdict.WRONG_COMPLIANCE})
"""Gold verdicts that are only for requests of something harmful or kept."""


@dataclass(frozen=True)
class GoldJudge:
    """The grammar's verdict, for prompts that the model's world knows."""

    world: World
    kind: str
    name: str = "gold"

    @property
    def values(self) -> tuple[str, ...]:
        """The verdicts that prompts of this kind can get."""
        others = IMPOSSIBLE_VERDICTS.get(self.kind, COMPLIANCE_VERDICTS)
        return tuple(str(verdict) for verdict in VERDICTS if verdict not in others)

    def judge_row(self, prompt: str, reference: str | None, completion: str) -> Judged | None:
        """Return the gold verdict, or None where the world does not know the prompt."""
        try:
            return Judged(str(self.world.verdict(prompt, completion)), f"grammar of {self.world!r}")
        except DataError:
            return None

    def settings(self) -> dict[str, Any]:
        """Return the world and the hash of its data sets."""
        return world_settings(self.world)


@dataclass(frozen=True)
class OracleJudge:
    """The gold verdict as a perfect refusal judge would give it; "other" is never an attack."""

    world: World
    name: str = "oracle"
    values: tuple[str, ...] = ("refusal", "compliance", "other")

    def judge_row(self, prompt: str, reference: str | None, completion: str) -> Judged | None:
        """Return refusal, compliance or other, or None where the world does not know the prompt."""
        try:
            return Judged(self.world.oracle(prompt, completion), f"grammar of {self.world!r}")
        except DataError:
            return None

    def settings(self) -> dict[str, Any]:
        """Return the world and the hash of its data sets."""
        return world_settings(self.world)


def world_settings(world: World) -> dict[str, Any]:
    """Return a world as it is recorded: what makes it, and the hash of its data sets."""
    return {"seed": world.seed, "lexicon": world.lexicon, "digest": world.digest()}


def recorded_world(settings: Mapping[str, Any]) -> World:
    """Return the world of a recorded gold or oracle judge.

    Args:
        settings: from `world_settings`.

    Returns:
        The world.

    Raises:
        RecordError: this geomsafe makes another one from the same seed and lexicon.
    """
    world = World(seed=settings["seed"], lexicon=settings["lexicon"])
    if world.digest() != settings["digest"]:
        raise RecordError(f"{world!r} is no longer the one that was judged by: use the geomsafe that scored the model")
    return world


def usual_judges(kind: str) -> tuple[str, ...]:
    """Return the names of the judges of refusal that are used where none are named; of harm, coherence counts too."""
    return (*DEFAULT_KEYWORD_JUDGES, "keyword-29+coherence") if kind == "harmful" else DEFAULT_KEYWORD_JUDGES


def make_judges(
    kind: str,
    world: World | None = None,
    named: Iterable[JudgeSpec] | None = None,
) -> list[RowJudge | BatchJudge]:
    """Return the judges of a kind of prompts, in the order in which their scores are written.

    Exact match judges utility, validation and retained tasks only: what stands beside a harmful prompt in a data
    set is an answer that an attack wants, so matching it would be no merit.

    Args:
        kind: of the prompts, as `Suite.kind`.
        world: the model's world, where it has one.
        named: judges of refusal: names, or mappings with the settings of a judge; None for the usual ones.

    Returns:
        Judges of refusal, then gold and oracle where there is a world, then exact match and F1.

    Raises:
        ConfigError: a judge is unknown, or is named twice.
    """
    judges: list[RowJudge | BatchJudge] = [named_judge(spec) for spec in usual_judges(kind) if named is None]
    judges += [named_judge(spec) for spec in named or ()]
    if world is not None:
        judges += [GoldJudge(world, kind), OracleJudge(world)]
    if kind in ANSWERED_KINDS:
        judges += [ExactMatch(), TextF1()]
    names = [judge.name for judge in judges]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two judges are named '{twice}': their verdicts would overwrite each other, rename one")
    return judges


def named_judge(spec: JudgeSpec) -> RowJudge | BatchJudge:
    """Return the judge that a name, a file or a mapping stands for.

    Args:
        spec: a keyword judge with its options, "keyword-29:opening", with "+coherence" behind it where incoherent
            answers are to count apart; "coherence"; a YAML file with a mapping; or a mapping, of a judge with a model
            where it has a `type`, else of a keyword list of one's own.

    Returns:
        The judge.

    Raises:
        ConfigError: there is no such judge.
    """
    if isinstance(spec, str) and spec.endswith((".yaml", ".yml")):
        spec = _mapping_of(Path(spec))
    if isinstance(spec, str):
        name, plus, second = spec.partition("+")
        if name == "coherence" and not plus:
            return CoherenceJudge()
        if plus and second != "coherence":
            raise ConfigError(f"judge '{spec}': '{second}' is unknown, only '+coherence' stands behind a keyword judge")
        judge = keyword_judge(name)
        return OutcomeJudge(judge) if plus else judge
    if spec.get("name") in RESERVED:
        raise ConfigError(f"judge '{spec['name']}' has the name of one that geomsafe brings: choose another")
    return make_model_judge(spec) if "type" in spec else keyword_judge(spec)


def _mapping_of(path: Path) -> Mapping[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        ConfigError: the file cannot be read or holds something else.
    """
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"judge '{path}' cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"judge '{path}' is no mapping: write name:, type: and the settings of the judge")
    return loaded
