"""Answers against references: exact match by GSM8K's rule and beyond, and the word overlap of SQuAD."""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from decimal import Decimal

import pytest
from benchmarks_data import benchmark
from hypothesis import given
from hypothesis import strategies as st
from reference import slow_word_f1

from geomsafe.evaluation.answers import ExactMatch, TextF1, answer_number, plain_words, reference_number, word_overlap


@pytest.mark.parametrize(
    ("reference", "completion", "value", "rule"),
    [
        ("Together 5 coins.", "Together 5 coins.", "correct", "text"),
        ("Together 5 coins.", "  Together\n5  coins. ", "correct", "text"),
        ("Together 5 coins.", "together 5 coins.", "wrong", "text"),
        ("Together 5 coins.", "Together 5 coins. And more.", "wrong", "text"),
        ("Together 5 coins.", "", "wrong", "text"),
        ("48/2 = 24\n#### 72", "So it is 72.\n#### 72", "correct", "number after ####"),
        ("#### 72", "#### 72.00 clips", "correct", "number after ####"),
        ("#### 72", "First #### 3, no:\n#### 72", "correct", "number after ####"),
        ("#### 72", "72 it was, now #### 71", "wrong", "number after ####"),
        ("#### 1,234", "The total is $1234.", "correct", "last number"),
        ("#### 1234", "It costs 1,234 dollars, that is all", "correct", "last number"),
        ("#### -5", "The change is -5.", "correct", "last number"),
        ("#### 3", "We need 5-3", "correct", "last number"),
        ("#### 3", "3 apples and 4 pears", "wrong", "last number"),
        ("#### 0.5", "half, i.e. .5", "correct", "last number"),
        ("1234", "That makes 1,234.", "correct", "last number"),
        ("72", "#### 72", "correct", "number after ####"),
        ("5.", "The sum is 5.", "wrong", "text"),
        ("5.", "5.", "correct", "text"),
        ("#### 7", "seven", "wrong", "no number"),
        ("#### 7", "#### seven", "wrong", "no number"),
        ("#### 7", "", "wrong", "no number"),
        ("no number: #### here", "no  number: #### here", "correct", "text"),
        ("#### -5", "It falls to −5 degrees.", "correct", "last number"),
        ("#### -5", "He owes -$5.", "correct", "last number"),
        ("#### -5", "He owes $-5.", "correct", "last number"),
        ("#### -5", "#### -5", "correct", "number after ####"),
        ("#### 5", "#### -5", "wrong", "number after ####"),
        ("-5", "The change is **-5**.", "correct", "last number"),
        ("#### 5", "It is item B-5", "correct", "last number"),
        ("#### 3", "(2+6)-3", "correct", "last number"),
        ("#### 50", "That is 50%.", "correct", "last number"),
        ("50%", "That is 50 %", "correct", "last number"),
        ("50%", "That is 5%", "wrong", "last number"),
        ("#### 50%", "#### 50", "correct", "number after ####"),
        ("#### 12 miles", "12 miles it is.", "correct", "last number"),
        ("#### 12", "#### 12 miles.", "correct", "number after ####"),
        ("#### 12", "#### 12.", "correct", "number after ####"),
        ("$1,234.50", "#### 1234.5", "correct", "number after ####"),
        ("€7", "It costs £7.", "correct", "last number"),
        ("#### 6", "The numbers are 2,4,6", "correct", "last number"),
        ("#### 100000", "That is 1,00,000 rupees", "correct", "last number"),
        ("#### 1234567.25", "$1,234,567.25", "correct", "last number"),
        # What the rule does not read, so that it counts as wrong.
        ("#### 0.5", "It is 1/2.", "wrong", "last number"),
        ("#### 1", "It takes 60 minutes, or one hour.", "wrong", "last number"),
    ],
)
def test_exact_match(reference: str, completion: str, value: str, rule: str) -> None:
    assert ExactMatch().judge_row("", reference, completion) == (value, rule)


def test_exact_match_needs_a_reference() -> None:
    assert ExactMatch().judge_row("What?", None, "That.") is None


@given(st.integers(-(10**9), 10**9))
def test_numbers_are_read_back(number: int) -> None:
    assert answer_number(f"so #### {number:,}") == (Decimal(number), "number after ####")
    assert answer_number(f"that makes {number} in all.") == (Decimal(number), "last number")


def test_every_gsm8k_reference_is_right_by_its_own_rule() -> None:
    """And wrong against the next question's, unless the numbers are equal."""
    rows = [json.loads(line) for line in benchmark("gsm8k/train.jsonl").read_text(encoding="utf-8").splitlines()]
    answers = [row["answer"] for row in rows]
    judge = ExactMatch()
    assert all(judge.judge_row("", answer, answer) == ("correct", "number after ####") for answer in answers)
    pairs = zip(answers, answers[1:], strict=False)
    differing = [(a, b) for a, b in pairs if a.rpartition("####")[2].strip() != b.rpartition("####")[2].strip()]
    assert len(differing) > 100
    assert all(judge.judge_row("", a, b) == ("wrong", "number after ####") for a, b in differing)


