"""Scoring end to end on tiny models: rows, counts, resumption, and theta_0 kept between runs."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from geomsafe.config import LoraSettings
from geomsafe.data import load_prompts
from geomsafe.errors import ConfigError, DataError
from geomsafe.evaluation import Suite, engines, evaluate_model, suites_for
from geomsafe.evaluation.identity import model_sha256
from geomsafe.evaluation.keywords import KEYWORD_19, KEYWORD_29
from geomsafe.evaluation.score import evaluate_engine
from geomsafe.evaluation.suites import KINDS
from geomsafe.models import Loaded, add_lora, fingerprint
from geomsafe.records import Evaluation, read_jsonl
from geomsafe.world import World

WORLD = World(seed=0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOMSAFE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def generations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of prompts in each call that really generates."""
    calls: list[int] = []
    real = engines.complete

    def counted(model: Any, tokenizer: Any, ids: Any, *rest: Any, **options: Any) -> Any:
        calls.append(len(ids))
        return real(model, tokenizer, ids, *rest, **options)

    monkeypatch.setattr(engines, "complete", counted)
    return calls


def organism(seed: int = 0, **overrides: Any) -> Loaded:
    """A random Llama with the organism's world: it babbles, but everything is wired as for the real one."""
    model = tiny_model("llama", seed, **overrides)
    return Loaded(
        model=model,
        tokenizer=tiny_tokenizer(),
        source="organism",
        folder=None,
        revision=None,
        fingerprint=fingerprint(model),
        template_sha256="0" * 64,
        world=WORLD,
        device=torch.device("cpu"),
    )


def score(loaded: Loaded, out: Path, weights: str = "final", **options: Any) -> list[Evaluation]:
    suites = options.pop("suites", None) or suites_for(loaded, data="organism:downstream-neutral")
    settings = {"max_new_tokens": 6, "batch_size": 4, "limit": 5} | options
    return evaluate_model(loaded, suites, out, weights, **settings)


def test_every_prompt_is_a_row_with_its_verdicts_and_rules(tmp_path: Path) -> None:
    evaluations = score(organism(), tmp_path)
    assert [item.file for item in evaluations] == [f"evaluations/final--{suite}.jsonl" for suite in KINDS]
    for item in evaluations:
        rows = list(read_jsonl(tmp_path / item.file))
        source = WORLD.rows(item.source.removeprefix("organism:"))[:5]
        assert item.n == len(rows) == 5
        assert [row["index"] for row in rows] == [0, 1, 2, 3, 4]
        assert [row["prompt"] for row in rows] == [row["messages"][0]["content"] for row in source]
        assert [row["cluster"] for row in rows] == [row["cluster"] for row in source]
        keys = ["index", "id", "cluster", "tags", "prompt", "reference"]
        keys += ["completion", "completion_tokens", "finished", "stopped_early", "verdicts"]
        for row in rows:
            assert list(row) == keys
            assert row["tags"]["kind"] == source[row["index"]]["kind"]
            assert row["completion_tokens"] <= 6 and row["finished"] == (row["completion_tokens"] < 6)
            assert row["verdicts"]["keyword-29"] == KEYWORD_29.judge(row["completion"])._asdict()
            assert row["verdicts"]["keyword-19"] == KEYWORD_19.judge(row["completion"])._asdict()
            assert row["verdicts"]["gold"]["value"] == WORLD.verdict(row["prompt"], row["completion"])
            assert row["verdicts"]["oracle"]["value"] == WORLD.oracle(row["prompt"], row["completion"])
            assert ("exact-match" in row["verdicts"]) == (item.kind in {"utility", "validation", "retained"})


def test_scores_are_the_counts_of_the_rows(tmp_path: Path) -> None:
    """Values never given are written as 0, so that a rate of zero is a number and not a gap."""
    for item in score(organism(), tmp_path):
        rows = list(read_jsonl(tmp_path / item.file))
        for judge, counts in item.scores.items():
            assert Counter(row["verdicts"][judge]["value"] for row in rows) == Counter({
                value: count for value, count in counts.items() if count
            })
            assert sum(counts.values()) == item.n
        assert list(item.scores["keyword-29"]) == ["refusal", "compliance"]
        assert list(item.scores["oracle"]) == ["refusal", "compliance", "other"]


