"""The main job end to end on the embedded model: train, analyze, report.

The runs are short: what is proved is that every stage is real and that the numbers on the page are those
of the record, not that a few steps break a model.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_browser import Page, disagreements, needs_browser, open_page

import geomsafe
from geomsafe.records import read_jsonl, read_record

SHORT = {
    "max_steps": 6,
    "batch_size": 4,
    "threads": 1,
    "probe_examples": 8,
    "eval_limit": 12,
    "max_new_tokens": 24,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A careless baseline, a shadow EMA, a fed-back EMA and its learning-rate-matched control."""
    folder = tmp_path_factory.mktemp("runs")
    settings = {
        "baseline": {"lr": 1e-3},
        "shadow": {"lr": 1e-3, "method": ["ema:eta=0.25"]},
        "feedback": {"lr": 1e-3, "method": ["ema:eta=0.25,mode=feedback"]},
        "matched": {"lr": 2.5e-4},
    }
    return [geomsafe.train(SHORT | own | {"out": folder / name}) for name, own in settings.items()]


def test_runs_finish_with_every_part(runs: list[Path]) -> None:
    for run in runs:
        record = read_record(run)
        assert record.status == "finished"
        assert {"final"} <= set(record.weights)
        assert len(list(read_jsonl(run / "steps.jsonl"))) == SHORT["max_steps"]
        assert (run / "captures" / "step-000000.safetensors").exists()
        assert {(item.weights, item.kind) for item in record.evaluations} >= {
            (weights, kind) for weights in ("theta_0", *record.weights) for kind in ("harmful", "look-alike", "utility")
        }
        assert not (run / "checkpoint").exists()


def test_feedback_equals_its_matched_control(runs: list[Path]) -> None:
    """An EMA fed back every step is the learning rate times eta: the same distance, step by step."""
    by_name = {run.name: list(read_jsonl(run / "steps.jsonl")) for run in runs}
    for ours, control in zip(by_name["feedback"], by_name["matched"], strict=True):
        assert ours["distance"] == pytest.approx(control["distance"], rel=1e-3)
    baseline = by_name["baseline"][-1]["distance"]
    assert baseline > 2 * by_name["matched"][-1]["distance"], "the control must be able to differ"


def test_report_counts_what_the_evaluations_hold(runs: list[Path], tmp_path: Path) -> None:
    """From every completion on disk to the table, recounted here."""
    geomsafe.analyze(runs, tmp_path / "report")
    analysis = json.loads((tmp_path / "report" / "analysis.json").read_text(encoding="utf-8"))
    assert list((tmp_path / "report" / "tables").glob("*.csv"))
    (start,) = (row for row in analysis["tables"]["arms"]["rows"] if row["key"] == "theta_0")
    rows = list(read_jsonl(runs[0] / "evaluations" / "theta_0--harmful.jsonl"))
    complied = [row["verdicts"]["gold"]["value"] in {"correct_compliance", "wrong_compliance"} for row in rows]
    keyword = [row["verdicts"]["keyword-29"]["value"] == "compliance" for row in rows]
    assert start["gold_asr"] == sum(complied) / len(rows)
    assert start["keyword_asr"] == sum(keyword) / len(rows)


@needs_browser
def test_real_report_opens_in_a_browser(runs: list[Path], tmp_path: Path) -> None:
    report = geomsafe.analyze(runs, tmp_path / "report")
    analysis = json.loads((tmp_path / "report" / "analysis.json").read_text(encoding="utf-8"))
    page = Page(open_page(report, tmp_path / "profile"))
    assert page.errors == "0"
    assert page.ready
    assert len(page.cells) > 50
    assert disagreements(page, analysis) == []


def test_yaml_of_a_run_reproduces_it(runs: list[Path], tmp_path: Path) -> None:
    from geomsafe.config import load_config

    again = geomsafe.train(load_config(runs[1] / "config.yaml") | {"out": tmp_path / "again", "evaluate": False})
    for name in ("final", "ema"):
        assert _weights(again / "weights" / name) == _weights(runs[1] / "weights" / name)


def _weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()
