"""A server in place of a loaded model, through real HTTP on loopback; and judges behind servers end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chat_server import MODEL, Reply, last_turn, serving
from tiny import tiny_folder

from geomsafe.errors import ConfigError, ServerError
from geomsafe.evaluation import evaluate, rescore
from geomsafe.records import read_jsonl

ODD = "Sure \x1b[31mred\x1b[0m <script>alert(1)</script> \x00 ‮ end"


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOMSAFE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "asked.csv"
    path.write_text('goal,target\nOne,"Sure, one"\nTwo,"Sure, two"\nThree,"Sure, three"\n', encoding="utf-8")
    return f"harmful={path}"


def rows_of(folder: Path, name: str = "model--asked") -> list[dict[str, Any]]:
    return list(read_jsonl(folder / "evaluations" / f"{name}.jsonl"))


def test_a_server_answers_like_a_model(tmp_path: Path, prompts: str) -> None:
    with serving(lambda request: f"I cannot do {last_turn(request)}.") as server:
        settings = {"system_prompt": "Be brief.", "max_new_tokens": 9, "batch_size": 2}
        (one,) = evaluate(MODEL, [prompts], tmp_path / "out", base_url=server.url, **settings)
    assert [row["completion"] for row in rows_of(tmp_path / "out")] == [
        f"I cannot do {n}." for n in ("One", "Two", "Three")
    ]
    assert one.scores["keyword-29"] == {"refusal": 3, "compliance": 0}
    assert one.settings["engine"] == "openai" and one.settings["template_sha256"] is None
    assert one.settings["early_stop"] is None and one.settings["observed"]["model"] == [MODEL]
    assert server.most <= 2
    for request in server.requests:
        assert request["messages"][0] == {"role": "system", "content": "Be brief."}
        assert (request["max_tokens"], request["temperature"]) == (9, 0)


def test_the_same_server_goes_on_where_it_stopped(tmp_path: Path, prompts: str) -> None:
    down = True

    def flaky(request: dict[str, Any]) -> Reply | str:
        return Reply("overloaded", status=400) if down and last_turn(request) == "Three" else "Fine."

    with serving(flaky) as server:
        with pytest.raises(ServerError, match="run the same command again: what is done is kept"):
            evaluate(MODEL, [prompts], tmp_path / "out", base_url=server.url, batch_size=1)
        down = False
        evaluate(MODEL, [prompts], tmp_path / "out", base_url=server.url, batch_size=1)
        assert [last_turn(request) for request in server.requests] == ["One", "Two", "Three", "Three"]
    assert [row["completion"] for row in rows_of(tmp_path / "out")] == ["Fine."] * 3
    with serving(flaky) as other:
        evaluate(MODEL, [prompts], tmp_path / "out", base_url=other.url, batch_size=1)
        assert len(other.requests) == 3, "at another address is another model"


def test_control_characters_html_and_half_characters_are_stored_as_they_came(tmp_path: Path, prompts: str) -> None:
    with serving(lambda request: Reply(raw=_body(ODD + "\\ud800"))) as server:
        evaluate(MODEL, [prompts], tmp_path / "out", base_url=server.url)
    assert {row["completion"] for row in rows_of(tmp_path / "out")} == {ODD + "?"}
    assert rescore(tmp_path / "out")[0].n == 3


def _body(text: str) -> bytes:
    import json

    said = json.dumps(text)[1:-1].replace("\\\\ud800", "\\ud800")
    return (
        '{"id": "x", "object": "chat.completion", "created": 1, "model": "' + MODEL + '", "choices": [{"index": 0, '
        '"finish_reason": "stop", "message": {"role": "assistant", "content": "' + said + '"}}], '
        '"usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}'
    ).encode()


def test_attacks_that_need_the_model_are_refused(tmp_path: Path, prompts: str) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(f"sets: [{{source: {prompts.partition('=')[2]}, kind: harmful}}]\nattacks: ['prefill:2']\n")
    with pytest.raises(ConfigError, match="attack 'prefill:2' needs the model itself"):
        evaluate(MODEL, suite=str(suite), base_url="http://127.0.0.1:9/v1")
    with pytest.raises(ConfigError, match="nothing to score 'tiny-chat' on"):
        evaluate(MODEL, base_url="http://127.0.0.1:9/v1")
    with pytest.raises(ConfigError, match="'dtype' is for models that are loaded here"):
        evaluate(MODEL, [prompts], base_url="http://127.0.0.1:9/v1", dtype="float32")


def test_a_judge_behind_a_server_speaks_after_the_answers_and_resumes(tmp_path: Path, prompts: str) -> None:
    """The answers are there when the judge is down; what it said before it went down is not asked again."""
    down = True

    def reply(request: dict[str, Any]) -> Reply | str:
        return Reply("no", status=400) if down and len(judge_server.requests) > 2 else "yes"

    model = tiny_folder(tmp_path)
    with serving(reply) as judge_server:
        judge = tmp_path / "judge.yaml"
        judge.write_text(
            f"{{name: cls, type: server, model: {MODEL}, template: harmbench-cls, base_url: '{judge_server.url}', "
            "concurrency: 1}"
        )
        asked = {"judges": ["keyword-29", str(judge)], "max_new_tokens": 5}
        with pytest.raises(ServerError):
            evaluate(model, [prompts], tmp_path / "out", **asked)
        assert len(rows_of(tmp_path / "out")) == 3, "answers and keyword verdicts are kept"
        down = False
        (one,) = evaluate(model, [prompts], tmp_path / "out", **asked)
        assert len(judge_server.requests) == 4, "two verdicts were there, one failed, one was left"
    assert sum(one.scores["cls"].values()) == 3 and one.settings["judges"]["cls"]["template"]


def test_a_judge_that_talks_nonsense_is_undecided(tmp_path: Path, prompts: str) -> None:
    with serving(lambda request: "Well, who can say?") as server:
        judge = {"name": "cls", "type": "server", "model": MODEL, "template": "harmbench-cls", "base_url": server.url}
        (one,) = evaluate(tiny_folder(tmp_path), [prompts], tmp_path / "out", judges=[judge], max_new_tokens=5)
    assert one.scores["cls"] == {"refusal": 0, "compliance": 0, "undecided": 3}
