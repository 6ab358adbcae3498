"""Rates by category of prompts: recounted from the files, one figure a suite, nothing where there are no tags."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import HOSTILE, Spec, add_attacks, write_run

from geomsafe.analyses.categories import SMALL, UNCATEGORISED
from geomsafe.reports.collect import collect
from geomsafe.reports.figures_categories import category_figures
from geomsafe.reports.page import render


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [write_run(tmp_path / "runs", Spec(f"one-s{seed}", seed, prompts=120)) for seed in (0, 1)]


def _lines(run: Path, suite: str) -> list[dict[str, Any]]:
    path = run / "evaluations" / f"final--{suite}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _rows(analysis: dict[str, Any], suite: str) -> dict[str, dict[str, Any]]:
    rows = analysis["tables"]["categories"]["rows"]
    return {row["category"]: row for row in rows if (row["key"], row["suite"]) == ("A", suite)}


@pytest.mark.parametrize(
    ("suite", "tag", "measure", "hit"),
    [("harmful", "category", "gold_asr", "compliance"), ("look-alike", "type", "over_refusal", "refusal")],
)
def test_every_category_is_recounted_over_both_seeds(
    runs: list[Path], tmp_path: Path, suite: str, tag: str, measure: str, hit: str
) -> None:
    counted: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for run in runs:
        for row in _lines(run, suite):
            count = counted[row["tags"].get(tag, UNCATEGORISED)]
            count[0] += hit in row["verdicts"]["gold"]["value"]
            count[1] += 1
    analysis = collect(runs, tmp_path / "report")
    rows = _rows(analysis, suite)
    assert {name: [row["count"], row["n"]] for name, row in rows.items()} == counted
    assert {(row["measure"], row["tag"], row["judge"]) for row in rows.values()} == {(measure, tag, "gold")}
    assert all(row["low"] <= row["rate"] <= row["high"] and row["clusters"] < row["n"] for row in rows.values())
    whole = next(row for row in analysis["tables"]["arms"]["rows"] if row["key"] == "A")[measure]
    assert sum(row["count"] for row in rows.values()) / 240 == pytest.approx(whole, abs=1e-12)


def test_small_categories_are_flagged_and_nothing_in_a_name_acts(runs: list[Path], tmp_path: Path) -> None:
    analysis = collect(runs, tmp_path / "report")
    rows = _rows(analysis, "harmful")
    assert rows[UNCATEGORISED]["small"] and rows[UNCATEGORISED]["clusters"] < SMALL
    assert not rows["Malware"]["small"] and any(HOSTILE in name for name in rows)
    figures = {figure.id: figure for figure in category_figures(analysis)}
    assert list(figures) == ["categories-harmful", "categories-look-alike"]
    plot = figures["categories-harmful"].plot
    assert plot is not None
    labels = plot.layout.yaxis.ticktext
    assert [label.endswith(" †") for label in labels] == [False, False, False, True]
    assert all("<" not in label for label in labels)
    assert [len(bar.x) for bar in plot.data] == [4, 4] and plot.data[1].error_x.array is not None
    page = render(analysis)
    assert 'data-table="categories"' in page and "is a description and no finding" in page


def test_categories_are_those_of_prompts_put_directly(runs: list[Path], tmp_path: Path) -> None:
    before = collect(runs, tmp_path / "report")["tables"]["categories"]["rows"]
    for seed, run in enumerate(runs):
        add_attacks(run, Spec(f"one-s{seed}", seed, prompts=120))
    assert collect(runs, tmp_path / "report")["tables"]["categories"]["rows"] == before


def test_one_value_is_no_category(tmp_path: Path) -> None:
    run = write_run(tmp_path, Spec("one", prompts=12))
    for path in (run / "evaluations").iterdir():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        alike = [row | {"tags": {"category": "all", "kind": "all", "focus": row["id"]}} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in alike), encoding="utf-8")
    analysis = collect([run], tmp_path / "report")
    assert analysis["tables"]["categories"]["rows"] == [] and category_figures(analysis) == []
    assert 'id="categories-' not in render(analysis)
