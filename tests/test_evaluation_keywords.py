"""Keyword judges by name, by options and with strings of one's own, and when their verdict is certain."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from benchmarks_data import benchmark
from hypothesis import Phase, assume, find, given, settings
from hypothesis import strategies as st

from geomsafe.errors import ConfigError, DataError
from geomsafe.evaluation.keywords import KEYWORD_12, KEYWORD_19, KEYWORD_29, KEYWORD_JUDGES, KeywordJudge, keyword_judge
from geomsafe.records import content_sha256

VARIANTS = [
    keyword_judge({"name": name, "match": match, "case_sensitive": case, "empty": empty})
    for name, match, case, empty in product(
        KEYWORD_JUDGES, ("anywhere", "opening"), (True, False), ("compliance", "refusal")
    )
]


# --- names and options ---------------------------------------------------------------------------------------


def test_a_bare_name_is_the_published_list_under_its_own_rules() -> None:
    for name, judge in KEYWORD_JUDGES.items():
        assert keyword_judge(name) == judge == keyword_judge({"name": name})


@pytest.mark.parametrize(
    ("spec", "name", "match", "case_sensitive", "empty"),
    [
        ("keyword-29:opening", "keyword-29:opening", "opening", True, "compliance"),
        ("keyword-29:anywhere,match-case", "keyword-29", "anywhere", True, "compliance"),
        ("keyword-19:ignore-case", "keyword-19:ignore-case", "anywhere", False, "compliance"),
        ("keyword-12:ignore-case", "keyword-12", "anywhere", False, "compliance"),
        ("keyword-12:match-case", "keyword-12:match-case", "anywhere", True, "compliance"),
        ("keyword-12: empty=refusal , opening", "keyword-12:opening,empty=refusal", "opening", False, "refusal"),
    ],
)
def test_options(spec: str, name: str, match: str, case_sensitive: bool, empty: str) -> None:
    """The name holds the options that differ from the list's own, in one order, and reads back as the same judge."""
    judge = keyword_judge(spec)
    assert (judge.name, judge.match, judge.case_sensitive, judge.empty) == (name, match, case_sensitive, empty)
    assert judge.strings == KEYWORD_JUDGES[name.split(":")[0]].strings
    assert keyword_judge(judge.name) == judge


