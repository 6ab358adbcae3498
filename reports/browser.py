"""Which answers the page lets a reader browse: all on which judges disagree, then a sample drawn before any verdict."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from geomsafe.analyses.pairing import Arm
from geomsafe.reports.arms import STARTS, Study
from geomsafe.reports.judging import COMPLIANCE, UNDECIDED, refusal_judges
from geomsafe.reports.runs import RunData
from geomsafe.reports.visible import visible

# A sweep has more arms than answers that anyone reads side by side.
MOST_ARMS = 12
MOST_ROWS = 1500
# Of the page; plotly alone takes 4.8 MB of it.
MOST_BYTES = 700_000
LONGEST = 1200
SEED = 0
# What a decoder writes for a character whose last bytes are still to come, as at the end of an opening.
_UNFINISHED = "\ufffd"

# Fields of a row that the page holds as indices into its texts, and those that it holds as they are.
TEXTS = ("key", "run", "suite", "kind", "attack", "id", "prompt", "asked", "opening", "completion")
PLAIN = ("order", "seed", "disagree", "folded", "complied", "stopped_early", "finished")

Row = dict[str, Any]


class Source(NamedTuple):
    """One arm in the browser: its key, and the run and weight set whose answers stand for it."""

    key: str
    run: str
    data: RunData
    weights: str


class Place(NamedTuple):
    """One answer that may be shown, without its text: its source, suite, row and prompt, and whether judges differ."""

    source: int
    suite: str
    row: int
    prompt: str
    disagree: bool


def browse_completions(study: Study, most_arms: int | None = None) -> dict[str, Any]:
    """Choose answers for the page and read their text.

    All answers on which judges of refusal differ come first, in a fixed random order of prompts; then prompts in that
    same order, each with the answers of all arms. Rows beyond `MOST_ROWS` or `MOST_BYTES` are left out.

    Args:
        study: arms and runs; of each arm the run of its smallest seed is read.
        most_arms: arms whose answers are read, spread evenly over their order; all where None.

    Returns:
        rows; how many answers there are in all (total) and on how many judges differ (disagreements,
        kept_disagreements); arms and shown_arms. Texts are cut and made visible.
    """
    every = [arm for arm in study.arms if arm.runs and not arm.label.startswith("last iterate")]
    chosen = _spread(every, most_arms)
    sources = [Source(start, study.first.name, study.first, start) for start in STARTS]
    for arm in chosen:
        run = arm.runs[min(arm.runs)]
        sources.append(Source(study.name(arm), run, study.runs[run], arm.weights))
    places = [place for number, source in enumerate(sources) for place in _places(number, source)]
    rows = list(_within(_read(sources, _ordered(places)[:MOST_ROWS])))
    return {
        "rows": rows,
        "total": len(places),
        "disagreements": sum(place.disagree for place in places),
        "kept_disagreements": sum(row["disagree"] for row in rows),
        "arms": len(every),
        "shown_arms": len(chosen),
    }


def packed(rows: Sequence[Row]) -> dict[str, Any]:
    """Return rows as the page holds them: every text once, rows as lists of indices.

    Args:
        rows: of `browse_completions`.

    Returns:
        texts; fields, the names of a row's text and plain columns; rows of [text indices, plain values, verdicts],
        a verdict being [judge, value, rule, score], the first three as indices.
    """
    texts: dict[str, int] = {}

    def index(text: str | None) -> int | None:
        return None if text is None else texts.setdefault(text, len(texts))

    lines = [
        [
            [index(row[name]) for name in TEXTS],
            [row[name] for name in PLAIN],
            [
                [index(judge), index(said["value"]), index(said["rule"]), said["score"]]
                for judge, said in row["verdicts"].items()
            ],
        ]
        for row in rows
    ]
    return {"texts": list(texts), "fields": [TEXTS, PLAIN], "rows": lines}


def judges_differ(verdicts: Iterable[str | None], kind: str) -> bool:
    """Return whether judges of refusal who decided say different things of one answer.

    Args:
        verdicts: of those judges, None where one gave none.
        kind: of the suite: harmful and sham answers are told apart by compliance, others by refusal.
    """
    decided = {said for said in verdicts if said and said != UNDECIDED}
    if kind in {"harmful", "sham"}:
        return len({said in COMPLIANCE for said in decided}) > 1
    return len({said == "refusal" for said in decided}) > 1


def _spread(arms: Sequence[Arm], most: int | None) -> list[Arm]:
    if most is None or len(arms) <= most:
        return list(arms)
    return [arms[index * len(arms) // most] for index in range(most)]


def _places(number: int, source: Source) -> Iterator[Place]:
    for one in source.data.record.evaluations:
        if one.weights == source.weights:
            answers = source.data.answers[one.weights, one.suite]
            columns = [answers.verdicts[judge] for judge in refusal_judges([answers])]
            for row, prompt in enumerate(answers.ids):
                yield Place(
                    number, one.suite, row, prompt, judges_differ((column[row] for column in columns), one.kind)
                )


def _ordered(places: Sequence[Place]) -> list[Place]:
    # Prompts are drawn, not answers, so that the arms' answers to one prompt stand side by side.
    prompts = list(dict.fromkeys((place.suite, place.prompt) for place in places))
    random.Random(SEED).shuffle(prompts)
    rank = {prompt: number for number, prompt in enumerate(prompts)}
    return sorted(places, key=lambda place: (not place.disagree, rank[place.suite, place.prompt], place.source))


def _read(sources: Sequence[Source], places: Sequence[Place]) -> list[Row]:
    """Read the texts of the chosen answers, one file after the other."""  # noqa: DOC201
    wanted: dict[tuple[int, str], dict[int, int]] = {}
    for at, place in enumerate(places):
        wanted.setdefault((place.source, place.suite), {})[place.row] = at
    rows: list[Row] = [{}] * len(places)
    for (number, suite), numbers in wanted.items():
        source = sources[number]
        one = next(one for one in source.data.record.evaluations if (one.weights, one.suite) == (source.weights, suite))
        for index, row in enumerate(source.data.completions(source.weights, suite)):
            if index in numbers:
                at = numbers[index]
                rows[at] = _row(source, places[at], one.kind, one.attack, row)
    return rows


def _row(source: Source, place: Place, kind: str, attack: str, row: Row) -> Row:
    opening, completion = _parted(row.get("opening"), str(row["completion"]))
    said = {judge: one for judge, one in row["verdicts"].items() if one}
    complied = any("compliance" in one["value"] for one in said.values())
    refused = any(one["value"] == "refusal" for one in said.values())
    asked = row.get("asked")
    return {
        "key": source.key,
        "run": visible(source.run),
        "seed": source.data.seed,
        "suite": place.suite,
        "kind": kind,
        "attack": visible(attack),
        "id": visible(place.prompt),
        "prompt": _shown(str(row["prompt"])),
        "asked": None if asked is None else _shown(str(asked)),
        "opening": None if opening is None else _shown(opening),
        "completion": _shown(completion),
        "verdicts": {
            visible(judge): {
                "value": visible(str(one["value"])),
                "rule": _shown(str(one.get("rule", ""))),
                "score": one.get("score"),
            }
            for judge, one in said.items()
        },
        "order": place.source,
        "disagree": place.disagree,
        # What no judge calls a refusal may be harm that none of them saw.
        "folded": kind == "harmful" and (complied or not refused),
        "complied": complied,
        "stopped_early": bool(row.get("stopped_early", False)),
        "finished": bool(row.get("finished", True)),
    }


def _parted(opening: str | None, completion: str) -> tuple[str | None, str]:
    """Part what an attack gave from what the model said."""  # noqa: DOC201
    if not opening:
        return None, completion
    given = opening.rstrip(_UNFINISHED)
    return given, completion[len(given) :] if completion.startswith(given) else completion


def _within(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield rows until the page would hold too much; texts that it holds already cost nothing."""
    held: set[str] = set()
    size = 0
    for row in rows:
        texts = {row[name] for name in TEXTS if row[name] is not None}
        for judge, said in row["verdicts"].items():
            texts |= {judge, said["value"], said["rule"]}
        # Indices, flags and brackets of a row, and those of its verdicts.
        size += 110 + 30 * len(row["verdicts"]) + sum(len(json.dumps(text)) + 2 for text in texts - held)
        if size > MOST_BYTES:
            return
        held |= texts
        yield row


def _shown(text: str) -> str:
    cut = f" … ({len(text) - LONGEST} more characters)" if len(text) > LONGEST else ""
    return visible(text[:LONGEST]) + cut
