"""Attacks: what stands around a harmful prompt when it is put to a model.

An attack turns each prompt into an attempt, the turn as the model sees it and the words with which its
answer has begun. Rates are kept apart by attack: a prompt under two attacks is two rows, one cluster.

    direct               the prompt as it is
    prefill:N            the answer has begun with the first N tokens of the one that an attacker wants
    prefill:N:TEXT       ... with the first N tokens of TEXT, the same for every prompt
    template:NAME        a published jailbreak template (`geomsafe.evaluation.jailbreaks`)
    gcg:steps=250,...    a suffix optimised against this model (`geomsafe.evaluation.gcg`)

What an attacker wants is a benchmark's `target` ("Sure, here is ..."), and in a world the prompt's reference where
the world judges it to be compliance. Any other reference may be a refusal and is never used.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from geomsafe.data import IGNORED, Conversation, Prompt, encode
from geomsafe.errors import ConfigError, DataError
from geomsafe.evaluation.jailbreaks import Jailbreak, find_jailbreak, jailbreak_names

if TYPE_CHECKING:
    from geomsafe.models import Loaded
    from geomsafe.world import World

CHOICES = "direct, prefill:N, prefill:N:TEXT, template:NAME, gcg, gcg:KEY=VALUE,..."


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


@dataclass(frozen=True)
class Prefill:
    """The answer has begun: its first tokens are given, and the model goes on (2406.05946, section 2.3).

    Attributes:
        tokens: how many tokens of the opening.
        text: an opening for every prompt, as in "Sure, here is"; None for each prompt's own wanted answer.
    """

    tokens: int
    text: str | None = None

    @property
    def name(self) -> str:
        """As it is written: "prefill:4", or "prefill:4:Sure, here is"."""
        return f"prefill:{self.tokens}" if self.text is None else f"prefill:{self.tokens}:{self.text}"

    def attempts(self, prompts: Sequence[Prompt], loaded: Loaded | None) -> list[Attempt]:
        """Return the prompts, each with the first tokens of the answer that is wanted.

        Raises:
            ConfigError: there is no tokenizer, or `text` has too few tokens.
            DataError: nothing says what is wanted, or it has too few tokens.
        """
        model = needed(loaded, self.name)
        found = []
        for prompt in prompts:
            answer = wanted_answer(prompt, model.world, self.name) if self.text is None else self.text
            ids = answer_ids(prompt, answer, model.tokenizer)
            if len(ids) < self.tokens:
                said = f"attack '{self.name}': '{answer}' has {len(ids)} tokens, not {self.tokens}"
                if self.text is not None:
                    raise ConfigError(f"{said}: ask for fewer, or give a longer text")
                raise DataError(f"{said}, for prompt '{short(prompt)}': ask for fewer, or leave the prompt out")
            opening = tuple(ids[: self.tokens])
            said = model.tokenizer.decode(opening, clean_up_tokenization_spaces=False)
            found.append(Attempt(prompt.text, said, opening))
        return found

    def settings(self) -> dict[str, Any]:
        """Return the number of tokens and where they are from."""
        return {"tokens": self.tokens, "opening": self.text or "the prompt's target or compliant reference"}


@dataclass(frozen=True)
class Template:
    """A published jailbreak template around the prompt."""

    jailbreak: Jailbreak

    @property
    def name(self) -> str:
        """As it is written: "template:base64"."""
        return f"template:{self.jailbreak.name}"

    def attempts(self, prompts: Sequence[Prompt], loaded: Loaded | None) -> list[Attempt]:
        """Return what the template makes of the prompts' texts; system turns stay as they are."""
        return [Attempt(self.jailbreak.apply(prompt.text)) for prompt in prompts]

    def settings(self) -> dict[str, Any]:
        """Return where the template is from and the hash of its text."""
        return {"source": self.jailbreak.source, "template_sha256": self.jailbreak.sha256}


def parse_attack(text: str) -> Attack:
    """Read an attack as it is written in a suite file.

    Args:
        text: one of `CHOICES`.

    Returns:
        The attack.

    Raises:
        ConfigError: there is no such attack, or what stands behind its name cannot be read.
    """
    kind, _, rest = text.strip().partition(":")
    if kind == "direct" and not rest:
        return Direct()
    if kind == "prefill":
        count, colon, opening = rest.partition(":")
        if not (count.isdecimal() and int(count) > 0) or (colon and not opening.strip()):
            raise ConfigError(f"attack '{text}': write prefill:N or prefill:N:TEXT, as in 'prefill:4', N from 1")
        return Prefill(int(count), opening if colon else None)
    if kind == "template":
        return Template(find_jailbreak(rest))
    if kind == "gcg":
        # It imports from here.
        from geomsafe.evaluation.gcg import parse_gcg

        return parse_gcg(text.strip())
    raise ConfigError(f"attack '{text}' is unknown: choose from {CHOICES}; templates: {', '.join(jailbreak_names())}")


def wanted_answer(prompt: Prompt, world: World | None, attack: str) -> str:
    """Return the answer that an attacker wants to this prompt.

    Args:
        prompt: the prompt.
        world: the organism's world, which knows compliance from refusal.
        attack: name of the attack, for the error.

    Returns:
        The benchmark's target, else a reference that is compliance in its world.

    Raises:
        DataError: nothing says what is wanted.
    """
    if prompt.target is not None:
        return prompt.target
    if world is not None and prompt.reference is not None and world.action(prompt.text) is not None:
        if world.oracle(prompt.text, prompt.reference) == "compliance":
            return prompt.reference
    raise DataError(
        f"attack '{attack}': nothing says which answer is wanted to '{short(prompt)}' (no column 'target', and no "
        "reference that a world knows to be compliance): give a column 'target', or use prefill:N:TEXT"
    )


def answer_ids(prompt: Prompt, answer: str, tokenizer: Any) -> list[int]:
    """Return the tokens of an answer as they follow the generation prompt, without the one that ends it.

    Args:
        prompt: what is answered.
        answer: the answer.
        tokenizer: a tokenizer with a chat template.

    Returns:
        Token ids: the answer tokens of the encoded conversation.
    """
    turns = [{"role": "system", "content": prompt.system}] if prompt.system else []
    turns += [{"role": "user", "content": prompt.text}, {"role": "assistant", "content": answer}]
    encoded = encode(Conversation(turns, prompt.cluster, row=0), tokenizer, max_length=sys.maxsize)
    ids = [label for label in encoded.labels if label != IGNORED]
    special = {*tokenizer.all_special_ids}
    special |= {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    while ids and ids[-1] in special:
        ids.pop()
    return ids


def needed(loaded: Loaded | None, attack: str) -> Loaded:
    """Return the model that is attacked.

    Raises:
        ConfigError: there is no loaded model.
    """
    if loaded is None:
        raise ConfigError(
            f"attack '{attack}' needs the model itself and its tokenizer, which a server does not give: "
            "load the model here, or use direct or template:NAME"
        )
    return loaded


def short(prompt: Prompt) -> str:
    """Return the beginning of a prompt, for messages."""
    text = " ".join(prompt.text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."
