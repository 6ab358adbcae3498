"""MT-Bench: the published files, which prompt judges what, how ratings are read, resuming and averages."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from benchmarks_data import benchmark
from chat_server import MODEL, Reply, last_turn, serving
from hypothesis import given
from hypothesis import strategies as st

from geomsafe.errors import DataError, ServerError
from geomsafe.evaluation.decoding import Completion
from geomsafe.evaluation.mtbench import (
    TEMPERATURES,
    MtBenchCase,
    MtBenchJudge,
    Place,
    Question,
    Rating,
    mtbench_answers,
    mtbench_cases,
    mtbench_questions,
    mtbench_summary,
    served_answer,
)
from geomsafe.evaluation.mtbench_judge import prompt_name, read_rating
from geomsafe.evaluation.server import ChatServer

PROMPTS = ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn")


@pytest.fixture(autouse=True)
def _loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two questions in the published format, with prompts of our own that show what was filled in."""
    return _write(tmp_path / "mt_bench")


def _write(folder: Path, **changed: Any) -> Path:
    questions = changed.get(
        "questions",
        [
            {"question_id": 81, "category": "writing", "turns": ["Write {it}.", "Again."]},
            {"question_id": 111, "category": "math", "turns": ["2 + 2?", "Times 3?"], "reference": ["4", "12"]},
        ],
    )
    references = changed.get(
        "references", [{"question_id": 111, "choices": [{"index": 0, "turns": ["four", "twelve"]}]}]
    )
    single = "Q {question} A {answer}"
    multi = "Q {question_1} A {answer_1} Q {question_2} A {answer_2}"
    prompts = changed.get(
        "prompts",
        dict(zip(PROMPTS, (single, f"R {{ref_answer_1}} {single}", multi, f"R {{ref_answer_2}} {multi}"), strict=True)),
    )
    (folder / "reference_answer").mkdir(parents=True)
    _lines(folder / "question.jsonl", questions)
    _lines(folder / "reference_answer" / "gpt-4.jsonl", references)
    rows = [
        {"name": name, "system_prompt": f"system {name}", "prompt_template": text} for name, text in prompts.items()
    ]
    _lines(folder / "judge_prompts.jsonl", rows)
    return folder


def _lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _echo(
    conversations: Sequence[list[dict[str, str]]],
    temperatures: Sequence[float],
    done: Callable[[int, Completion], None],
) -> None:
    """Answer in reverse order, with the number of turns seen and the temperature."""
    for place in reversed(range(len(conversations))):
        said = f"{len(conversations[place])} turns at {temperatures[place]}: {conversations[place][-1]['content']}"
        done(place, Completion(said, 3, True))


# --- the published files -------------------------------------------------------------------------------------


def test_the_published_questions() -> None:
    questions = mtbench_questions(benchmark("mt_bench/question.jsonl").parent)
    assert len(questions) == 80 and len({question.id for question in questions}) == 80
    counts = {category: sum(question.category == category for question in questions) for category in TEMPERATURES}
    assert set(counts.values()) == {10}
    with_reference = {question.category for question in questions if question.references is not None}
    assert with_reference == {"math", "reasoning", "coding"}
    assert sum(question.references is not None for question in questions) == 30