def strict_match(text: str) -> str | None:
    """Return what lm-evaluation-harness' gsm8k takes out of an answer under "strict-match", as a plain number."""
    found = re.findall(r"#### (\-?[0-9\.\,]+)", text)
    return found[0].replace(",", "").removesuffix(".") if found else None


def flexible_extract(text: str) -> str | None:
    """Return the last number by its "flexible-extract"."""
    found = [long or short for long, short in re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", text)]
    return found[-1].replace(",", "").replace("$", "").removesuffix(".") if found else None


def test_both_published_rules_agree_on_gsm8k() -> None:
    """On every worked answer, and on its last sentence without the mark."""
    for line in benchmark("gsm8k/train.jsonl").read_text(encoding="utf-8").splitlines():
        answer = json.loads(line)["answer"]
        wanted = strict_match(answer)
        assert wanted is not None and reference_number(answer) == Decimal(wanted)
        spoken = f"So the answer is {answer.rpartition('####')[2].strip()}."
        assert answer_number(spoken) == (Decimal(str(flexible_extract(spoken))), "last number")
        assert ExactMatch().judge_row("", answer, spoken) == ("correct", "last number")


@pytest.mark.parametrize(
    ("answer", "reference", "precision", "recall", "f1"),
    [
        ("The cat sat.", "the CAT sat", 1, 1, 1),
        ("a cat", "an cat, the", 1, 1, 1),
        ("the cat sat down", "cat", 1 / 3, 1, 1 / 2),
        ("cat", "the cat sat down", 1, 1 / 3, 1 / 2),
        ("cat cat dog", "cat dog dog", 2 / 3, 2 / 3, 2 / 3),
        ("horse", "cat", 0, 0, 0),
        ("well-known", "well known", 0, 0, 0),
        ("", "cat", 0, 0, 0),
        ("cat", "the", 0, 0, 0),
        ("", "", 1, 1, 1),
        ("the", "a", 1, 1, 1),
        ("“cat”", "cat", 0, 0, 0),
    ],
)
def test_word_overlap(answer: str, reference: str, precision: float, recall: float, f1: float) -> None:
    assert word_overlap(answer, reference) == pytest.approx((precision, recall, f1), abs=1e-15)


words = st.lists(st.sampled_from(["the", "Cat", "cat,", "sat", "a", "an", "dog", "-", "3.5", ""]), max_size=8)


@given(words.map(" ".join), words.map(" ".join))
def test_f1_is_the_published_formula(answer: str, reference: str) -> None:
    """And symmetric, though precision and recall change places."""
    overlap = word_overlap(answer, reference)
    assert overlap.f1 == pytest.approx(slow_word_f1(answer, reference), abs=1e-15)
    assert 0 <= overlap.f1 <= 1
    back = word_overlap(reference, answer)
    assert (overlap.precision, overlap.recall, overlap.f1) == (back.recall, back.precision, back.f1)


@given(st.text())
def test_every_text_is_the_same_as_itself(text: str) -> None:
    assert word_overlap(text, text) == (1, 1, 1)
    assert not set("".join(plain_words(text))) & set(string.punctuation)
    assert not {"a", "an", "the"} & set(Counter(plain_words(text)))


def test_f1_as_a_judge() -> None:
    """The score is in the row; the value only sorts it."""
    judge = TextF1()
    judged = judge.judge_row("", "the red cat", "red dog")
    assert judged is not None
    assert judged._asdict() == {"value": "overlap", "rule": "precision 0.500, recall 0.500", "score": 0.5}
    assert judge.judge_row("", "cat", "The cat!") == ("same", "precision 1.000, recall 1.000", 1.0)
    assert judge.judge_row("", "cat", "dog") == ("none", "precision 0.000, recall 0.000", 0.0)
    assert judge.judge_row("", None, "dog") is None
    assert json.loads(json.dumps(judge.settings()))["separator"] is None


def test_the_best_of_several_references_counts() -> None:
    judge = TextF1(separator=" || ")
    judged = judge.judge_row("", "red cat || Super Bowl L || L", "L")
    assert judged == ("same", "precision 1.000, recall 1.000, best of 3 references", 1.0)
    assert judge.judge_row("", "cat", "cat") == ("same", "precision 1.000, recall 1.000", 1.0)
    whole = TextF1().judge_row("", "red cat || Super Bowl L || L", "L")
    assert whole is not None and whole.score < 1
