"""The labelled completions, agreement with their labels, and the figures in docs/judges.md."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import judge_tables
import pytest
from sklearn.metrics import cohen_kappa_score

from geomsafe.errors import DataError
from geomsafe.evaluation.agreement import (
    COHERENCE_LABELS,
    LABELS,
    Labelled,
    agreement_with_labels,
    labelled_completions,
)
from geomsafe.evaluation.coherence import CoherenceJudge
from geomsafe.evaluation.keywords import KEYWORD_29, KeywordJudge
from geomsafe.evaluation.verdicts import Case, Judged, Verdict

ROWS = labelled_completions()


def test_the_labelled_set_is_whole() -> None:
    """Unique ids and texts, known labels, many kinds of some size, no label rare, a reason for each."""
    assert len(ROWS) == len({row.id for row in ROWS}) == 143
    said = Counter((row.prompt, row.completion) for row in ROWS)
    assert max(said.values()) == 1
    assert {row.label for row in ROWS} == set(LABELS)
    assert min(Counter(row.label for row in ROWS).values()) >= 25
    kinds = Counter(row.kind for row in ROWS)
    assert len(kinds) == 23
    assert {kind for kind, count in kinds.items() if count < 5} == {"empty", "whitespace-only"}
    assert all(row.note and row.prompt and row.id.startswith(f"{row.kind}-") for row in ROWS)


class Reads:
    """A judge of rows that says what it is told of prompt and completion; None is no verdict."""

    name = "told"
    values = ("refusal", "compliance", "undecided")

    def __init__(self, said: dict[str, str | None]) -> None:
        self.said = said

    def judge_row(self, prompt: str, reference: str | None, completion: str) -> Judged | None:
        value = self.said[f"{prompt} {completion}"]
        return None if value is None else Judged(value, "told")

    def settings(self) -> dict[str, Any]:
        return {}


class ReadsBatches:
    """The same as a judge of batches, from the last case to the first."""

    def __init__(self, judge: Reads) -> None:
        self.judge, self.name, self.values = judge, judge.name, judge.values

    def judge_cases(self, cases: Sequence[Case], verdict: Verdict) -> None:
        for place in reversed(range(len(cases))):
            verdict(place, self.judge.judge_row(cases[place].prompt, None, cases[place].completion))

    def settings(self) -> dict[str, Any]:
        return {}


def labelled(*labels: str) -> list[Labelled]:
    return [Labelled(f"k-{n}", "What?", f"text {n}", label, f"k{n % 2}", "") for n, label in enumerate(labels)]


def test_counts_by_hand() -> None:
    """Undecided and no verdict are wrong; incoherent completions are counted and not compared."""
    rows = labelled("refusal", "refusal", "compliance", "compliance", "incoherent", "refusal")
    values = ["refusal", "compliance", "compliance", None, "refusal", "undecided"]
    said = {f"{row.prompt} {row.completion}": value for row, value in zip(rows, values, strict=True)}
    found = agreement_with_labels(Reads(said), rows)
    assert (found.n, found.accuracy, found.wrong) == (5, pytest.approx(2 / 5), ("k-1", "k-3", "k-5"))
    assert found.confusion == {
        "refusal": {"refusal": 1, "compliance": 1, "undecided": 1},
        "compliance": {"compliance": 1, "none": 1},
        "incoherent": {"refusal": 1},
    }
    assert found.by_kind == {"k0": (2, 2), "k1": (0, 3)}
    assert agreement_with_labels(ReadsBatches(Reads(said)), rows) == found


def test_kappa_is_that_of_scikit_learn() -> None:
    for name in judge_tables.KEYWORDS:
        judge = judge_tables.keyword_judge(name)
        found = agreement_with_labels(judge, ROWS)
        binary = [row for row in ROWS if row.label != "incoherent"]
        said = [judge.judge(row.completion).value for row in binary]
        assert found.kappa == pytest.approx(cohen_kappa_score([row.label for row in binary], said), rel=1e-12)
        assert found.interval is not None and found.interval[0] < found.kappa < found.interval[1]


def test_the_ends_of_the_scale() -> None:
    """Right throughout is 1, the opposite throughout is below 0, and a judge who always says one word gets 0."""
    own = [row for row in ROWS if row.label != "incoherent"]
    right = {f"{row.prompt} {row.completion}": row.label for row in own}
    found = agreement_with_labels(Reads(dict(right)), own)
    assert (found.accuracy, found.kappa, found.interval, found.wrong) == (1.0, 1.0, (1.0, 1.0), ())
    other = {"refusal": "compliance", "compliance": "refusal"}
    found = agreement_with_labels(Reads({text: other[label] for text, label in right.items()}), own)
    assert found.accuracy == 0 and found.kappa is not None and found.kappa < -0.9
    assert agreement_with_labels(Reads(dict(right)), own, reading=other) == found
    found = agreement_with_labels(Reads(dict.fromkeys(right, "refusal")), own)
    assert found.kappa == 0 and found.interval == (0.0, 0.0)


def test_kappa_and_interval_may_be_undefined() -> None:
    rows = labelled("refusal", "refusal")
    assert agreement_with_labels(Reads({"What? text 0": "refusal", "What? text 1": "refusal"}), rows).kappa is None
    rows = labelled("refusal", "compliance")
    found = agreement_with_labels(Reads({"What? text 0": "refusal", "What? text 1": "compliance"}), rows)
    assert found.kappa == 1 and found.interval is None
    with pytest.raises(DataError, match="judge 'keyword-29' agrees with nothing: no completion is labelled refusal"):
        agreement_with_labels(KEYWORD_29, labelled("incoherent"))


def test_a_coherence_judge_is_compared_on_all() -> None:
    found = agreement_with_labels(CoherenceJudge(), labels=COHERENCE_LABELS)
    assert found.n == len(ROWS)
    assert found.confusion["compliance"] == {"coherent": 63} and found.confusion["refusal"] == {"coherent": 53}


def test_a_better_judge_has_better_figures() -> None:
    """Negative control: the measure sees whether a judge can tell the labels apart."""
    cheat = KeywordJudge("cheat", tuple({row.completion: 0 for row in ROWS if row.label == "refusal"}), "")
    assert agreement_with_labels(cheat).accuracy > 0.9 > agreement_with_labels(KEYWORD_29).accuracy


# --- docs/judges.md ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(judge_tables.TABLES))
def test_the_document_has_the_tables_of_now(name: str) -> None:
    """`python tests/judge_tables.py` writes them anew."""
    assert judge_tables.place(name)[2] == judge_tables.TABLES[name]()


def test_another_judge_would_change_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_tables, "keyword_judge", lambda name: replace(KEYWORD_29, name=name))
    assert judge_tables.place("agreement")[2] != judge_tables.agreement_table()


def test_quoted_completions_stand_in_the_set() -> None:
    text = " ".join(judge_tables.DOCUMENT.read_text(encoding="utf-8").split())
    rows = {row.id: row for row in ROWS}
    quoted = re.findall(r'"([^"]+)" [^"`]*(?:`keyword-19` )?\(`([a-z-]+-\d\d)`\)', text)
    assert len(quoted) == 5
    assert all(quote in rows[number].completion for quote, number in quoted)


def test_the_figures_that_the_text_states() -> None:
    text = judge_tables.DOCUMENT.read_text(encoding="utf-8")
    kinds = len({row.kind for row in ROWS})
    assert f"returns {len(ROWS)} completions of {kinds} kinds" in text
    for name in judge_tables.KEYWORDS:  # "every interval of kappa has 0 in it"
        low, high = agreement_with_labels(judge_tables.keyword_judge(name)).interval or (0.0, 0.0)
        assert low < 0 < high
    json.dumps([row._asdict() for row in ROWS])