def test_equal_names_mean_equal_rules() -> None:
    assert len({judge.name for judge in VARIANTS}) == len(set(VARIANTS)) == 24
    assert all(keyword_judge(judge.name) == judge for judge in VARIANTS)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("keyword-30", "'keyword-30' is unknown: choose from keyword-29, keyword-19, keyword-12"),
        ("keyword-29:start", "option 'start' is unknown, choose from anywhere, opening, match-case, ignore-case"),
        ("keyword-29:", "option '' is unknown"),
        ("keyword-29:opening,anywhere", "'anywhere' sets 'match' a second time"),
        ({"name": "keyword-30"}, "'keyword-30' is unknown: choose from keyword-29"),
        ({"name": "keyword-29", "strings": ["No."]}, "'keyword-29' is a published list: give your own strings another"),
        ({"name": "a:b", "strings": ["No."]}, "name 'a:b' does not serve"),
        ({"strings": ["No."]}, "name None does not serve"),
        ({"name": "own", "words": ["No."]}, "'words' is unknown, choose from name, strings, match"),
        ({"name": "own", "strings": []}, "'own' has no strings"),
        ({"name": "own", "strings": ["No.", " "]}, r"string 2 \(' '\) is blank"),
        ({"name": "own", "strings": ["No.", "No."]}, "string 2 .* stands in the list twice"),
        ({"name": "own", "strings": [" no"], "match": "opening"}, "string 1 .* begins with white space"),
        ({"name": "own", "strings": ["No.", 3]}, "strings must be a list of texts"),
        ({"name": "own", "strings": "list.yaml"}, "'list.yaml' is neither a .json nor a .txt file"),
        ({"name": "own", "strings": ["No."], "match": "end"}, "match='end'.* choose match anywhere or opening"),
        ({"name": "own", "strings": ["No."], "case_sensitive": "no"}, "case_sensitive='no'"),
        ({"name": "own", "strings": ["No."], "empty": None}, "empty=None"),
    ],
)
def test_errors_say_what_is_possible(spec: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        keyword_judge(spec)


def test_strings_of_ones_own(tmp_path: Path) -> None:
    """From a list, JSON or text: the same judge but for its source."""
    strings = ["Nein", "Das geht nicht"]
    (tmp_path / "own.json").write_text(json.dumps(strings), encoding="utf-8")
    (tmp_path / "own.txt").write_text("Nein\n\n  Das geht nicht \n", encoding="utf-8")
    given_ = keyword_judge({"name": "own", "strings": strings, "match": "opening", "empty": "refusal"})
    assert given_.name == "own:opening,empty=refusal"
    assert given_.judge(" Das geht nicht.") == ("refusal", "opening: Das geht nicht")
    for file in ("own.json", "own.txt"):
        read = keyword_judge({"name": "own", "strings": str(tmp_path / file), "match": "opening", "empty": "refusal"})
        assert read == replace(given_, source=file)
        assert read.settings()["strings_sha256"] == content_sha256(strings)


@pytest.mark.parametrize(("file", "content"), [("a.json", "{}"), ("a.json", "["), ("a.json", "[1]"), ("b.txt", None)])
def test_broken_files_are_named(tmp_path: Path, file: str, content: str | None) -> None:
    if content is not None:
        (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=f"keyword file '.*{file}'"):
        keyword_judge({"name": "own", "strings": tmp_path / file})


def test_settings_hold_every_option() -> None:
    recorded = keyword_judge("keyword-12:opening,match-case,empty=refusal").settings()
    assert {key: recorded[key] for key in ("strings", "match", "case_sensitive", "empty")} == {
        "strings": 12,
        "match": "opening",
        "case_sensitive": True,
        "empty": "refusal",
    }
    hashes = {judge.settings()["strings_sha256"] for judge in VARIANTS}
    assert len(hashes) == 3
    json.dumps(recorded)


def test_the_shared_files_hash_alike() -> None:
    """The recorded hash is that of the published file's strings."""
    for judge, file, key in (
        (KEYWORD_29, "qi_keyword_eval.json", "_test_prefixes"),
        (KEYWORD_19, "attngcg_test_prefixes.json", "test_prefixes"),
    ):
        published = json.loads(benchmark(f"refusal_keywords/{file}").read_text(encoding="utf-8"))["lists"][key]
        assert judge.settings()["strings_sha256"] == content_sha256(published)


# --- when the verdict is certain -----------------------------------------------------------------------------

# White space of many kinds, cases, characters whose folding is longer than they are.
_PIECES = st.sampled_from([
    *("i CANNOT", "'m", "as", "HELLO!", " ", "\n", "\t", "\u00a0", "\u2028", "\u200b"),
    *("ß", "ẞ", "İ", "ı", "ſorry", "ﬁ", "ŉ", "\u0301", "\ufffd", "中"),
])
# Own strings with every kind of folding in them, prefixes of each other among them.
_OWN = [
    KeywordJudge("own", ("Straße", "STRASSE zu", "İstanbul", "ŉ no", "ß", "I", "ﬁx it"), "", match, case)
    for match, case in product(("anywhere", "opening"), (True, False))
]


@st.composite
def beginnings(draw: st.DrawFn) -> tuple[KeywordJudge, str, str]:
    """A judge and a text cut in two; keywords are often part of the text, in their own case or another."""
    judge = draw(st.sampled_from([*VARIANTS, *_OWN]))
    keyword = st.sampled_from(judge.strings)
    parts = st.lists(keyword | keyword.map(str.swapcase) | _PIECES | st.text(max_size=2), max_size=4)
    whole = "".join(draw(parts))
    cut = draw(st.integers(0, len(whole)))
    return judge, whole[:cut], whole[cut:]


Settled = Callable[[KeywordJudge, str], bool]


def unsettled(settled: Settled, judge: KeywordJudge, text: str, more: str) -> bool:
    """Whether a text that is said to be settled gets another value by what follows."""
    return settled(judge, text) and judge.judge(text + more).value != judge.judge(text).value


@settings(max_examples=1000, deadline=None)
@given(beginnings())
def test_what_is_settled_stays(case: tuple[KeywordJudge, str, str]) -> None:
    assert not unsettled(KeywordJudge.settled, *case)


@settings(max_examples=300, deadline=None)
@given(beginnings())
def test_what_is_not_settled_can_change(case: tuple[KeywordJudge, str, str]) -> None:
    """Nothing waits in vain: some continuation gives the other value; an empty text waits for its first character."""
    judge, text, _ = case
    assume(not judge.settled(text))
    folded = [string if judge.case_sensitive else string.casefold() for string in judge.strings]
    said = (text if judge.case_sensitive else text.casefold()).lstrip()
    rests = [string[len(said) :] for string in folded if string.startswith(said)] + [judge.strings[0], "\x00"]
    assert {judge.judge(text + more).value for more in ["", *rests]} == {"refusal", "compliance"}


def a_prefix_will_do(judge: KeywordJudge, text: str) -> bool:
    """The broken rule: a text that could become a keyword is taken for settled."""
    said = text.lstrip() if judge.case_sensitive else text.lstrip().casefold()
    return bool(said) and judge.match == "opening"


def blank_is_settled(judge: KeywordJudge, text: str) -> bool:
    """The broken rule: white space begins no keyword."""
    return judge.match == "opening" and not any(string.startswith(text) for string in judge.strings)


def case_forgotten(judge: KeywordJudge, text: str) -> bool:
    """The broken rule: a text in another case cannot become a keyword."""
    said = text.lstrip()
    return bool(said) and judge.match == "opening" and not any(string.startswith(said) for string in judge.strings)


@pytest.mark.parametrize("broken", [a_prefix_will_do, blank_is_settled, case_forgotten])
def test_broken_rules_are_caught(broken: Settled) -> None:
    """Negative control: the same property on the same texts finds a text that was settled too early."""
    looking = settings(max_examples=1000, deadline=None, database=None, derandomize=True, phases=[Phase.generate])
    assert unsettled(broken, *find(beginnings(), lambda case: unsettled(broken, *case), settings=looking))


@pytest.mark.parametrize(
    ("spec", "text", "certain"),
    [
        ("keyword-29", "Take the rope", False),
        ("keyword-29", "Take the rope. Sorry", True),
        ("keyword-29", "", False),
        ("keyword-29:opening", "", False),
        ("keyword-29:opening", " \n\u00a0", False),
        ("keyword-29:opening", " I", False),
        ("keyword-29:opening", " I canno", False),
        ("keyword-29:opening", " I cannot", True),
        ("keyword-29:opening", "I cat", True),
        ("keyword-29:opening", "Take", True),
        ("keyword-29:opening", "i", False),  # "is illegal and unethical" is a keyword
        ("keyword-29:opening", "i c", True),
        ("keyword-12:opening", "i c", False),
        ("keyword-12:opening", "ı c", True),  # a dotless i is another letter
        ("keyword-12:opening", "As", False),
        ("keyword-12:opening", "Aß", True),  # folds to "ass"
        ("keyword-29:opening", "As", False),
        ("keyword-29:opening", "As an", True),
        ("keyword-12:opening", "I\u0301", True),  # an accent on the I makes another opening
    ],
)
def test_settled_by_hand(spec: str, text: str, certain: bool) -> None:
    assert keyword_judge(spec).settled(text) is certain


def test_characters_that_fold_to_several() -> None:
    """A folded text may meet a keyword in the middle of a character."""
    judge = KeywordJudge("own", ("Mas",), "", "opening", case_sensitive=False)
    assert not judge.settled("Ma")
    assert judge.settled("Maß")
    assert judge.judge("Maß").value == judge.judge("Maßlos").value == "refusal"


def test_a_list_is_settled_where_generation_may_stop() -> None:
    """Every published keyword, character by character: certain at its end and, at the opening, not before."""
    for judge in (KEYWORD_29, KEYWORD_19, KEYWORD_12):
        opening = replace(judge, match="opening")
        for string in judge.strings:
            assert judge.settled(string) and opening.settled(string)
            shorter = any(string.startswith(other) for other in judge.strings if other != string)
            assert shorter or not any(opening.settled(string[:end]) for end in range(len(string)))
