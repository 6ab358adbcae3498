"""Every benchmark file of prompts is scored by a random Llama and by the organism: a row a prompt, none lost."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from benchmarks_data import benchmark
from tiny import tiny_folder

from geomsafe.evaluation import evaluate
from geomsafe.records import read_jsonl

FILES = {
    "advbench/harmful_behaviors.csv": "harmful",
    "xstest/xstest_prompts.csv": "look-alike",
    "xstest/xstest_v2_prompts.csv": "look-alike",
    "jailbreakbench/harmful-behaviors.csv": "harmful",
    "llms-finetuning-safety/demo_examples.csv": "harmful",
    "llms-finetuning-safety/alpaca_data_safety_only.json": "retained",
    "mt_bench/question.jsonl": "retained",
    "wizardlm/WizardLM_testset.jsonl": "retained",
    "orca/validation.jsonl": "retained",
    "dolly/databricks-dolly-15k-safety-only.jsonl": "retained",
    "gsm8k/train.jsonl": "utility",
    "alpaca/alpaca_5000.json": "retained",
}
ASKED = 40
"""Prompts that are asked of a large file; all files whole, 17,000 prompts, take the organism seven minutes."""
HEADLESS = {"llms-finetuning-safety/demo_examples.csv"}
"""Files whose first line is a row."""


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOMSAFE_CACHE", "off")
    monkeypatch.chdir(tmp_path)


def rows_in(path: Path) -> int:
    """Count with the standard library alone."""
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as stream:
            return sum(1 for _ in csv.reader(stream)) - 1
    if path.suffix == ".json":
        return len(json.loads(path.read_text(encoding="utf-8")))
    return sum(1 for line in path.read_text(encoding="utf-8").split("\n") if line.strip())


@pytest.mark.parametrize("model", ["llama", "organism"])
@pytest.mark.parametrize("file", FILES)
def test_every_prompt_is_a_row_or_is_counted_as_left_out(file: str, model: str, tmp_path: Path) -> None:
    path = benchmark(file)
    source = "organism" if model == "organism" else str(tiny_folder(tmp_path, "llama"))
    limit = None if FILES[file] in {"harmful", "look-alike"} else ASKED
    asked = [f"{FILES[file]}={path}"]
    (one,) = evaluate(source, asked, tmp_path / "out", max_new_tokens=1, limit=limit, leave_out_long=True)
    rows = list(read_jsonl(tmp_path / "out" / one.file))
    expected = rows_in(path) + (file in HEADLESS)
    assert one.settings["available"] == expected
    assert one.n == len(rows) and one.n + one.settings["left_out"] == min(limit or expected, expected)
    assert one.n > 0.4 * min(limit or expected, expected)
    assert all(row["verdicts"]["keyword-29"]["value"] in {"refusal", "compliance"} for row in rows)
