"""Rows that stop once their verdicts are settled: the verdicts of whole answers, from fewer tokens."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from decoding_models import lively_model
from tiny import ARCHITECTURES, VOCABULARY, tiny_tokenizer

from geomsafe.evaluation.decoding import Completion, complete
from geomsafe.evaluation.keywords import KEYWORD_29, KeywordJudge
from geomsafe.evaluation.stopping import early_stop

LENGTH = 40


def prompts(count: int = 14) -> list[list[int]]:
    draw = random.Random(5)
    return [[draw.randrange(6, VOCABULARY) for _ in range(draw.randrange(1, 30))] for _ in range(count)]


def answers(
    model: Any, settled: Callable[[str], bool] | None = None, batch_size: int = 5, openings: Any = None
) -> list[Completion]:
    found: dict[int, Completion] = {}
    ids = prompts()
    complete(
        model,
        tiny_tokenizer(),
        ids,
        LENGTH,
        batch_size,
        found.__setitem__,
        settled=settled,
        openings=openings,
        stop_ids=frozenset({1}),
    )
    return [found[place] for place in range(len(ids))]


def judges_of(texts: list[str], match: Any) -> list[KeywordJudge]:
    """Two lists of strings, each in some of the texts and not in others, where `match` looks for them."""

    def strings(length: int) -> tuple[str, ...]:
        found: list[str] = []
        for text in texts[::2]:
            start = 0 if match == "opening" else 4
            string = text.lstrip()[start : start + length]
            hits = {place for place, other in enumerate(texts) if any(one in other for one in [*found, string])}
            if len(hits) < len(texts) and string not in found and string == string.strip() != "":
                found.append(string)
        return tuple(found)

    return [
        KeywordJudge("first", strings(3), "this test", match=match),
        KeywordJudge("second", strings(5), "this test", match=match, case_sensitive=False),
    ]


@pytest.mark.parametrize("match", ["anywhere", "opening"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_verdicts_are_those_of_whole_answers(arch: str, match: str) -> None:
    model = lively_model(arch)
    whole = answers(model)
    judges = judges_of([row.text for row in whole], match)
    stopped = answers(model, early_stop(tiny_tokenizer(), judges))
    for judge in judges:
        verdicts = [judge.judge(row.text).value for row in whole]
        assert verdicts == [judge.judge(row.text).value for row in stopped]
        assert len(set(verdicts)) == 2, "the case has refusals and others"
    early = [row.stopped_early for row in stopped]
    assert any(early) and sum(row.tokens for row in stopped) < sum(row.tokens for row in whole)
    if match == "anywhere":
        assert not all(early), "a compliance is not settled before its end"
    for row, full in zip(stopped, whole, strict=True):
        assert row == full if not row.stopped_early else full.text.startswith(row.text.rstrip("�"))
        assert not (row.stopped_early and row.finished)


def test_stopping_too_soon_changes_verdicts() -> None:
    """Negative control: the same comparison fails for a test that stops every row at its first look."""
    model = lively_model("llama")
    whole = answers(model)
    judges = judges_of([row.text for row in whole], "anywhere")
    stopped = answers(model, lambda text: True)
    assert [judges[0].judge(row.text).value for row in whole] != [judges[0].judge(row.text).value for row in stopped]


def test_any_batch_size_stops_the_same_rows() -> None:
    model = lively_model("qwen2")
    judges = judges_of([row.text for row in answers(model)], "anywhere")
    one, many = (answers(model, early_stop(tiny_tokenizer(), judges), size) for size in (1, 14))
    assert one == many


def test_an_opening_counts_as_text_and_not_as_tokens() -> None:
    """A refusal in the words an attack began with is a refusal like any other; they are the prompt's last tokens."""
    model = lively_model("llama")
    openings = [row[-1:] for row in prompts()]
    plain = answers(model)
    begun = answers(model, openings=openings)
    for row, other, opening in zip(plain, begun, openings, strict=True):
        assert row.tokens == other.tokens
        assert other.text.startswith(tiny_tokenizer().decode(opening).rstrip("�"))


class _Whole:
    """A judge of whole answers."""

    name = "whole"


def test_early_stop_is_off_where_it_would_not_be_exact() -> None:
    tokenizer = tiny_tokenizer()
    assert early_stop(tokenizer, [KEYWORD_29]) is not None
    assert early_stop(tokenizer, [KEYWORD_29, _Whole()]) is None
    assert early_stop(tokenizer, []) is None
    tokenizer.clean_up_tokenization_spaces = True
    assert early_stop(tokenizer, [KEYWORD_29]) is None, "later tokens may rewrite what stands there"


def test_half_a_character_decides_nothing() -> None:
    """The decoder writes U+FFFD for bytes whose character is not whole; a list may even hold that character."""
    judge = KeywordJudge("odd", ("�",), "this test")
    settled = early_stop(tiny_tokenizer(), [judge])
    assert settled is not None
    assert not settled("so far �") and settled("� inside")
