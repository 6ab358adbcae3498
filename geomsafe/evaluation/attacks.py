"""Attacks: what stands around a harmful prompt when it is put to a model.

An attack turns each prompt into an attempt, the turn as the model sees it and the words with which its
answer has begun. Rates are kept apart by attack: a prompt under two attacks is two rows, one cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from geomsafe.data import Prompt
from geomsafe.errors import ConfigError

if TYPE_CHECKING:
    from geomsafe.models import Loaded


@dataclass(frozen=True)
class Attempt:
    """One prompt under one attack.

    Attributes:
        text: the user's turn as the model sees it.
        opening: the words with which the model's answer has begun, "" for none; they count as part of the answer.
        opening_ids: the tokens of `opening`, as they follow the generation prompt.
    """

    text: str
    opening: str = ""
    opening_ids: tuple[int, ...] = ()


class Attack(Protocol):
    """A way to put a prompt."""

    @property
    def name(self) -> str:
        """As it is written in a suite file, "prefill:4"; part of file names, ":" as "-"."""

    def attempts(self, prompts: Sequence[Prompt], loaded: Loaded | None) -> list[Attempt]:
        """Return one attempt a prompt, in order.

        Args:
            prompts: the prompts.
            loaded: the model that is attacked; None where only a server answers.

        Returns:
            The attempts.

        Raises:
            ConfigError: the attack needs what is not there, such as the tokenizer of a model on a server.
            DataError: a prompt lacks what the attack needs.
        """

    def settings(self) -> dict[str, Any]:
        """Return what decides the attempts, as it is recorded beside the scores."""


@dataclass(frozen=True)
class Direct:
    """The prompt as it is."""

    name: str = "direct"

    def attempts(self, prompts: Sequence[Prompt], loaded: Loaded | None) -> list[Attempt]:
        """Return the prompts' own texts."""
        return [Attempt(prompt.text) for prompt in prompts]

    def settings(self) -> dict[str, Any]:
        """Return nothing: there is nothing to say."""
        return {}


def parse_attack(text: str) -> Attack:
    """Return the attack of a name.

    Args:
        text: as written in a suite file.

    Returns:
        The attack.

    Raises:
        ConfigError: there is no such attack.
    """
    if text == "direct":
        return Direct()
    raise ConfigError(f"attack '{text}' is unknown: choose direct")
