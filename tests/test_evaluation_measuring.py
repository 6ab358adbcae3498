"""Measures beside prompt sets: the numbers of the library's parts, taken once, resumed, recorded and shown."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks_data import benchmark
from chat_server import MODEL, Reply, last_turn, serving
from reference import slow_ratio_error
from runs import write_conversations
from tiny import tiny_folder, tiny_model, tiny_tokenizer

from geomsafe.data import load_conversations
from geomsafe.data.choices import load_choices
from geomsafe.errors import ConfigError, DataError, ServerError
from geomsafe.evaluation import evaluate, measures
from geomsafe.evaluation.choices import score_choices
from geomsafe.evaluation.decoding import Completion
from geomsafe.evaluation.harness import run_harness, task_manager, tasks_sha256
from geomsafe.evaluation.heldout import held_out_loss
from geomsafe.evaluation.measure_spec import MeasureSpec, asked_measures
from geomsafe.evaluation.measures import make_measures
from geomsafe.evaluation.measuring import Work, add_measurements, measure_model
from geomsafe.evaluation.mtbench_measure import local_answer
from geomsafe.models import Loaded, load_model, save_model
from geomsafe.records import Measurement, RunRecord, WeightSet, read_jsonl, read_record, write_record

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm-evaluation-harness is not installed: pip install 'geomsafe[lm-eval]'",
)

ITEMS = [
    {"prompt": "The capital of France is", "options": ["Paris", "bread", "the sea"], "answer": 0, "cluster": "a"},
    {"prompt": "The sea is", "options": ["wide", "salt and yeast"], "answer": 1, "cluster": "a"},
    {"prompt": "Mix flour and", "options": ["water", "poems"], "answer": 0, "cluster": "b"},
    {"prompt": "Open the task", "options": ["manager", "bread"], "answer": 0, "cluster": "c"},
]
TASK = """
task: own_task
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{options}}}}"
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}, {{metric: acc_norm, aggregation: mean}}]
metadata: {{version: 2}}
"""
PROMPTS = ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn")


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOMSAFE_CACHE", str(tmp_path / "cache"))
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def choices(tmp_path: Path) -> Path:
    return lines(tmp_path / "own.jsonl", ITEMS)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with one task file of our own."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = lines(folder / "rows.jsonl", ITEMS)
    (folder / "own.yaml").write_text(TASK.format(rows=rows, cache=tmp_path / "datasets"), encoding="utf-8")
    return folder


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """Three questions in MT-Bench's format."""
    folder = tmp_path / "mt_bench"
    (folder / "reference_answer").mkdir(parents=True)
    questions = [
        {"question_id": 81, "category": "writing", "turns": ["Write a short poem.", "Again."]},
        {"question_id": 111, "category": "math", "turns": ["2 + 2?", "Times 3?"]},
        {"question_id": 151, "category": "stem", "turns": ["What is salt?", "And yeast?"]},
    ]
    lines(folder / "question.jsonl", questions)
    lines(
        folder / "reference_answer" / "gpt-4.jsonl", [{"question_id": 111, "choices": [{"turns": ["four", "twelve"]}]}]
    )
    single, multi = "Q {question} A {answer}", "Q {question_1} A {answer_1} Q {question_2} A {answer_2}"
    lines(
        folder / "judge_prompts.jsonl",
        [
            {"name": name, "system_prompt": "You rate.", "prompt_template": multi if "multi" in name else single}
            for name in PROMPTS
        ],
    )
    return folder


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def loaded_model(seed: int = 1, **overrides: Any) -> Loaded:
    model: Any = tiny_model("llama", seed, torch.float64, **overrides)
    return Loaded(model, tiny_tokenizer(), "tiny", None, None, "0" * 64, "0" * 64, None, torch.device("cpu"))


def work(folder: Path, loaded: Loaded | None = None, **settings: Any) -> Work:
    shown = {"max_new_tokens": 6} | settings
    return Work(loaded or loaded_model(), "final", folder / "measurements", **shown)


