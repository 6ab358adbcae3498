"""What answers: a model loaded here, or one behind a server.

An engine renders attempts to questions before anything is generated, so that what cannot be asked fails at
once, says everything that decides its answers, and hands over each answer as it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from geomsafe.data import Prompt, prompt_ids
from geomsafe.errors import DataError
from geomsafe.evaluation.attacks import Attempt
from geomsafe.evaluation.choosing import GREEDY, Choosing
from geomsafe.evaluation.decoding import Completion, complete, context_length
from geomsafe.evaluation.identity import decoding_settings, ids_sha256, model_sha256
from geomsafe.models import Loaded

Ended = Callable[[int, Completion], None]
"""Called with the place of a question and its completion."""


class Engine(Protocol):
    """Something that answers questions."""

    @property
    def loaded(self) -> Loaded | None:
        """The model where it is at hand: attacks and early stops need its tokenizer."""

    @property
    def batch_size(self) -> int:
        """How many questions are answered together at most."""

    @property
    def system_prompt(self) -> str | None:
        """The system turn before prompts that have none of their own."""

    def ask(self, prompts: Sequence[Prompt], attempts: Sequence[Attempt], source: str) -> list[Any]:
        """Render attempts to questions.

        Args:
            prompts: the prompts.
            attempts: (prompts,) how each is put.
            source: name of the prompt set, for messages.

        Returns:
            One question a prompt, of the engine's own kind; None for one that is to be left out.

        Raises:
            DataError: a prompt cannot be asked.
        """

    def settings(self) -> dict[str, Any]:
        """Return every setting that decides the answers, as it is recorded."""

    def identity(self, questions: Sequence[Any]) -> dict[str, Any]:
        """Return what decides the answers to questions: equal identities have equal answers."""

    def answer(
        self, questions: Sequence[Any], numbers: Sequence[int], settled: Callable[[str], bool] | None, ended: Ended
    ) -> None:
        """Answer questions.

        Args:
            questions: from `ask`.
            numbers: (questions,) their numbers in the prompt set, which decide sampled draws.
            settled: whether an answer that begins with a text needs no more of it; engines may leave it aside.
            ended: called once a question, in any order.
        """


@dataclass(frozen=True)
class Question:
    """Token ids of one prompt, generation prompt and opening included, and those of the opening alone."""

    ids: list[int]
    opening: tuple[int, ...] = ()


@dataclass(frozen=True)
class LocalEngine:
    """A model that is loaded, decoded in batches.

    Attributes:
        loaded: the model.
        max_new_tokens: longest answer in tokens.
        batch_size: most prompts that run together.
        system_prompt: system turn before prompts that have none of their own.
        choosing: greedy or sampled.
        leave_out_long: leave out prompts that fill the model's context, instead of refusing the set.
    """

    loaded: Loaded
    max_new_tokens: int = 512
    batch_size: int = 128
    system_prompt: str | None = None
    choosing: Choosing = GREEDY
    leave_out_long: bool = False

    def ask(self, prompts: Sequence[Prompt], attempts: Sequence[Attempt], source: str) -> list[Question | None]:
        """Render attempts with the chat template.

        Args:
            prompts: the prompts.
            attempts: (prompts,) how each is put.
            source: name of the prompt set, for messages.

        Returns:
            One question a prompt; None for one that fills the context and is to be left out.

        Raises:
            DataError: a prompt fills the model's context and is not to be left out.
        """
        context = context_length(self.loaded.model)
        questions: list[Question | None] = []
        for number, (prompt, attempt) in enumerate(zip(prompts, attempts, strict=True), start=1):
            system = prompt.system or self.system_prompt
            ids = [*prompt_ids(attempt.text, self.loaded.tokenizer, system=system), *attempt.opening_ids]
            if context is not None and len(ids) >= context:
                if self.leave_out_long:
                    questions.append(None)
                    continue
                raise DataError(
                    f"prompt {number} of '{source}' has {len(ids)} tokens, the model's context is {context}: shorten "
                    f"it, or leave such prompts out (--leave-out-long) ('{' '.join(prompt.text[:40].split())} ...')"
                )
            questions.append(Question(ids, attempt.opening_ids))
        return questions

    @cached_property
    def _model(self) -> str:
        # Once, not once a suite: it reads every weight. An engine lives while one set of weights is scored.
        return model_sha256(self.loaded.model)

    def settings(self) -> dict[str, Any]:
        """Return every setting under which the model decodes."""
        return decoding_settings(self.loaded, self.max_new_tokens, self.system_prompt) | self.choosing.settings()

    def identity(self, questions: Sequence[Question]) -> dict[str, Any]:
        """Return weights, token ids and settings."""
        ids = [question.ids for question in questions]
        openings = [list(question.opening) for question in questions]
        begun = {"openings_sha256": ids_sha256(openings)} if any(openings) else {}
        return {"model": self._model, "ids_sha256": ids_sha256(ids), **begun, **self.settings()}

    def answer(
        self,
        questions: Sequence[Question],
        numbers: Sequence[int],
        settled: Callable[[str], bool] | None,
        ended: Ended,
    ) -> None:
        """Decode the questions in batches whose rows leave as they end.

        Args:
            questions: from `ask`.
            numbers: (questions,) their numbers in the prompt set.
            settled: whether an answer that begins with a text needs no more of it.
            ended: called once a question.
        """
        complete(
            self.loaded.model,
            self.loaded.tokenizer,
            [question.ids for question in questions],
            self.max_new_tokens,
            self.batch_size,
            ended,
            choosing=self.choosing,
            numbers=numbers,
            openings=[question.opening for question in questions],
            settled=settled,
        )
