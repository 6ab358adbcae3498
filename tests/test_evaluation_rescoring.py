"""Stored answers judged again: the same numbers without the model, and new judges beside the old."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_folder

from geomsafe.config import TrainConfig
from geomsafe.errors import ConfigError, RecordError, ServerError
from geomsafe.evaluation import evaluate, rescore
from geomsafe.evaluation.judging import judge_later
from geomsafe.evaluation.stored import read_stored, stored_files
from geomsafe.evaluation.verdicts import Case, Judged, Verdict
from geomsafe.models import load_model
from geomsafe.records import RunRecord, read_jsonl, read_record, write_record

SHORT: dict[str, Any] = {"max_new_tokens": 5, "batch_size": 2}


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOMSAFE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    path = tmp_path / "asked.csv"
    rows = ["How do I bake bread?", "How do I stop it?", "Tell me more.", "What is it?"]
    path.write_text("prompt\n" + "\n".join(rows) + "\n", encoding="utf-8")
    evaluate(tiny_folder(tmp_path), [f"harmful={path}"], tmp_path / "out", **SHORT)
    return tmp_path / "out"


class Patient:
    """A judge of batches that may fail on the way; `asked` are the completions it has read."""

    values = ("refusal", "compliance", "undecided")

    def __init__(self, fail_at: int | None = None, rule: str = "v1") -> None:
        self.name = "patient"
        self.asked: list[str] = []
        self.rule = rule
        self._fail_at = fail_at

    def judge_cases(self, cases: Sequence[Case], verdict: Verdict) -> None:
        for place, case in reversed(list(enumerate(cases))):
            if len(self.asked) == self._fail_at:
                raise ServerError("the judge is gone")
            self.asked.append(case.completion)
            verdict(place, Judged("undecided" if place == 0 else "compliance", self.rule))

    def settings(self) -> dict[str, Any]:
        return {"rule": self.rule, "observed": {"asked": len(self.asked)}}


def test_the_same_judges_give_the_same_bytes(scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in (scored / "evaluations").iterdir()}
    monkeypatch.setattr("geomsafe.evaluation.engines.complete", lambda *_, **__: pytest.fail("generated"))
    first = rescore(scored)
    assert {path.name: path.read_bytes() for path in (scored / "evaluations").iterdir()} == before
    assert rescore(scored / "evaluations") == first


def test_old_verdicts_are_not_trusted(scored: Path) -> None:
    """A verdict that was changed by hand is given anew; answers that were changed are refused."""
    path = stored_files(scored)[0].with_suffix(".jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"value": "compliance"', b'"value": "refusal"', 1))
    rescore(scored)
    assert path.read_bytes() == whole
    path.write_bytes(whole.replace(b'"completion": "', b'"completion": "x', 1))
    with pytest.raises(RecordError, match="are not those that were scored: score the model again"):
        rescore(scored)


def test_new_judges_stand_beside_the_old(scored: Path) -> None:
    (one,) = rescore(scored, ["keyword-12", "keyword-29:opening"])
    assert list(one.scores) == [
        "keyword-29", "keyword-19", "keyword-29+coherence", "keyword-12", "keyword-29:opening",
    ]  # fmt: skip
    assert sum(one.scores["keyword-12"].values()) == one.n == 4
    (again,) = rescore(scored)
    assert again == one, "what was added stays"


def test_a_list_of_the_users_own_keeps_its_verdicts(scored: Path) -> None:
    """The record has its rules and the hash of its strings, not the strings: without them nothing is judged anew."""
    (one,) = rescore(scored, [{"name": "mine", "strings": ["e", "a"]}])
    (again,) = rescore(scored)
    assert again == one and "mine" in one.scores


def test_a_judge_that_fails_half_way_goes_on_where_it_stopped(scored: Path) -> None:
    stored = read_stored(stored_files(scored)[0])
    broken = Patient(fail_at=2)
    with pytest.raises(ServerError, match="the judge is gone"):
        judge_later(scored, stored, broken)
    partial = list((scored / "evaluations").glob("*.patient.partial"))
    assert len(partial) == 1 and read_stored(stored_files(scored)[0]) == stored
    seen: list[tuple[str, int, int]] = []
    healthy = Patient()
    judged = judge_later(scored, stored, healthy, lambda *call: seen.append(call))
    texts = [row["completion"] for row in stored.rows]
    assert (broken.asked, healthy.asked) == ([texts[3], texts[2]], [texts[1], texts[0]])
    assert seen[-1] == ("model: asked: patient", 4, 4)
    assert judged.evaluation.scores["patient"] == {"refusal": 0, "compliance": 3, "undecided": 1}
    assert not list((scored / "evaluations").glob("*.partial"))
    idle = Patient()
    assert judge_later(scored, judged, idle) == judged and idle.asked == [], "it has spoken already"


def test_another_rule_is_another_judge(scored: Path) -> None:
    """What one version said half-way is no start for the next."""
    stored = read_stored(stored_files(scored)[0])
    with pytest.raises(ServerError):
        judge_later(scored, stored, Patient(fail_at=3, rule="v1"))
    other = Patient(rule="v2")
    judged = judge_later(scored, stored, other)
    assert len(other.asked) == 4
    third = Patient(rule="v3")
    assert judge_later(scored, judged, third) != judged and len(third.asked) == 4


def test_answers_that_stopped_early_are_no_ground_for_judges_of_whole_ones(tmp_path: Path) -> None:
    """Keyword judges that were settled on them may speak; one that was not, and one that reads on, may not."""
    path = tmp_path / "asked.csv"
    path.write_text("prompt\nHow do I bake bread?\nTell me more.\n", encoding="utf-8")
    model = tiny_folder(tmp_path)
    evaluate(model, [f"harmful={path}"], tmp_path / "whole", **SHORT | {"max_new_tokens": 40})
    texts = [row["completion"] for row in read_jsonl(tmp_path / "whole" / "evaluations" / "model--asked.jsonl")]
    mine = {"name": "mine", "strings": [texts[0].strip()[:2]]}
    evaluate(model, [f"harmful={path}"], tmp_path / "out", judges=[mine], **SHORT | {"max_new_tokens": 40})
    rows = list(read_jsonl(tmp_path / "out" / "evaluations" / "model--asked.jsonl"))
    assert rows[0]["stopped_early"] and len(rows[0]["completion"]) < len(texts[0])
    rescore(tmp_path / "out", [mine, "coherence"])
    rows = list(read_jsonl(tmp_path / "out" / "evaluations" / "model--asked.jsonl"))
    assert "coherence" not in rows[0]["verdicts"], "it has no say on what stopped as a refusal"
    with pytest.raises(ConfigError, match="judge 'keyword-12' needs whole answers, and that to prompt 1 was stopped"):
        rescore(tmp_path / "out", ["keyword-12"])
    with pytest.raises(ConfigError, match="judge 'patient' needs whole answers"):
        judge_later(tmp_path / "out", read_stored(stored_files(tmp_path / "out")[0]), Patient())
    evaluate(
        model,
        [f"harmful={path}"],
        tmp_path / "out",
        judges=[mine],
        whole_answers=True,
        **SHORT | {"max_new_tokens": 40},
    )
    assert [row["completion"] for row in read_jsonl(tmp_path / "out" / "evaluations" / "model--asked.jsonl")] == texts


def test_a_folder_without_evaluations(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="holds no evaluations: name a run"):
        rescore(tmp_path)


def test_gold_verdicts_need_the_world_that_gave_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record names seed and lexicon; a world that is made otherwise today is refused, not used."""
    (one, *_) = evaluate("organism", ["organism:harmful"], tmp_path / "gold", limit=3, max_new_tokens=16)
    before = (tmp_path / "gold" / one.file).read_bytes()
    assert rescore(tmp_path / "gold") == [one]
    assert (tmp_path / "gold" / one.file).read_bytes() == before
    monkeypatch.setattr("geomsafe.world.World.digest", lambda self: "0" * 64)
    with pytest.raises(RecordError, match="is no longer the one that was judged by"):
        rescore(tmp_path / "gold")


def test_a_runs_record_follows(tmp_path: Path) -> None:
    """What the report reads is run.json: it gains the new judge's counts."""
    path = tmp_path / "asked.csv"
    path.write_text("prompt\nHow do I bake bread?\nTell me more.\n", encoding="utf-8")
    model = tiny_folder(tmp_path)
    loaded = load_model(str(model), device="cpu")
    config = TrainConfig(model=str(model), eval_prompts=[f"harmful={path}"], max_new_tokens=5)
    record = RunRecord(
        name="run", status="finished", created="2026-01-01T00:00:00Z",
        config=config.model_dump(mode="json"), model=loaded.record(),
    )  # fmt: skip
    write_record(tmp_path / "run", record)
    (one,) = evaluate(tmp_path / "run")
    (again,) = rescore(tmp_path / "run", ["keyword-12"])
    assert read_record(tmp_path / "run").evaluations == [again] != [one]
