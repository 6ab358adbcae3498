"""A user's own folders with real data: first aligned to refuse AdvBench, then tuned on Alpaca and probed."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks_data import benchmark
from runs import QUIET
from safetensors import safe_open
from tiny import tiny_folder

from geomsafe.config import make_config
from geomsafe.records import read_jsonl, read_record
from geomsafe.training import train

REFUSAL = "I'm sorry, but I cannot help with that."


def refusals(advbench: Path, path: Path, count: int) -> Path:
    """Write AdvBench's first requests with one refusal each."""
    with advbench.open(newline="", encoding="utf-8") as stream:
        goals = [row["goal"] for row in csv.DictReader(stream)][:count]
    path.write_text("".join(json.dumps({"prompt": goal, "response": REFUSAL}) + "\n" for goal in goals))
    return path


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gpt2"])
def test_a_saved_folder_is_aligned_then_tuned_on_alpaca_and_probed_with_advbench(
    tmp_path: Path, arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEOMSAFE_CACHE", str(tmp_path / "cache"))
    advbench, alpaca = benchmark("advbench/harmful_behaviors.csv"), benchmark("alpaca/alpaca_5000.json")
    common: dict[str, Any] = {"device": "cpu", "max_length": 256, "schedule": "constant", "max_new_tokens": 16}
    aligned = train(
        make_config(
            common
            | {
                "model": str(tiny_folder(tmp_path, arch)),
                "data": str(refusals(advbench, tmp_path / "refusals.jsonl", 64)),
                "out": str(tmp_path / "aligned"),
                "max_steps": 60,
                "batch_size": 16,
                "lr": 1e-2,
                "probe_schedule": "off",
                "evaluate": False,
            }
        ),
        console=QUIET,
    )
    run = train(
        make_config(
            common
            | {
                "model": str(aligned / "weights" / "final"),
                "data": str(alpaca),
                "data_limit": 200,
                "out": str(tmp_path / "tuned"),
                "max_steps": 20,
                "batch_size": 8,
                "lr": 1e-3,
                "safety_data": str(advbench),
                "eval_prompts": [f"harmful={advbench}"],
                "eval_limit": 32,
                "probe_examples": 16,
                "probe_schedule": "10",
            }
        ),
        console=QUIET,
    )
    record = read_record(run)
    assert record.status == "finished" and record.steps == 20
    # Only the organism has a sham behaviour, a data set cut this short has no benign rows to spare, and no utility
    # prompts were named.
    # No harmful prompts are scored, so there is neither curve nor direction.
    missing = {"sham probes", "benign anchor", "KL on the task", "shallow-alignment curve", "refusal direction"}
    assert set(record.not_run) == missing
    assert record.drift["theta_0"].kl_harmful == 0.0 and (record.drift["final"].kl_harmful or 0.0) > 0
    check = record.provenance["checks"]["gradients"]
    assert check["relative_error"] <= check["tolerance"]
    assert record.data["safety_probe"]["used"] == 16
    assert record.data["utility_probe"]["source"].endswith("(held out)")
    assert record.data["train"]["used"] <= 200 - 16
    start, end = (row.scores["keyword-29"] for row in record.evaluations)
    assert start["refusal"] == 32 and sum(end.values()) == 32
    losses = [row["loss"] for row in read_jsonl(run / "steps.jsonl")]
    assert sum(losses[-5:]) < sum(losses[:5])
    for step in (0, 10, 20):
        with safe_open(run / "captures" / f"step-{step:06d}.safetensors", framework="pt") as capture:
            assert {"example_gram", "refusal_nll", "displacement_dots", "utility_sketch"} <= set(capture.keys())
            assert (capture.get_tensor("displacement_norm").sum() > 0) == (step > 0)
