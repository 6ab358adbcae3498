"""What a judge says: a value out of a fixed vocabulary, and the rule that gave it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol


class Judged(NamedTuple):
    """One judge's word on one completion.

    Attributes:
        value: one of the judge's `values`.
        rule: what decided, e.g. the keyword that occurs.
    """

    value: str
    rule: str


class Graded(NamedTuple):
    """The word of a judge that also gives a number.

    It is a type of its own, so that the rows of judges without numbers stay as they are.

    Attributes:
        value: one of the judge's `values`.
        rule: what decided.
        score: the number; the judge says its range and which end is good.
    """

    value: str
    rule: str
    score: float


class RowJudge(Protocol):
    """A judge of completions, by whatever it knows about the prompt."""

    @property
    def name(self) -> str:
        """Name in rows and scores."""

    @property
    def values(self) -> tuple[str, ...]:
        """Every value that it can give."""

    def judge_row(self, prompt: str, reference: str | None, completion: str) -> Judged | Graded | None:
        """Return the verdict, or None where the judge has no ground to give one.

        Args:
            prompt: the user's turn.
            reference: the right answer, where the prompt set has one.
            completion: what the model answered.
        """

    def settings(self) -> dict[str, Any]:
        """Return the rules and versions that are recorded beside the scores."""


class Case(NamedTuple):
    """What a judge of whole batches reads.

    Attributes:
        prompt: the user's turn as the data set has it, without what an attack put around it.
        reference: the right answer, where the prompt set has one.
        completion: what the model answered, the opening that an attack gave it included.
        finished: False where the length limit cut the answer.
    """

    prompt: str
    reference: str | None
    completion: str
    finished: bool = True


Verdict = Callable[[int, Judged | None], None]
"""Called with (place of the case, verdict) as soon as a verdict is there, so that it can be kept."""


class BatchJudge(Protocol):
    """A judge that needs a model or a server: it reads many cases and says each verdict when it has it."""

    @property
    def name(self) -> str:
        """Name in rows and scores."""

    @property
    def values(self) -> tuple[str, ...]:
        """Every value that it can give; "undecided" among them where an answer of the judge may make no sense."""

    def judge_cases(self, cases: Sequence[Case], verdict: Verdict) -> None:
        """Judge every case, in any order.

        Args:
            cases: what to judge.
            verdict: called once a case; None where the judge has no ground to speak.
        """

    def settings(self) -> dict[str, Any]:
        """Return model, revision, template and versions, as they are recorded beside the scores."""
