"""Completions labelled by hand, and how far a judge agrees with the labels.

The completions come with the package. They were written for this purpose, each for a kind of answer and its label, and
labelled once, by the rule in docs/judges.md: development data that shows what a judge gets wrong, not a benchmark.
What is counted is how often a judge is right on these kinds in these numbers, which no model's answers have.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from geomsafe.errors import DataError
from geomsafe.evaluation.verdicts import BatchJudge, Case, Graded, Judged, RowJudge

LABELS = ("refusal", "compliance", "incoherent")
REFUSAL_LABELS: Mapping[str, str] = {"refusal": "refusal", "compliance": "compliance"}
"""What a judge of refusals is compared with; incoherent completions have no right answer and are counted apart."""
COHERENCE_LABELS: Mapping[str, str] = {"refusal": "coherent", "compliance": "coherent", "incoherent": "incoherent"}
"""What a judge of coherence is compared with."""

RESAMPLES = 2000
NO_VERDICT = "none"


class Labelled(NamedTuple):
    """One completion with its label.

    Attributes:
        id: unique; kind and number.
        prompt: the user's turn.
        completion: an answer to it.
        label: one of `LABELS`.
        kind: what sort of answer it is, such as "quoted-refusal".
        note: why it has this label.
    """

    id: str
    prompt: str
    completion: str
    label: str
    kind: str
    note: str


@dataclass(frozen=True)
class Agreement:
    """One judge against the labels.

    Attributes:
        n: completions that are compared.
        accuracy: share of them on which the judge says what the label says, in [0, 1].
        kappa: Cohen's kappa, in [-1, 1]; None where judge and labels are one and the same value throughout.
        interval: 95 % percentile bootstrap interval of kappa over completions; None where a resample has no kappa.
        confusion: label -> the judge's value -> completions, for every label, those that are not compared among them.
        by_kind: kind -> (right, compared), in the order of the completions.
        wrong: ids of completions on which they differ.
    """

    n: int
    accuracy: float
    kappa: float | None
    interval: tuple[float, float] | None
    confusion: dict[str, dict[str, int]]
    by_kind: dict[str, tuple[int, int]]
    wrong: tuple[str, ...]


def labelled_completions() -> list[Labelled]:
    """Return the labelled completions that come with the package."""
    text = (files("geomsafe.evaluation") / "labelled" / "completions.jsonl").read_text(encoding="utf-8")
    return [Labelled(**json.loads(line)) for line in text.split("\n") if line]


def agreement_with_labels(
    judge: RowJudge | BatchJudge,
    completions: Sequence[Labelled] | None = None,
    *,
    labels: Mapping[str, str] = REFUSAL_LABELS,
    reading: Mapping[str, str] | None = None,
) -> Agreement:
    """Run a judge on labelled completions and compare.

    A verdict that is no label (undecided, or none at all) is a wrong one.

    Args:
        judge: of rows or of batches.
        completions: what it judges (default: `labelled_completions()`).
        labels: label -> what the judge should say; completions with other labels are counted but not compared.
        reading: the judge's value -> the word for it among `labels`, for a judge with words of its own.

    Returns:
        Accuracy, kappa with its interval, counts.

    Raises:
        DataError: no completion has a label to compare.
    """
    rows = labelled_completions() if completions is None else list(completions)
    read = {} if reading is None else reading
    said = [NO_VERDICT if judged is None else read.get(judged.value, judged.value) for judged in _verdicts(judge, rows)]
    pairs = [(row, labels[row.label], value) for row, value in zip(rows, said, strict=True) if row.label in labels]
    if not pairs:
        raise DataError(f"judge '{judge.name}' agrees with nothing: no completion is labelled {', '.join(labels)}")
    confusion: dict[str, Counter[str]] = {}
    for row, value in zip(rows, said, strict=True):
        confusion.setdefault(row.label, Counter())[value] += 1
    kinds = list(dict.fromkeys(row.kind for row, _, _ in pairs))
    by_kind = {kind: [wanted == value for row, wanted, value in pairs if row.kind == kind] for kind in kinds}
    kappa, interval = _kappa([wanted for _, wanted, _ in pairs], [value for _, _, value in pairs])
    wrong = tuple(row.id for row, wanted, value in pairs if wanted != value)
    return Agreement(
        n=len(pairs),
        accuracy=1 - len(wrong) / len(pairs),
        kappa=kappa,
        interval=interval,
        confusion={label: dict(counts) for label, counts in confusion.items()},
        by_kind={kind: (sum(right), len(right)) for kind, right in by_kind.items()},
        wrong=wrong,
    )


def _verdicts(judge: RowJudge | BatchJudge, rows: Sequence[Labelled]) -> list[Judged | Graded | None]:
    if not hasattr(judge, "judge_cases"):
        return [judge.judge_row(row.prompt, None, row.completion) for row in rows]
    found: list[Judged | Graded | None] = [None] * len(rows)

    def keep(place: int, judged: Judged | None) -> None:
        found[place] = judged

    judge.judge_cases([Case(row.prompt, None, row.completion) for row in rows], keep)
    return found


def _kappa(wanted: Sequence[str], said: Sequence[str]) -> tuple[float | None, tuple[float, float] | None]:
    """Return Cohen's kappa and its bootstrap interval; completions are resampled, label and verdict together."""
    values = sorted(set(wanted) | set(said))
    if len(values) == 1:
        return None, None
    codes = [np.array([values.index(value) for value in side]) for side in (wanted, said)]

    def kappa(first: NDArray[np.int64], second: NDArray[np.int64], axis: int) -> NDArray[np.float64]:
        # scikit-learn's cohen_kappa_score takes one resample at a time, and seconds for all of them.
        observed = (first == second).mean(axis=axis)
        chance = sum((first == code).mean(axis=axis) * (second == code).mean(axis=axis) for code in range(len(values)))
        with np.errstate(invalid="ignore"):
            return np.asarray((observed - chance) / (1 - chance))

    point = float(kappa(codes[0], codes[1], axis=0))
    if len(wanted) < 2:
        return point, None
    found = bootstrap(
        codes,
        kappa,
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    ).confidence_interval
    low, high = float(found.low), float(found.high)
    return point, None if np.isnan(low) or np.isnan(high) else (low, high)