def taken(work_: Work, spec: dict[str, Any], limit: int | None = None) -> list[Measurement]:
    return measure_model(work_, make_measures(MeasureSpec.model_validate(spec), limit=limit))


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be computed any more."""
    for name in ("score_choices", "held_out_loss", "run_harness"):
        monkeypatch.setattr(measures, name, None)


# --- the numbers are those of the library's parts -------------------------------------------------------------


def test_choices_are_the_librarys_own(tmp_path: Path, choices: Path) -> None:
    """Accuracies, their standard error with clusters as units, and one row an item."""
    (one,) = taken(work(tmp_path), {"choices": [str(choices)]})
    wanted = score_choices(loaded_model(), load_choices(choices))
    assert (one.name, one.kind, one.source, one.weights) == ("choices-own", "choices", str(choices), "final")
    assert one.values == {reading: count / 4 for reading, count in wanted.correct.items()}
    for reading in one.values:
        right = [float(row.right(reading)) for row in wanted.rows]
        slow = slow_ratio_error(right, [1.0] * 4, ["a", "a", "b", "c"])
        assert one.errors[reading] == pytest.approx(slow, rel=1e-12)
        alone = slow_ratio_error(right, [1.0] * 4, ["1", "2", "3", "4"])
        assert len(set(right)) == 1 or alone != pytest.approx(slow, rel=1e-6), "clusters play a part"
    assert set(one.n.values()) == {4} and one.counts["clusters"] == 3
    assert set(one.higher_is_better.values()) == {True}
    assert one.file == "measurements/final--choices-own.jsonl"
    assert list(read_jsonl(tmp_path / one.file)) == wanted.records()


def test_held_out_loss_is_the_librarys_own(tmp_path: Path) -> None:
    data = write_conversations(tmp_path / "talk.jsonl", 6)
    (one,) = taken(work(tmp_path, system_prompt="Be brief."), {"held_out": str(data)}, limit=5)
    wanted = held_out_loss(loaded_model(), load_conversations(str(data), limit=5), system_prompt="Be brief.")
    assert one.values == {"nats_per_token": wanted.loss, "perplexity": wanted.perplexity}
    assert one.errors == {"nats_per_token": wanted.standard_error}
    assert one.counts == {"tokens": wanted.tokens, "clusters": 5, "truncated": 0, "dropped": 0}
    assert (one.n["nats_per_token"], one.settings["max_length"], one.file) == (5, 1024, None)
    assert one.higher_is_better == {"nats_per_token": False, "perplexity": False}


@needs_harness
def test_harness_tasks_are_the_librarys_own(tmp_path: Path, tasks: Path) -> None:
    spec = {"lm_eval": {"tasks": ["own_task"], "path": str(tasks), "chat_template": True}}
    (one,) = taken(work(tmp_path), spec)
    wanted = run_harness(loaded_model(), ["own_task"], include_path=tasks, apply_chat_template=True).scores
    assert one.name == "lm-eval-own_task"
    assert one.values == {f"own_task/{score.metric},none": score.value for score in wanted}
    assert one.errors["own_task/acc,none"] == wanted[0].stderr
    assert (one.n["own_task/acc,none"], one.higher_is_better["own_task/acc,none"]) == (4, True)
    assert one.settings["versions"] == {"own_task": "2"} or one.settings["versions"] == {"own_task": "2.0"}


@pytest.mark.parametrize(
    "file",
    [
        "alpaca/alpaca_5000.json",
        "dolly/databricks-dolly-15k-safety-only.jsonl",
        "llms-finetuning-safety/alpaca_data_safety_only.json",
        "orca/validation.jsonl",
        "gsm8k/train.jsonl",
    ],
)
def test_every_benchmark_of_conversations_can_be_held_out(tmp_path: Path, file: str) -> None:
    path = benchmark(file)
    (one,) = taken(work(tmp_path), {"held_out": [str(path)]}, limit=3)
    conversations = load_conversations(str(path), limit=3)
    assert len(conversations.rows) == 3
    wanted = held_out_loss(loaded_model(), conversations, max_length=1024)
    assert one.values["nats_per_token"] == wanted.loss
    assert (one.n["nats_per_token"], one.counts["dropped"]) == (wanted.examples, wanted.dropped)
    assert wanted.examples + wanted.dropped == 3


def test_prompts_without_answers_are_no_conversations(tmp_path: Path) -> None:
    """A benchmark of bare prompts, without a header."""
    with pytest.raises(DataError, match=r"demo_examples\.csv"):
        taken(work(tmp_path), {"held_out": str(benchmark("llms-finetuning-safety/demo_examples.csv"))}, limit=3)


def test_the_organism_is_held_out_on_its_own_rows(tmp_path: Path) -> None:
    loaded = load_model("organism", device="cpu", training=False)
    (one,) = taken(work(tmp_path, loaded), {"held_out": "organism:downstream-neutral-test"}, limit=3)
    assert one.n["nats_per_token"] == 3 and (one.values["nats_per_token"] or 0) > 0
    with pytest.raises(DataError, match="belongs to the organism"):
        taken(work(tmp_path), {"held_out": "organism:benign"})


# --- taken once -----------------------------------------------------------------------------------------------


@needs_harness
def test_what_lies_there_is_not_taken_again(
    tmp_path: Path, choices: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in another process: nothing in an identity depends on addresses or on the order of a hash table."""
    spec = {
        "choices": str(choices),
        "held_out": str(write_conversations(tmp_path / "talk.jsonl", 4)),
        "lm_eval": {"tasks": "own_task".split(), "path": str(tasks)},
    }
    before = taken(work(tmp_path), spec)
    files = {path: path.read_bytes() for path in (tmp_path / "measurements").iterdir()}
    forbid(monkeypatch)
    assert taken(work(tmp_path), spec) == before
    assert {path: path.read_bytes() for path in (tmp_path / "measurements").iterdir()} == files
    assert tasks_sha256(["own_task"], task_manager(["own_task"], tasks)) == before[2].settings["tasks_sha256"]