def test_the_published_prompts_are_filled_as_published() -> None:
    """Against `str.format`, with which the published script fills them."""
    folder = benchmark("mt_bench/judge_prompts.jsonl").parent
    judge = MtBenchJudge(ChatServer("http://localhost/v1", MODEL), folder)
    rows = [json.loads(line) for line in (folder / "judge_prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    published = {row["name"]: row for row in rows}
    for question in mtbench_questions(folder):
        for turn, answers in ((1, ("one {x}",)), (2, ("one {x}", "two"))):
            row = published[prompt_name(question.category, turn)]
            references = question.references or ("", "")
            values = {"question": question.turns[0], "answer": answers[0], "question_1": question.turns[0]}
            values |= {"question_2": question.turns[1], "answer_1": answers[0], "answer_2": answers[-1]}
            values |= {"ref_answer_1": references[0], "ref_answer_2": references[1]}
            system, user = judge.messages(MtBenchCase(question, turn, answers))
            assert system == {"role": "system", "content": row["system_prompt"]}
            assert user == {"role": "user", "content": row["prompt_template"].format(**values)}


def test_which_prompt_judges_what() -> None:
    assert {prompt_name(category, 1) for category in ("math", "reasoning", "coding")} == {"single-math-v1"}
    assert {prompt_name(category, 2) for category in ("math", "reasoning", "coding")} == {"single-math-v1-multi-turn"}
    others = set(TEMPERATURES) - {"math", "reasoning", "coding"}
    assert {prompt_name(category, 1) for category in others} == {"single-v1"}
    assert {prompt_name(category, 2) for category in others} == {"single-v1-multi-turn"}


# --- ratings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("judgement", "score", "rule"),
    [
        ("Good. Rating: [[5]]", 5.0, "[[rating]]"),
        ("[[7.5]]", 7.5, "[[rating]]"),
        ("[3] is wrong, so Rating: [[9]]", 9.0, "[[rating]]"),
        ("[[6]] or [[7]]", 6.0, "[[rating]]"),
        ("Rating: [8]", 8.0, "[rating]"),
        ("Rating: 8", None, "no rating"),
        ("Rating: [[eight]]", None, "no rating"),
        ("", None, "no rating"),
        ("Rating: [[0]]", None, "[[rating]] is 0, not from 1 to 10"),
        ("See [2023].", None, "[rating] is 2023, not from 1 to 10"),
    ],
)
def test_ratings(judgement: str, score: float | None, rule: str) -> None:
    assert read_rating(judgement) == Rating(score, rule, judgement)


@given(st.floats(1, 10).map(lambda value: round(value, 1)))
def test_every_rating_is_read_back(score: float) -> None:
    assert read_rating(f"Rating: [[{score}]]").score == score


# --- answering -----------------------------------------------------------------------------------------------


def test_both_turns_are_answered_at_the_published_temperatures(folder: Path) -> None:
    """The second turn sees the first question, the model's own answer and the second question."""
    order: list[Place] = []
    answers = mtbench_answers(mtbench_questions(folder), _echo, lambda place, completion: order.append(place))
    assert order == [(111, 1), (81, 1), (111, 2), (81, 2)]
    assert {place: completion.text for place, completion in answers.items()} == {
        (81, 1): "1 turns at 0.7: Write {it}.",
        (111, 1): "1 turns at 0.0: 2 + 2?",
        (81, 2): "3 turns at 0.7: Again.",
        (111, 2): "3 turns at 0.0: Times 3?",
    }


@pytest.mark.parametrize("stop_after", range(4))
def test_an_interrupted_run_goes_on_where_it_stopped(folder: Path, stop_after: int) -> None:
    questions = mtbench_questions(folder)
    kept: dict[Place, Completion] = {}

    def stop(place: Place, completion: Completion) -> None:
        if len(kept) == stop_after:
            raise KeyboardInterrupt
        kept[place] = completion

    with pytest.raises(KeyboardInterrupt):
        mtbench_answers(questions, _echo, stop)
    asked: list[Place] = []
    again = mtbench_answers(questions, _echo, lambda place, completion: asked.append(place), kept=kept)
    assert len(asked) == 4 - stop_after and not set(asked) & set(kept)
    assert again == mtbench_answers(questions, _echo, lambda place, completion: None)


def test_a_served_model_answers_and_a_served_judge_rates(folder: Path) -> None:
    def reply(request: dict[str, Any]) -> str:
        return "Rating: [[8]]" if request["messages"][0]["role"] == "system" else f"re: {last_turn(request)}"

    with serving(reply) as running:
        server = ChatServer(running.url, MODEL, concurrency=1)
        questions = mtbench_questions(folder)
        answers = mtbench_answers(questions, served_answer(server, seed=5), lambda place, completion: None)
        judge = MtBenchJudge(server, folder)
        cases = mtbench_cases(questions, answers)
        ratings: dict[int, Rating] = {}
        judge.judge_cases(cases, ratings.__setitem__)
    assert [(case.question.id, case.turn) for case in cases] == [(81, 1), (81, 2), (111, 1), (111, 2)]
    summary = mtbench_summary(cases, [ratings[place] for place in range(4)])
    assert (summary["n"], summary["undecided"], summary["mean"]) == (4, 0, 8.0)
    asked, judged = running.requests[:4], running.requests[4:]
    assert [(request["temperature"], request["seed"]) for request in asked] == [(0.7, 5), (0.0, 5)] * 2
    assert {(request["temperature"], request["max_tokens"]) for request in judged} == {(0.0, 2048)}
    assert [last_turn(request) for request in judged] == [
        "Q Write {it}. A re: Write {it}.",
        "Q Write {it}. A re: Write {it}. Q Again. A re: Again.",
        "R four Q 2 + 2? A re: 2 + 2?",
        "R twelve Q 2 + 2? A re: 2 + 2? Q Times 3? A re: Times 3?",
    ]
    settings = judge.settings()
    assert settings["observed"]["model"] == [MODEL] and len(settings["judge_prompts_sha256"]) == 64


def test_a_judge_that_dies_half_way_loses_no_rating(folder: Path) -> None:
    questions = mtbench_questions(folder)
    cases = mtbench_cases(questions, mtbench_answers(questions, _echo, lambda place, completion: None))

    def dies(request: dict[str, Any]) -> Reply | str:
        return Reply(broken=True) if last_turn(request).startswith("R four") else "[[4]]"

    ratings: dict[int, Rating] = {}
    with serving(dies) as running, pytest.raises(ServerError):
        MtBenchJudge(ChatServer(running.url, MODEL, max_retries=0, concurrency=1), folder).judge_cases(
            cases, ratings.__setitem__
        )
    assert {0, 1} <= set(ratings) and 2 not in ratings
    left = [place for place in range(4) if place not in ratings]
    with serving(lambda request: "no idea") as running:
        judge = MtBenchJudge(ChatServer(running.url, MODEL), folder)
        judge.judge_cases([cases[place] for place in left], lambda at, rating: ratings.update({left[at]: rating}))
    summary = mtbench_summary(cases, [ratings[place] for place in range(4)])
    assert summary["n"] == 4 - len(left) and summary["undecided"] == len(left) and summary["mean"] == 4.0


# --- averages ------------------------------------------------------------------------------------------------


def test_the_averages_by_hand() -> None:
    """Undecided ratings are in no mean, and in every count."""
    questions = [Question(1, "writing", ("a", "b"), None), Question(2, "math", ("c", "d"), ("4", "5"))]
    cases = [MtBenchCase(question, turn, ("x",) * turn) for question in questions for turn in (1, 2)]
    ratings = [Rating(score, "", "") for score in (9.0, 4.0, None, None)]
    assert mtbench_summary(cases, ratings) == {
        "n": 2,
        "undecided": 2,
        "mean": 6.5,
        "turns": {"1": {"n": 1, "undecided": 1, "mean": 9.0}, "2": {"n": 1, "undecided": 1, "mean": 4.0}},
        "categories": {
            "writing": {"n": 2, "undecided": 0, "mean": 6.5},
            "math": {"n": 0, "undecided": 2, "mean": None},
        },
    }


# --- broken files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"questions": [{"question_id": 1, "category": "sport", "turns": ["a", "b"]}]}, "category 'sport' is none of"),
        ({"questions": [{"question_id": 1, "category": "stem", "turns": ["a"]}]}, "question 1 has not two turns"),
        (
            {"questions": [{"question_id": 1, "category": "math", "turns": ["a", "b"]}]},
            "question 1 (math) has no answer",
        ),
        ({"questions": [{"question_id": 1, "category": "stem"}]}, "'turns' is missing"),
        ({"references": [{"question_id": 111, "choices": [{"turns": ["four"]}]}]}, "question 111 has not two turns"),
        ({"references": [{"question_id": 111, "choices": []}]}, "question 111 has not two turns"),
        ({"references": [{"question_id": 111, "choices": ["four"]}]}, "question 111 has not two turns"),
    ],
)
def test_broken_questions_are_explained(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError) as caught:
        mtbench_questions(_write(tmp_path / "mt", **changed))
    assert words in str(caught.value)


def test_missing_files_and_prompts_are_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        mtbench_questions(tmp_path)
    server = ChatServer("http://localhost/v1", MODEL)
    with pytest.raises(DataError, match="does not exist"):
        MtBenchJudge(server, tmp_path / "nowhere" / "mt_bench")
    with pytest.raises(DataError, match="has no prompt 'single-math-v1'"):
        MtBenchJudge(server, _write(tmp_path / "mt", prompts={"single-v1": "{question}"}))


def test_prompts_one_folder_up(folder: Path) -> None:
    """Where the published repository has them."""
    (folder / "judge_prompts.jsonl").rename(folder.parent / "judge_prompts.jsonl")
    MtBenchJudge(ChatServer("http://localhost/v1", MODEL), folder)
