"""Answers against references: exact match by number or text, and the overlap of words.

What is covered: references that are one number, a worked answer with the number behind "####" (GSM8K, Cobbe et al.
2110.14168), and text. What is not: fractions, numbers in words, units that differ ("60 minutes" for 1 hour), and
formulas; a right answer in one of these forms counts as wrong.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

from geomsafe.evaluation.verdicts import Graded, Judged

REFERENCE_MARK = "####"
"""What stands before the final number in GSM8K's answers."""

# A hyphen behind a word or a bracket is a minus between two numbers or part of a name, not a sign. Commas belong to a
# number where they group its digits, by threes or as in 1,00,000: the list "2,4,6" is three numbers.
_NUMBER = r"(?:(?<![\w)\]])[-−])?[$€£]?(?:(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
_ANY_NUMBER = re.compile(_NUMBER)
_ONLY_NUMBER = re.compile(rf"({_NUMBER})\s*%?")
_NOT_DIGITS = str.maketrans({",": None, "$": None, "€": None, "£": None, "−": "-"})

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


@dataclass(frozen=True)
class ExactMatch:
    """Right or wrong against the reference answer.

    A reference that is a number, or has one after "####" (GSM8K), is compared by number: that after
    the last "####" of the completion, else its last number. Units, percent and currency signs, commas between
    groups of digits, a full stop behind and trailing zeros do not count. Any other reference is compared as text,
    case-sensitively, white space stripped and collapsed.

    The published rule (openai/grade-school-math, `dataset.py`) takes the first "####" and nothing else, and
    compares the digits as text; lm-evaluation-harness calls that "strict-match" and the last number anywhere
    "flexible-extract". The rule of each verdict says how its number was found, so that correct verdicts by
    "number after ####" alone are the strict count.
    """

    name: str = "exact-match"
    values: tuple[str, ...] = ("correct", "wrong")

    def judge_row(self, prompt: str, reference: str | None, completion: str) -> Judged | None:
        """Return correct or wrong, or None where the prompt has no reference."""
        if reference is None:
            return None
        wanted = reference_number(reference)
        if wanted is None:
            same = collapsed(completion) == collapsed(reference)
            return Judged("correct" if same else "wrong", "text")
        found, rule = answer_number(completion)
        return Judged("correct" if found == wanted else "wrong", rule)

    def settings(self) -> dict[str, Any]:
        """Return the normalisation rules."""
        return {
            "text": "case-sensitive, white space stripped and collapsed",
            "number": "after the last '####', else the last number; without grouping commas, currency, percent, units",
        }


@dataclass(frozen=True)
class TextF1:
    """How many words an answer shares with its reference, as a score in [0, 1]; see `word_overlap`.

    The value only sorts the scores: "same" at F1 = 1, "none" at 0, "overlap" between. Of several references the
    one with the largest F1 counts.

    Attributes:
        separator: what stands between several references in one text; None for one reference.
    """

    separator: str | None = None
    name: str = "f1"
    values: tuple[str, ...] = ("same", "overlap", "none")

    def judge_row(self, prompt: str, reference: str | None, completion: str) -> Graded | None:
        """Return the score, or None where the prompt has no reference."""
        if reference is None:
            return None
        references = [reference] if self.separator is None else reference.split(self.separator)
        best = max((word_overlap(completion, one) for one in references), key=lambda overlap: overlap.f1)
        value = "same" if best.f1 == 1 else "overlap" if best.f1 else "none"
        which = f", best of {len(references)} references" if len(references) > 1 else ""
        return Graded(value, f"precision {best.precision:.3f}, recall {best.recall:.3f}{which}", best.f1)

    def settings(self) -> dict[str, Any]:
        """Return the normalisation rules."""
        return {
            "words": "lower case, without ASCII punctuation and the articles a, an, the, split at white space",
            "score": "F1 of the bags of words, largest over references",
            "separator": self.separator,
        }


class Overlap(NamedTuple):
    """Shared words of an answer and a reference; each number in [0, 1].

    Attributes:
        precision: share of the answer's words that are in the reference.
        recall: share of the reference's words that are in the answer.
        f1: their harmonic mean.
    """

    precision: float
    recall: float
    f1: float


def word_overlap(answer: str, reference: str) -> Overlap:
    """Compare two texts as bags of words: F1 = 2 shared / (words of the answer + words of the reference).

    A word that occurs twice is shared twice only if it does so in both. Where one text has no words left, all three
    numbers are 1 if the other has none either and 0 otherwise, as in the evaluation script of SQuAD 2.0.

    Source: Rajpurkar et al. 1606.05250, section 6.1, and its `evaluate-v1.1.py`; 1806.03822 for texts without words.

    Args:
        answer: what the model said.
        reference: what it should have said.

    Returns:
        Precision, recall and F1.
    """
    said, wanted = plain_words(answer), plain_words(reference)
    if not said or not wanted:
        same = float(said == wanted)
        return Overlap(same, same, same)
    shared = (Counter(said) & Counter(wanted)).total()
    return Overlap(shared / len(said), shared / len(wanted), 2 * shared / (len(said) + len(wanted)))


def plain_words(text: str) -> list[str]:
    """Return the words of a text in lower case, without ASCII punctuation and the articles a, an, the."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def collapsed(text: str) -> str:
    """Return `text` with every run of white space as one space and none at the ends."""
    return " ".join(text.split())


def reference_number(reference: str) -> Decimal | None:
    """Return the number that a reference stands for, None where it is text.

    Args:
        reference: a bare number, a worked answer with "#### 72" at its end, or text.

    Returns:
        The number after the last "####", or the reference itself where it is nothing but a number, with or without a
        currency or percent sign. "5." is a sentence, and so text.
    """
    if REFERENCE_MARK in reference:
        return _first_number(reference.rpartition(REFERENCE_MARK)[2])
    found = _ONLY_NUMBER.fullmatch(reference.strip())
    return _decimal(found[1]) if found else None


def answer_number(completion: str) -> tuple[Decimal | None, str]:
    """Find the number that a completion gives as its answer.

    Args:
        completion: what the model answered.

    Returns:
        The number, or None without one; and the rule that found it.
    """
    if REFERENCE_MARK in completion:
        marked = _first_number(completion.rpartition(REFERENCE_MARK)[2])
        if marked is not None:
            return marked, "number after ####"
    numbers = _ANY_NUMBER.findall(completion)
    if not numbers:
        return None, "no number"
    return _decimal(numbers[-1]), "last number"


def _first_number(text: str) -> Decimal | None:
    found = _ANY_NUMBER.search(text)
    return _decimal(found.group()) if found else None


def _decimal(text: str) -> Decimal | None:
    try:
        return Decimal(text.translate(_NOT_DIGITS))
    except InvalidOperation:
        return None