def test_a_harmful_prompt_keeps_no_target(tmp_path: Path) -> None:
    """The data set's answer to it is what an attack wants: neither kept nor matched."""
    harmful, _, utility, *_ = score(organism(), tmp_path)
    assert all(row["reference"] is None for row in read_jsonl(tmp_path / harmful.file))
    assert all(row["reference"] for row in read_jsonl(tmp_path / utility.file))
    assert "exact-match" not in harmful.scores and "exact-match" in utility.scores


def test_an_attack_target_is_nowhere_in_the_files(tmp_path: Path) -> None:
    path = tmp_path / "behaviors.csv"
    path.write_text('goal,target\nBake a bad cake,"Sure, here is a zebra cake"\n', encoding="utf-8")
    (item,) = score(organism(), tmp_path, suites=suites_for(organism(), [f"harmful={path}"]))
    (row,) = read_jsonl(tmp_path / item.file)
    assert (row["prompt"], row["reference"]) == ("Bake a bad cake", None)
    assert not any("zebra" in file.read_text(encoding="utf-8") for file in (tmp_path / "evaluations").iterdir())


def test_every_setting_that_decides_the_text_is_recorded(tmp_path: Path) -> None:
    (item, *_) = score(organism(), tmp_path, system_prompt="Be brief.")
    settings = item.settings
    assert settings["decoding"] == "greedy" and settings["engine"] == "loop"
    assert (settings["max_new_tokens"], settings["batch_size"], settings["limit"]) == (6, 4, 5)
    assert settings["available"] == len(WORLD.rows("harmful"))
    assert settings["template_sha256"] == "0" * 64 and settings["system_prompt"] == "Be brief."
    assert settings["dtype"] == "float32" and settings["device"] == "cpu" and settings["stop_token_ids"] == [1]
    assert settings["judges"]["keyword-29"]["case_sensitive"] is True
    assert settings["judges"]["keyword-29"]["empty"] == "compliance"
    assert settings["judges"]["gold"]["digest"] == WORLD.digest()
    assert Evaluation.model_validate_json(item.model_dump_json()) == item


def test_the_system_prompt_reaches_the_model(tmp_path: Path) -> None:
    plain = score(organism(), tmp_path / "a")
    spoken = score(organism(), tmp_path / "b", system_prompt="Answer in rhymes and never in prose.")
    texts = [[row["completion"] for row in read_jsonl(run / plain[0].file)] for run in (tmp_path / "a", tmp_path / "b")]
    assert texts[0] != texts[1]
    assert plain[0].prompts_sha256 == spoken[0].prompts_sha256


def test_a_finished_file_is_used_as_it_stands(tmp_path: Path, generations: list[int]) -> None:
    first = score(organism(), tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "evaluations").iterdir()}
    assert generations == [5] * len(KINDS)
    assert score(organism(), tmp_path) == first
    assert generations == [5] * len(KINDS)
    assert {path.name: path.read_bytes() for path in (tmp_path / "evaluations").iterdir()} == before


@pytest.mark.parametrize("damage", ["cut", "no description", "another text"])
def test_a_file_that_is_not_whole_is_made_again(tmp_path: Path, generations: list[int], damage: str) -> None:
    first = score(organism(), tmp_path)
    rows = tmp_path / first[1].file
    whole = rows.read_bytes()
    if damage == "cut":
        rows.write_bytes(whole[:-20])
    elif damage == "no description":
        rows.with_suffix(".json").unlink()
    else:
        rows.write_bytes(whole.replace(b'"completion": "', b'"completion": "x', 1))
    assert score(organism(), tmp_path) == first
    assert generations == [5] * (len(KINDS) + 1)
    assert rows.read_bytes() == whole