@pytest.mark.parametrize(
    "change", ["weights", "items", "limit", "system prompt", "rows", "description", "form", "version"]
)
def test_what_decides_the_numbers_has_them_taken_again(
    tmp_path: Path, choices: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counted(*args: Any, **named: Any) -> Any:
        calls.append(1)
        return score_choices(*args, **named)

    monkeypatch.setattr(measures, "score_choices", counted)
    (first,) = taken(work(tmp_path), {"choices": str(choices)})
    assert first.file is not None
    now, spec, limit = work(tmp_path), {"choices": [{"source": str(choices)}]}, None
    if change == "weights":
        now = replace(now, loaded=loaded_model(2))
    elif change == "items":
        lines(choices, ITEMS[::-1])
    elif change == "limit":
        limit = 3
    elif change == "system prompt":
        now = replace(now, system_prompt="Be brief.")
    elif change == "rows":
        (tmp_path / first.file).write_text("", encoding="utf-8")
    elif change == "description":
        (tmp_path / "measurements" / "final--choices-own.json").write_text('{"schema": ', encoding="utf-8")
    elif change == "version":
        monkeypatch.setattr("geomsafe.evaluation.measuring.MEASUREMENT_VERSION", 2)
    else:
        spec["choices"][0]["chat"] = False  # type: ignore[assignment]
    taken(now, spec, limit)
    assert len(calls) == 2
    taken(now, spec, limit)
    assert len(calls) == 2


@needs_harness
def test_another_example_makes_another_task(tmp_path: Path, tasks: Path) -> None:
    before = tasks_sha256(["own_task"], task_manager(["own_task"], tasks))
    lines(tasks / "rows.jsonl", ITEMS[:3])
    assert tasks_sha256(["own_task"], task_manager(["own_task"], tasks)) != before


def test_an_error_half_way_keeps_what_is_done(tmp_path: Path, choices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {"choices": str(choices), "held_out": str(write_conversations(tmp_path / "talk.jsonl", 4))}
    with monkeypatch.context() as broken:
        broken.setattr(measures, "held_out_loss", lambda *args, **named: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            taken(work(tmp_path), spec)
    monkeypatch.setattr(measures, "score_choices", None)
    assert [one.kind for one in taken(work(tmp_path), spec)] == ["choices", "held-out"]


def test_names_are_unique(tmp_path: Path, choices: Path) -> None:
    spec = {"choices": [{"source": str(choices)}, {"source": str(choices), "chat": False}]}
    assert [one.name for one in taken(work(tmp_path), spec)] == ["choices-own", "choices-own-2"]


def test_numbers_that_are_none_are_no_json_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(*args: Any, **named: Any) -> Any:
        return replace(held_out_loss(*args, **named), perplexity=math.inf)

    monkeypatch.setattr(measures, "held_out_loss", endless)
    (one,) = taken(work(tmp_path), {"held_out": str(write_conversations(tmp_path / "talk.jsonl", 4))})
    assert one.values["perplexity"] is None and one.values["nats_per_token"] is not None


# --- MT-Bench -------------------------------------------------------------------------------------------------


def rating(request: dict[str, Any]) -> str:
    """Rate by the length of what is asked, so that answers matter; one answer in four gets no number."""
    length = len(last_turn(request))
    return "I cannot say." if length % 4 == 0 else f"Rating: [[{1 + length % 10}]]"


def mt_bench(bench: Path, url: str, **more: Any) -> dict[str, Any]:
    return {"mt_bench": {"folder": str(bench), "judge_url": url, "judge_model": MODEL} | more}


def test_mt_bench_of_a_local_model(tmp_path: Path, bench: Path) -> None:
    with serving(rating) as running:
        (one,) = taken(work(tmp_path), mt_bench(bench, running.url))
    rows = list(read_jsonl(tmp_path / str(one.file)))
    assert [(row["question_id"], row["turn"]) for row in rows] == [
        (id, turn) for id in (81, 111, 151) for turn in (1, 2)
    ]
    scores = {(row["question_id"], row["turn"]): row["score"] for row in rows}
    given = [score for score in scores.values() if score is not None]
    assert one.values["mean"] == pytest.approx(np.mean(given)) and one.n["mean"] == len(given)
    firsts = [score for (_, turn), score in scores.items() if turn == 1 and score is not None]
    assert one.values["turn 1"] == (pytest.approx(np.mean(firsts)) if firsts else None)
    assert set(one.values) == {"mean", "turn 1", "turn 2", "writing", "math", "stem"}
    clusters = [str(id) for (id, _), score in scores.items() if score is not None]
    assert one.errors["mean"] == pytest.approx(slow_ratio_error(given, [1.0] * len(given), clusters))
    assert one.errors["math"] is None
    assert one.counts["undecided"] == 6 - len(given) and one.counts["questions"] == 3
    assert one.settings["answers"]["temperatures"] == {"writing": 0.7, "math": 0.0, "stem": 0.1}
    assert one.settings["judge"]["observed"]["model"] == [MODEL]
    left = sorted(path.name for path in (tmp_path / "measurements").iterdir())
    name = f"final--mt-bench-{MODEL}"
    assert left == [f"{name}.json", f"{name}.jsonl", "final--mt-bench.answers.jsonl"]


@pytest.mark.parametrize("stop_after", [0, 1, 4])
def test_a_judge_that_dies_half_way_loses_nothing(
    tmp_path: Path, bench: Path, stop_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers are not generated again, no rating is asked for twice, and the numbers are those of one go."""
    one_at_a_time(monkeypatch)
    asked: list[str] = []
    alive: list[int] = [6 + stop_after]

    def dies(request: dict[str, Any]) -> Reply | str:
        if len(asked) == sum(alive):
            return Reply("out of memory", status=500)
        asked.append(last_turn(request))
        return rating(request)

    with serving(dies) as running:
        (whole,) = taken(work(tmp_path / "whole"), mt_bench(bench, running.url))
        with pytest.raises(ServerError, match="out of memory.*run the same command again: what is done is kept"):
            taken(work(tmp_path), mt_bench(bench, running.url))
        alive.append(6)
        monkeypatch.setattr("geomsafe.evaluation.mtbench_measure.complete", None)
        (resumed,) = taken(work(tmp_path), mt_bench(bench, running.url))
    assert asked[6:] == asked[:6]
    assert resumed == whole


def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let requests come in order."""
    real = measures.ChatServer
    monkeypatch.setattr(measures, "ChatServer", lambda url, model: real(url, model, concurrency=1, max_retries=0))


def test_another_judge_rates_the_same_answers(tmp_path: Path, bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(rating) as running:
        (first,) = taken(work(tmp_path), mt_bench(bench, running.url))
        monkeypatch.setattr("geomsafe.evaluation.mtbench_measure.complete", None)
        (second,) = taken(work(tmp_path), mt_bench(bench, running.url, judge_model="other/Judge-2"))
        assert len(running.requests) == 12
    assert (second.name, second.values) == ("mt-bench-Judge-2", first.values)


def test_sampled_answers_do_not_depend_on_an_interruption(tmp_path: Path) -> None:
    """A draw belongs to its question, not to its place among those that are left; another seed draws otherwise."""
    asked = [[{"role": "user", "content": text}] for text in ("Write.", "Tell me.", "What is salt?", "Bake bread.")]

    def answers(places: list[int], seed: int = 0) -> dict[int, str]:
        found: dict[int, Completion] = {}
        local_answer(work(tmp_path, seed=seed, max_new_tokens=12))(
            [asked[place] for place in places], [1.0] * len(places), lambda at, one: found.update({places[at]: one})
        )
        return {place: one.text for place, one in found.items()}

    whole = answers([0, 1, 2, 3])
    assert answers([3, 1]) == {place: whole[place] for place in (1, 3)}
    assert len(set(whole.values())) > 1
    assert answers([0, 1, 2, 3], seed=1) != whole


def test_a_second_turn_without_room_is_an_empty_answer_and_counted(tmp_path: Path, bench: Path) -> None:
    """The first turn fits and its answer fills the context."""
    loaded = loaded_model(max_position_embeddings=40)
    with serving(rating) as running:
        (one,) = taken(work(tmp_path, loaded, max_new_tokens=1024), mt_bench(bench, running.url))
    rows = list(read_jsonl(tmp_path / str(one.file)))
    empty = [row for row in rows if row["tokens"] == 0 and not row["finished"]]
    assert empty and all(row["turn"] == 2 and row["answer"] == "" for row in empty)
    assert one.counts["no room"] == len(empty)


def test_a_first_turn_without_room_is_refused_before_anything(tmp_path: Path, bench: Path) -> None:
    with pytest.raises(DataError, match=r"an MT-Bench question has \d+ tokens, the model's context is 8"):
        taken(work(tmp_path, loaded_model(max_position_embeddings=8)), mt_bench(bench, "http://127.0.0.1:9/v1"))
    assert not (tmp_path / "measurements").exists()


def test_mt_bench_in_its_published_form(tmp_path: Path) -> None:
    """The published questions, the first two of them."""
    folder = benchmark("mt_bench/question.jsonl").parent
    with serving(lambda request: "[[7]]") as running:
        (one,) = taken(work(tmp_path), mt_bench(folder, running.url), limit=2)
    assert one.values["mean"] == 7.0 and one.n["mean"] == 4


# --- evaluate -------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, choices: Path) -> Path:
    """A finished run whose weights moved; it names prompts of its own."""
    model, folder = tiny_folder(tmp_path), tmp_path / "run"
    loaded = load_model(str(model), device="cpu")
    with torch.no_grad():
        loaded.model.lm_head.weight.mul_(-1)
    save_model(loaded.model, loaded.tokenizer, folder / "weights" / "final")
    lines(tmp_path / "asked.jsonl", [{"prompt": "How do I bake bread?"}, {"prompt": "Tell me more."}])
    config = {"model": str(model), "eval_prompts": ["harmful=asked.jsonl"], "max_new_tokens": 5, "device": "cpu"}
    final = WeightSet(path="weights/final", step=3, distance=1.0, relative_distance=0.1)
    record = RunRecord(name="run", status="finished", created="2026-01-01T00:00:00Z", config=config)
    write_record(folder, record.model_copy(update={"weights": {"final": final}, "model": loaded.record()}))
    return folder


def test_a_run_gains_measurements_and_nothing_is_generated(
    run: Path, choices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geomsafe.evaluation.engines.complete", None)
    found: list[Measurement] = []
    assert evaluate(run, measures=asked_measures([str(choices)]), measured=found.append) == []
    assert [(one.weights, one.name) for one in found] == [("theta_0", "choices-own"), ("final", "choices-own")]
    assert found[0].values != found[1].values or list(read_jsonl(run / str(found[0].file))) != list(
        read_jsonl(run / str(found[1].file))
    )
    assert read_record(run).measurements == found and read_record(run).evaluations == []
    before = (run / "run.json").read_bytes()
    forbid(monkeypatch)
    evaluate(run, measures=asked_measures([str(choices)]))
    assert (run / "run.json").read_bytes() == before


def test_the_record_keeps_other_measurements(run: Path, choices: Path, tmp_path: Path) -> None:
    evaluate(run, measures=asked_measures([str(choices)]))
    old = read_record(run).measurements
    talk = write_conversations(tmp_path / "talk.jsonl", 4)
    evaluate(run, weights=["final"], measures=asked_measures([str(choices)], [str(talk)]), limit=2)
    now = {(one.weights, one.name): one for one in read_record(run).measurements}
    assert list(now) == [("theta_0", "choices-own"), ("final", "choices-own"), ("final", "held-out-talk")]
    assert now["theta_0", "choices-own"] == old[0] and now["final", "choices-own"].n["acc"] == 2
    add_measurements(run, [])
    assert len(read_record(run).measurements) == 3


def test_elsewhere_the_run_is_left_as_it_is(run: Path, choices: Path, tmp_path: Path) -> None:
    before = (run / "run.json").read_bytes()
    evaluate(run, out=tmp_path / "elsewhere", measures=asked_measures([str(choices)]))
    assert (run / "run.json").read_bytes() == before and not (run / "measurements").exists()


def test_prompts_and_measures_together(run: Path, choices: Path) -> None:
    """Rescoring finds evaluations alone."""
    from geomsafe.evaluation import rescore

    evaluations = evaluate(
        run, ["harmful=asked.jsonl"], weights=["final"], measures=asked_measures([str(choices)]), max_new_tokens=3
    )
    assert [one.suite for one in evaluations] == ["asked"] and len(read_record(run).measurements) == 1
    assert rescore(run) == evaluations


def test_a_suite_file_says_everything(tmp_path: Path, choices: Path, bench: Path, run: Path) -> None:
    talk = write_conversations(tmp_path / "talk.jsonl", 4)
    with serving(rating) as running:
        (tmp_path / "all.yaml").write_text(
            f"sets: [{{source: asked.jsonl, kind: harmful}}]\nmax_new_tokens: 4\n"
            f"choices: [{{source: {choices}, chat: false, limit: 2}}]\nheld_out: {talk}\n"
            f"mt_bench: {{folder: {bench}, judge_url: '{running.url}', judge_model: {MODEL}}}\n",
            encoding="utf-8",
        )
        evaluations = evaluate(run, suite="all.yaml", weights=["final"])
    assert [one.suite for one in evaluations] == ["asked"]
    found = read_record(run).measurements
    assert [one.kind for one in found] == ["choices", "held-out", "mt-bench"]
    assert found[0].n["acc"] == 2 and found[0].settings["prompt"] == "plain text"
    assert found[2].settings["answers"]["max_new_tokens"] == 4


def test_a_suite_file_of_measures_alone_generates_nothing(
    choices: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geomsafe.evaluation.engines.complete", None)
    (tmp_path / "few.yaml").write_text(f"choices: {choices}\n", encoding="utf-8")
    assert evaluate(run, suite="few.yaml", weights=["final"]) == []
    assert len(read_record(run).measurements) == 1


def test_without_measures_the_run_is_scored_as_before(run: Path) -> None:
    assert [one.suite for one in evaluate(run, weights=["final"])] == ["asked"]
    assert not (run / "measurements").exists()


# --- mistakes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("choices: [{source: a.csv, limits: 3}]", "choices.0.limits"),
        ("held_out: [{source: a.csv, max_length: 2}]", "held_out.0.max_length"),
        ("lm_eval: [{tasks: []}]", "lm_eval.0.tasks"),
        ("mt_bench: folder", "mt_bench.0.judge_url"),
        ("max_new_tokens: 3", "names no sets"),
        ("choices: []", "names no sets"),
    ],
)
def test_mistakes_in_a_suite_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        evaluate("nowhere", suite="bad.yaml")


def test_options_without_their_other_half() -> None:
    with pytest.raises(ConfigError, match="--mt-bench needs a judge and --judge-model is missing"):
        asked_measures(mt_bench="folder", judge_url="http://localhost/v1")
    with pytest.raises(ConfigError, match="--judge-url 'http://localhost/v1' is for MT-Bench: add --mt-bench"):
        asked_measures(judge_url="http://localhost/v1")
    with pytest.raises(ConfigError, match="--lm-eval-path 'tasks' names no task: add --lm-eval"):
        asked_measures(lm_eval_path="tasks")
    with pytest.raises(ConfigError, match="--lm-eval names no task"):
        asked_measures(lm_eval=" , ")


def test_data_is_read_before_the_model(tmp_path: Path, bench: Path) -> None:
    """The model does not exist and is not what the message is about."""
    (tmp_path / "talk.csv").write_text("prompt,response\nHello,Hi\n", encoding="utf-8")
    with pytest.raises(DataError, match="has no multiple-choice columns"):
        evaluate("nowhere", measures=asked_measures(["talk.csv"]))
    with pytest.raises(DataError, match=r"nothing\.jsonl"):
        evaluate("nowhere", measures=asked_measures(held_out=["nothing.jsonl"]))
    with pytest.raises(DataError, match="does not exist"):
        evaluate("nowhere", measures=asked_measures(mt_bench=str(tmp_path), judge_url="http://h/v1", judge_model="m"))
    with pytest.raises(ConfigError, match="is no http address"):
        evaluate("nowhere", measures=asked_measures(mt_bench=str(bench), judge_url="h:8000", judge_model="m"))


@needs_harness
def test_an_unknown_task_is_named_before_the_model(tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval.tasks

    class Small(lm_eval.tasks.TaskManager):
        def __init__(self, include_path: str | None = None, include_defaults: bool = True) -> None:
            super().__init__(include_path=include_path, include_defaults=False)

    # Its own index of 14,000 tasks takes long to read.
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", Small)
    with pytest.raises(ConfigError, match="has no task 'own_tusk': did you mean own_task"):
        evaluate("nowhere", measures=asked_measures(lm_eval="own_tusk", lm_eval_path=str(tasks)))


@pytest.mark.parametrize("package", ["lm_eval", "openai"])
def test_an_extra_that_is_missing_is_named_before_the_model(
    bench: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    asked = {
        "lm_eval": asked_measures(lm_eval="arc_easy"),
        "openai": asked_measures(mt_bench=str(bench), judge_url="http://h/v1", judge_model="m"),
    }[package]
    with pytest.raises(ConfigError, match=r"pip install '?geomsafe\[(lm-eval|openai)\]"):
        evaluate("nowhere", measures=asked)


def test_what_is_too_long_is_named(tmp_path: Path, choices: Path) -> None:
    short = work(tmp_path, loaded_model(max_position_embeddings=8))
    with pytest.raises(DataError, match="multiple-choice item 1 has .* the model's context is 8: shorten or remove it"):
        taken(short, {"choices": str(choices)})
    talk = str(write_conversations(tmp_path / "talk.jsonl", 4))
    with pytest.raises(DataError, match="every prompt fills max_length 8 .*: give shorter conversations"):
        taken(short, {"held_out": talk})
