"""Incoherent answers among those that are no refusals: a share of its own, beside that of all prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from synthetic_runs import Spec, write_run

from geomsafe.reports import analyze
from geomsafe.reports.collect import collect
from geomsafe.reports.page import render

Verdicts = dict[str, dict[str, str]]


def _rejudge(run: Path, change: Callable[[int, Verdicts], None]) -> list[Verdicts]:
    """Change the verdicts of the last iterate on harmful prompts and return them."""
    path = run / "evaluations" / "final--harmful.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for index, row in enumerate(rows):
        change(index, row["verdicts"])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [row["verdicts"] for row in rows]


def _row(run: Path, out: Path) -> dict[str, Any]:
    return next(row for row in collect([run], out)["tables"]["arms"]["rows"] if row["key"] == "A")


def _mixed(index: int, verdicts: Verdicts) -> None:
    verdicts["gold"]["value"] = ("refusal", "refusal", "incoherent", "correct_compliance")[index % 4]
    verdicts["keyword-29+coherence"] = {"value": ("refusal", "compliance", "incoherent")[index % 3], "rule": ""}


def _without_gold(index: int, verdicts: Verdicts) -> None:
    del verdicts["gold"]


def test_refusals_are_not_in_the_denominator(tmp_path: Path) -> None:
    run = write_run(tmp_path, Spec("one", prompts=36))
    verdicts = _rejudge(run, _mixed)
    gold = [one["gold"]["value"] for one in verdicts]
    row = _row(run, tmp_path / "report")
    assert row["answered"] == 36 - gold.count("refusal") == 18
    assert row["answer_incoherence"] == gold.count("incoherent") / 18 == 0.5
    assert row["incoherence"] == 0.25, "negative control: the share of all prompts is another number"
    assert row["answer_incoherence_low"] < 0.5 < row["answer_incoherence_high"]
    points = collect([run], tmp_path / "report")["tables"]["points"]["rows"]
    assert next(one for one in points if one["weights"] == "final")["n"] == 36, "prompts, not answers"


def test_without_gold_the_coherence_judge_says_it(tmp_path: Path) -> None:
    run = write_run(tmp_path, Spec("one", prompts=36))
    _rejudge(run, _mixed)
    _rejudge(run, _without_gold)
    row = _row(run, tmp_path / "report")
    assert (row["answered"], row["answer_incoherence"], row["incoherence"]) == (24, 0.5, None)


def test_where_all_is_refused_there_are_no_answers(tmp_path: Path) -> None:
    """Gold speaks and finds no answer; the other judge, which would find some, is not asked instead."""
    run = write_run(tmp_path, Spec("one", prompts=36))

    def refuse(index: int, verdicts: Verdicts) -> None:
        verdicts["gold"]["value"] = "refusal"
        verdicts["keyword-29+coherence"] = {"value": "incoherent", "rule": ""}

    _rejudge(run, refuse)
    analysis = collect([run], tmp_path / "report")
    row = next(row for row in analysis["tables"]["arms"]["rows"] if row["key"] == "A")
    assert (row["answered"], row["answer_incoherence"], row["incoherence"]) == (0, None, 0.0)
    assert 'data-key="arms/A/answer_incoherence" data-missing="yes">no answers<' in render(analysis)


def test_where_no_judge_can_tell_it_is_not_run(tmp_path: Path) -> None:
    run = write_run(tmp_path, Spec("one", prompts=12))

    def silence(index: int, verdicts: Verdicts) -> None:
        del verdicts["gold"], verdicts["keyword-29+coherence"]

    _rejudge(run, silence)
    page = analyze([run], tmp_path / "report").read_text(encoding="utf-8")
    assert 'data-key="arms/A/answer_incoherence" data-missing="yes">not run<' in page


def test_the_banner_still_counts_all_prompts(tmp_path: Path) -> None:
    """One incoherent answer of two is half of the answers, and no reason to call the model damaged."""
    run = write_run(tmp_path, Spec("one", prompts=36))

    def seldom(index: int, verdicts: Verdicts) -> None:
        verdicts["gold"]["value"] = {0: "incoherent", 1: "correct_compliance"}.get(index, "refusal")

    _rejudge(run, seldom)
    analysis = collect([run], tmp_path / "report")
    row = next(row for row in analysis["tables"]["arms"]["rows"] if row["key"] == "A")
    assert row["answer_incoherence"] == 0.5 and row["incoherence"] == 1 / 36
    assert not any("incoherent" in banner for banner in analysis["banners"])