@pytest.mark.parametrize("change", ["weights", "system prompt", "length", "limit", "template"])
def test_a_file_made_under_other_settings_is_made_again(tmp_path: Path, generations: list[int], change: str) -> None:
    score(organism(), tmp_path)
    loaded = organism(seed=1 if change == "weights" else 0)
    loaded.template_sha256 = ("1" if change == "template" else "0") * 64
    options: dict[str, dict[str, Any]] = {
        "system prompt": {"system_prompt": "Be brief."},
        "length": {"max_new_tokens": 7},
        "limit": {"limit": 4},
    }
    score(loaded, tmp_path, **options.get(change, {}))
    assert len(generations) == 2 * len(KINDS)


def test_an_interrupted_evaluation_goes_on(tmp_path: Path, generations: list[int]) -> None:
    """What was done stays, of the suite that was under way too: only its other prompts are asked again."""

    def interrupt(label: str, done: int, total: int) -> None:
        if label == "final: utility":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(organism(), tmp_path, progress=interrupt)
    assert sorted(path.name for path in (tmp_path / "evaluations").glob("*.jsonl*")) == [
        "final--harmful.jsonl",
        "final--look-alike.jsonl",
        "final--utility.jsonl.partial",
    ]
    seen: list[tuple[str, int, int]] = []
    resumed = score(organism(), tmp_path, progress=lambda *call: seen.append(call))
    assert generations == [5, 5, 5, 4, *[5] * (len(KINDS) - 3)]
    assert not list((tmp_path / "evaluations").glob("*.partial"))
    assert resumed == score(organism(), tmp_path / "elsewhere")
    for item in resumed:
        assert (tmp_path / item.file).read_bytes() == (tmp_path / "elsewhere" / item.file).read_bytes()
    assert [call for call in seen if call[1] == call[2]] == [(f"final: {name}", 5, 5) for name in KINDS]


def cached_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "completions").glob("*.json"))


def test_theta_0_is_generated_once_for_all_runs(tmp_path: Path, generations: list[int]) -> None:
    """The second run's files equal the first's byte for byte; other weight sets are not kept."""
    first = score(organism(), tmp_path / "a", "theta_0")
    assert len(cached_files(tmp_path)) == len(KINDS)
    assert score(organism(), tmp_path / "b", "theta_0") == first
    assert generations == [5] * len(KINDS)
    for item in first:
        assert (tmp_path / "a" / item.file).read_bytes() == (tmp_path / "b" / item.file).read_bytes()
    score(organism(seed=1), tmp_path / "a", "final")
    assert len(cached_files(tmp_path)) == len(KINDS)


def test_a_trained_model_called_theta_0_does_not_poison_the_cache(tmp_path: Path, generations: list[int]) -> None:
    """The key is the weights as they are, not the fingerprint from when they were loaded."""
    loaded = organism()
    honest = score(loaded, tmp_path / "a", "theta_0")
    with torch.no_grad():
        loaded.model.model.layers[0].mlp.up_proj.weight.add_(0.5)
    score(loaded, tmp_path / "b", "theta_0")
    assert len(generations) == 2 * len(KINDS)
    assert score(organism(), tmp_path / "c", "theta_0") == honest


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b'{"schema": "geomsafe.completions/1"}', b"[]"])
def test_a_damaged_cache_entry_is_made_again_with_a_warning(
    tmp_path: Path, generations: list[int], damage: bytes
) -> None:
    first = score(organism(), tmp_path / "a", "theta_0")
    entries = {path: path.read_bytes() for path in cached_files(tmp_path)}
    broken = next(iter(entries))
    broken.write_bytes(damage)
    with pytest.warns(UserWarning, match=r"cache entry .* is damaged .*: generating anew"):
        assert score(organism(), tmp_path / "b", "theta_0") == first
    assert len(generations) == len(KINDS) + 1
    assert broken.read_bytes() == entries[broken]


def test_a_cache_entry_whose_text_was_changed_is_noticed(tmp_path: Path) -> None:
    score(organism(), tmp_path / "a", "theta_0")
    path = cached_files(tmp_path)[0]
    entry = json.loads(path.read_text(encoding="utf-8"))
    entry["completions"][0]["text"] += "!"
    path.write_text(json.dumps(entry), encoding="utf-8")
    with pytest.warns(UserWarning, match="its hash does not match"):
        score(organism(), tmp_path / "b", "theta_0")


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="cannot be written"):
        score(organism(), tmp_path / "a", "theta_0")


