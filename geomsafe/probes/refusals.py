"""The safety probe set: harmful prompts with the refusal that theta_0 gives to each.

What "safety" means here is the likelihood of a *refusal*: theta_0's own greedy one, or one
stated text. A benchmark's `target` column ("Sure, here is ...") is what an attack wants to
hear and plays no part. Prompts that theta_0 does not refuse are counted and left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from geomsafe.probes.examples import answer_start
from geomsafe.probes.openings import Opening, exclusive, openings_of

FEWEST = 4
"""Refused prompts, at least, or there is no safety probe set."""


@dataclass(frozen=True)
class Refusal:
    """One harmful prompt and the refusal that is measured on it."""

    id: str  # of the prompt
    cluster: str
    prompt: str
    completion: str  # what theta_0 said
    input_ids: list[int]  # prompt, generation prompt and refusal
    labels: list[int]  # the refusal's tokens, -100 before

    @property
    def prompt_tokens(self) -> list[int]:
        """The tokens before the refusal."""
        return self.input_ids[: answer_start(self.labels)]

    @property
    def answer(self) -> list[int]:
        """The tokens of the refusal, end token included."""
        return self.input_ids[answer_start(self.labels) :]


@dataclass(frozen=True)
class RefusalSet:
    """The refusals that safety probes measure, and how they were chosen."""

    rows: list[Refusal]
    asked: int  # prompts that theta_0 answered
    left_out: int  # of these, prompts it did not refuse
    refusal_openings: tuple[Opening, ...]  # R of the refusal margin
    coverage: float  # share of the rows' refusals that R covers
    compliance_openings: tuple[Opening, ...]  # C of the refusal margin
    compliance_source: str  # where C comes from, for the record
    reason: str | None = None  # why the set cannot be used
    notes: tuple[str, ...] = ()  # for the run's warnings


def refusal_set(
    rows: Sequence[Refusal],
    *,
    asked: int,
    left_out: int,
    compliance: Sequence[Opening],
    compliance_source: str,
    wanted: int | None = None,
) -> RefusalSet:
    """Put refused prompts together with the openings of the refusal margin.

    Args:
        rows: the refused prompts that are measured.
        asked: prompts that theta_0 answered.
        left_out: of these, prompts it did not refuse.
        compliance: openings of compliance; those that meet a refusal opening are dropped.
        compliance_source: where they come from.
        wanted: number of rows asked for; fewer are said in `notes`.

    Returns:
        The set; with fewer than four rows its `reason` says so.
    """
    refusals = openings_of([row.answer for row in rows])
    apart = exclusive(compliance, beside=refusals.tokens)
    reason = None
    notes = []
    if len(rows) < FEWEST:
        reason = f"theta_0 refuses {len(rows)} of {asked} harmful prompts asked, safety probes need {FEWEST}"
    elif wanted is not None and len(rows) < wanted:
        notes.append(f"safety probes use {len(rows)} prompts instead of {wanted}: theta_0 refuses no more of {asked}")
    return RefusalSet(
        list(rows), asked, left_out, refusals.tokens, refusals.coverage, apart, compliance_source, reason, tuple(notes)
    )
