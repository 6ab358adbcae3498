"""`geomsafe geometry` as a user runs it: on a model folder with files, and on the benchmarks' own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks_data import benchmark
from runs import QUIET, tiny_run, write_conversations, write_prompts
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import tiny_folder
from typer.testing import CliRunner

from geomsafe.cli.main import app
from geomsafe.errors import ConfigError, DataError, RecordError
from geomsafe.records import read_record
from geomsafe.training import train

REFUSAL = "I am sorry, but I cannot help with that request."
CAPTURE = Path("captures") / "step-000000.safetensors"


def folder_of(parent: Path) -> tuple[Path, list[str]]:
    """Return a model folder with files of prompts and conversations, and the options that name them."""
    model = tiny_folder(parent)
    prompts = write_prompts(parent / "harmful.jsonl", 12)
    rows = write_conversations(parent / "benign.jsonl", 60)
    options = ["--safety", str(prompts), "--utility", str(rows), "--examples", "8", "--device", "cpu"]
    return model, [*options, "--max-length", "64", "--seed", "3"]


def geometry(*arguments: Any) -> str:
    """Run the command and return what it prints."""
    done = CliRunner().invoke(app, ["geometry", *map(str, arguments)])
    if done.exception is not None:
        raise done.exception
    return done.output


def metadata(run: Path) -> dict[str, Any]:
    with safe_open(run / CAPTURE, framework="pt") as stream:
        return {key: json.loads(value) for key, value in stream.metadata().items() if value[:1] in "[{"}


def test_a_stated_refusal_is_measured_on_a_model_that_refuses_nothing(tmp_path: Path) -> None:
    model, options = folder_of(tmp_path)
    out = tmp_path / "geometry"
    said = geometry(model, *options, "--out", out, "--refusal-text", REFUSAL, "--curvature")
    assert "cosine of safety and utility gradient, whole model" in said
    for name in ("safety", "utility", "benign", "untrained", "random-tokens", "benign-length", "loss-matched"):
        assert any(line.startswith(name) for line in said.splitlines()), name
    assert "not run: sham probes" in said
    facts = metadata(out)
    assert facts["sets"] == ["safety", "utility", "benign"] and set(facts["set_examples"].values()) == {8}
    record = read_record(out)
    assert record.status == "finished" and record.steps == 0 and "training" in record.not_run
    # A unit step down the safety loss has slope -||g||, g the token-mean gradient.
    tensors = load_file(out / CAPTURE)
    safety, tokens = tensors["example_gram"].sum(0)[:8, :8], tensors["example_tokens"][:8].sum()
    slope = record.data["curvature"]["along_safety"]["slope"]
    assert slope == pytest.approx(-math.sqrt(float(safety.sum())) / int(tokens), rel=1e-4)

    done = CliRunner().invoke(app, ["analyze", str(out), "--out", str(tmp_path / "report")])
    assert done.exit_code == 0 and (tmp_path / "report" / "report.html").is_file()


def test_it_is_the_first_capture_of_a_run(tmp_path: Path) -> None:
    model, options = folder_of(tmp_path)
    out = tmp_path / "geometry"
    said = geometry(model, *options, "--out", out)
    assert "not run: safety probes: theta_0 refuses 0 of 12 harmful prompts asked" in said
    config = tiny_run(
        tmp_path,
        data=str(tmp_path / "benign.jsonl"),
        safety_data=str(tmp_path / "harmful.jsonl"),
        utility_data=str(tmp_path / "benign.jsonl"),
        probe_schedule="2",
        probe_examples=8,
        max_steps=2,
        seed=3,
    )
    trained = load_file(train(config, console=QUIET) / CAPTURE)
    once = load_file(out / CAPTURE)
    assert once.keys() == trained.keys() and "utility_singular_values/lm_head.weight" in once
    assert all(torch.equal(once[name], trained[name]) for name in once)


def test_nulls_can_be_left_out(tmp_path: Path) -> None:
    model, options = folder_of(tmp_path)
    out = tmp_path / "geometry"
    geometry(model, *options, "--out", out, "--refusal-text", REFUSAL, "--no-nulls")
    assert metadata(out)["sets"] == ["safety", "utility"] and metadata(out)["nulls"] == []
    assert not (out / "probes" / "sets.json").exists()


def test_slips_are_one_line_and_leave_nothing_behind(tmp_path: Path) -> None:
    model, options = folder_of(tmp_path)
    with pytest.raises(ConfigError, match="name some with --safety"):
        geometry(model, "--out", tmp_path / "a")
    with pytest.raises(DataError, match="nothing to measure") as error:
        geometry(model, "--safety", tmp_path / "harmful.jsonl", "--examples", "8", "--out", tmp_path / "b")
    assert "refuses 0 of 12" in str(error.value) and "name some with --utility" in str(error.value)
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "notes.txt").write_text("mine")
    with pytest.raises(RecordError, match="choose another folder with --out"):
        geometry(model, *options, "--out", tmp_path / "c")
    assert (tmp_path / "c" / "notes.txt").read_text() == "mine"


def test_benchmark_files_are_read_as_they_are_published(tmp_path: Path) -> None:
    advbench, alpaca = benchmark("advbench/harmful_behaviors.csv"), benchmark("alpaca/alpaca_5000.json")
    model, out = tiny_folder(tmp_path), tmp_path / "geometry"
    said = geometry(
        model, "--safety", advbench, "--utility", alpaca, "--examples", 8, "--refusal-text", REFUSAL,
        "--max-length", 96, "--device", "cpu", "--out", out,
    )  # fmt: skip
    assert "safety" in said and metadata(out)["set_examples"]["benign"] == 8
    assert metadata(out)["match"]["benign-length"]["equal_answers"] > 0