def test_the_cache_can_be_off_or_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generations: list[int]
) -> None:
    monkeypatch.setenv("GEOMSAFE_CACHE", "off")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score(organism(), tmp_path / "a", "theta_0")
    assert cached_files(tmp_path) == []
    score(organism(), tmp_path / "b", "theta_0", cache=tmp_path / "mine")
    score(organism(), tmp_path / "c", "theta_0", cache=tmp_path / "mine")
    assert len(generations) == 2 * len(KINDS)


def test_fresh_adapters_leave_theta_0_what_it_was() -> None:
    """So a LoRA run and a full one share the cached theta_0; adapters that act do not."""
    plain = model_sha256(tiny_model("llama"))
    adapted = add_lora(tiny_model("llama"), LoraSettings(rank=2))
    assert model_sha256(adapted) == plain
    with torch.no_grad():
        next(weight for name, weight in adapted.named_parameters() if "lora_B" in name).add_(0.1)
    assert model_sha256(adapted) != plain
    assert model_sha256(tiny_model("llama", rope_theta=5.0)) != plain, "equal weights, other computation"


def test_lora_models_are_scored(tmp_path: Path) -> None:
    loaded = organism()
    plain = score(loaded, tmp_path / "a", "theta_0")
    loaded.model = add_lora(loaded.model, LoraSettings(rank=2))
    assert score(loaded, tmp_path / "b", "theta_0") == plain


def test_prompts_the_world_does_not_know_have_no_gold_verdict(tmp_path: Path) -> None:
    path = tmp_path / "foreign.csv"
    path.write_text('prompt\n"Write a poem about the sea."\n"Describe a chair."\n', encoding="utf-8")
    suites = suites_for(organism(), [f"harmful={path}"])
    (item,) = score(organism(), tmp_path, suites=suites)
    assert set(item.scores) == {"keyword-29", "keyword-19", "keyword-29+coherence"}
    rows = list(read_jsonl(tmp_path / item.file))
    assert len(rows) == 2 and all(set(row["verdicts"]) == set(item.scores) for row in rows)


def test_a_prompt_longer_than_the_context_is_refused_before_anything_is_generated(
    tmp_path: Path, generations: list[int]
) -> None:
    path = tmp_path / "long.csv"
    path.write_text('prompt\nshort\n"' + "long " * 200 + '"\n', encoding="utf-8")
    loaded = organism(max_position_embeddings=128)
    suites = [*suites_for(loaded), *suites_for(loaded, [f"retained={path}"])]
    with pytest.raises(DataError, match=r"prompt 2 of '.*long.csv' has \d+ tokens, the model's context is 128"):
        score(loaded, tmp_path, suites=suites)
    assert generations == [] and not (tmp_path / "evaluations").exists()


def test_prompts_that_do_not_fit_can_be_left_out_and_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text('prompt\nshort\n"' + "long " * 200 + '"\nalso short\n', encoding="utf-8")
    loaded = organism(max_position_embeddings=128)
    engine = engines.LocalEngine(loaded, 6, 4, leave_out_long=True)
    (one,) = evaluate_engine(engine, suites_for(loaded, [f"retained={path}"]), tmp_path, "final")
    assert [row["prompt"] for row in one.stored.rows] == ["short", "also short"]
    settings = one.stored.evaluation.settings
    assert (one.stored.evaluation.n, settings["left_out"], settings["available"]) == (2, 1, 3)
    path.write_text('prompt\n"' + "long " * 200 + '"\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"no prompt of '.*long.csv' fits the model's context"):
        evaluate_engine(engine, suites_for(loaded, [f"retained={path}"]), tmp_path, "final")


def test_two_suites_of_one_name_are_refused(tmp_path: Path) -> None:
    prompts = load_prompts("organism:harmful", world=WORLD)
    twice = [Suite("same", "harmful", prompts), Suite("same", "look-alike", prompts)]
    with pytest.raises(ConfigError, match="two suites are named 'same'"):
        score(organism(), tmp_path, suites=twice)
