"""`evaluate` on model folders and run directories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_folder

from geomsafe.config import TrainConfig
from geomsafe.errors import ConfigError, DataError, ModelError, RecordError
from geomsafe.evaluation import default_out, evaluate, evaluate_model, suites_for
from geomsafe.models import load_model, save_model
from geomsafe.records import RunRecord, WeightSet, read_jsonl, read_record, write_record

SHORT: dict[str, Any] = {"max_new_tokens": 5, "batch_size": 2}


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOMSAFE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "asked.csv"
    path.write_text("prompt\nHow do I bake bread?\nHow do I stop it?\nTell me more.\n", encoding="utf-8")
    return f"harmful={path}"


@pytest.fixture
def run(tmp_path: Path, prompts: str) -> Path:
    """A finished run: theta_0 and one moved set of weights."""
    model = tiny_folder(tmp_path)
    folder = tmp_path / "run"
    loaded = load_model(str(model), device="cpu")
    with torch.no_grad():
        loaded.model.lm_head.weight.mul_(-1)
    save_model(loaded.model, loaded.tokenizer, folder / "weights" / "final")
    config = TrainConfig(
        model=str(model), eval_prompts=[prompts], max_new_tokens=5, eval_batch_size=2, system_prompt="Be brief."
    )
    record = RunRecord(
        name="run",
        status="finished",
        created="2026-01-01T00:00:00Z",
        config=config.model_dump(mode="json"),
        model=loaded.record(),
        weights={"final": WeightSet(path="weights/final", step=3, distance=1.0, relative_distance=0.1)},
    )
    write_record(folder, record)
    return folder


def test_a_model_folder_is_scored_on_named_prompts(tmp_path: Path, prompts: str) -> None:
    (item,) = evaluate(tiny_folder(tmp_path), [prompts], tmp_path / "out", **SHORT)
    assert (item.weights, item.suite, item.kind, item.n) == ("model", "asked", "harmful", 3)
    rows = list(read_jsonl(tmp_path / "out" / item.file))
    assert [row["prompt"] for row in rows] == ["How do I bake bread?", "How do I stop it?", "Tell me more."]
    assert item.settings["max_new_tokens"] == 5


def test_a_run_is_scored_with_all_its_weights_under_its_own_settings(run: Path) -> None:
    """theta_0 first; the record gains the evaluations, and a second call changes nothing."""
    evaluations = evaluate(run)
    assert [(item.weights, item.suite) for item in evaluations] == [("theta_0", "asked"), ("final", "asked")]
    assert all(item.settings["system_prompt"] == "Be brief." for item in evaluations)
    texts = [[row["completion"] for row in read_jsonl(run / item.file)] for item in evaluations]
    assert texts[0] != texts[1]
    assert read_record(run).evaluations == evaluations
    before = (run / "run.json").read_bytes()
    assert evaluate(run) == evaluations
    assert (run / "run.json").read_bytes() == before


def test_new_prompts_are_added_to_the_record_beside_the_old(run: Path, tmp_path: Path) -> None:
    old = evaluate(run)
    more = tmp_path / "more.csv"
    more.write_text("prompt\nWhat is bread?\n", encoding="utf-8")
    new = evaluate(run, [f"look-alike={more}"], weights=["final"])
    assert [(item.weights, item.kind) for item in new] == [("final", "look-alike")]
    assert read_record(run).evaluations == [*old, *new]
    shorter = evaluate(run, weights=["final"], max_new_tokens=3)
    assert read_record(run).evaluations == [old[0], *new, *shorter]


def test_elsewhere_the_run_is_left_as_it_is(run: Path, tmp_path: Path) -> None:
    before = (run / "run.json").read_bytes()
    evaluate(run, out=tmp_path / "elsewhere")
    assert (run / "run.json").read_bytes() == before
    assert not (run / "evaluations").exists()
    assert len(list((tmp_path / "elsewhere" / "evaluations").glob("*.jsonl"))) == 2


def test_two_models_of_one_last_name_do_not_share_a_folder() -> None:
    assert default_out("organism") == Path("runs/evaluate-organism")
    assert default_out("a/model") != default_out("b/model")
    assert default_out("a/model").name.startswith("evaluate-model-")


def test_what_training_scored_is_not_generated_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A saved folder has the identity of the model in memory that it was saved from."""
    record = read_record(run)
    config = TrainConfig.model_validate(record.config)
    loaded = load_model(config.model, device="cpu")
    with torch.no_grad():
        loaded.model.lm_head.weight.mul_(-1)
    loaded.model.train()
    suites = suites_for(loaded, config.eval_prompts, config.data)
    trained = evaluate_model(
        loaded, suites, run, "final", max_new_tokens=5, batch_size=2, system_prompt=config.system_prompt
    )
    monkeypatch.setattr("geomsafe.evaluation.engines.complete", None)
    assert evaluate(run, weights=["final"]) == trained


@pytest.mark.parametrize("status", ["finished", "failed"])
def test_a_run_that_goes_on_is_refused(run: Path, status: Any) -> None:
    """A failed run's weights can be scored, those of one under way may change."""
    record = read_record(run)
    write_record(run, record.model_copy(update={"status": status}))
    assert len(evaluate(run)) == 2
    write_record(run, record.model_copy(update={"status": "started"}))
    with pytest.raises(RecordError, match=r"has not finished: resume it with 'geomsafe train --resume "):
        evaluate(run)


def test_a_start_that_was_changed_since_is_refused(run: Path, tmp_path: Path) -> None:
    tiny_folder(tmp_path, seed=9)
    with pytest.raises(RecordError, match="no longer the model that run 'run' started from"):
        evaluate(run)
    assert [item.weights for item in evaluate(run, weights=["final"])] == ["final"]


def test_errors_name_the_remedy(run: Path, tmp_path: Path, prompts: str) -> None:
    model = tiny_folder(tmp_path)
    with pytest.raises(RecordError, match="no weights named 'ema': it has theta_0, final"):
        evaluate(run, weights=["ema"])
    with pytest.raises(ConfigError, match="is no run directory, so it has no weights named final"):
        evaluate(model, [prompts], weights=["final"])
    with pytest.raises(ConfigError, match=r"nothing to score .* on: name prompts, as in '--prompts harmful=FILE'"):
        evaluate(model)
    with pytest.raises(DataError):
        evaluate(model, ["harmful=nowhere.csv"])
    with pytest.raises(ModelError):
        evaluate(tmp_path / "nowhere", [prompts])
    with pytest.raises(ConfigError, match="kind 'safe' is unknown"):
        evaluate(tmp_path / "nowhere", ["safe=asked.csv"])
    with pytest.raises(ConfigError, match="max_new_tokens"):
        evaluate(model, [prompts], max_new_tokens=0)
    assert not (tmp_path / "runs").exists()


def test_where_evaluations_go(run: Path, tmp_path: Path, prompts: str) -> None:
    assert default_out(run) == run
    assert default_out("My model") == Path("runs/evaluate-My-model")
    model = tiny_folder(tmp_path)
    (item,) = evaluate(model, [prompts], **SHORT)
    assert (tmp_path / default_out(model) / item.file).is_file()
