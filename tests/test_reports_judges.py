"""Judges pair by pair: counts as a slow loop finds them, gold first, the undecided on their own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import Spec, add_attacks, write_run

from geomsafe.reports.collect import collect
from geomsafe.reports.figures_judges import kappa_figure
from geomsafe.reports.page import render

Row = dict[str, Any]
# Far enough from theta_0 to comply with some prompts, not with all.
SPEC = Spec("one", lr=6e-4, prompts=60)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "runs", SPEC)


def _each(run: Path, change: Callable[[Row], None]) -> None:
    for path in (run / "evaluations").glob("*--harmful.jsonl"):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for row in rows:
            change(row)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _model_judge(row: Row) -> None:
    said = ("undecided", "compliance", "refusal", "compliance", "refusal")[row["index"] % 5]
    row["verdicts"] |= {
        "a judge of mine": {"value": said, "rule": "", "score": 0.5},
        "coherence": {"value": "coherent"},
    }


def _pairs(analysis: dict[str, Any]) -> dict[tuple[str, str, str], Row]:
    return {(row["key"], row["first"], row["second"]): row for row in analysis["tables"]["judges"]["rows"]}


def test_all_pairs_of_refusal_judges_and_no_others(run: Path, tmp_path: Path) -> None:
    _each(run, _model_judge)
    rows = _pairs(collect([run], tmp_path / "report"))
    judges = ["gold", "keyword-29", "keyword-19", "keyword-29+coherence", "a judge of mine"]
    wanted = {(a, b) for i, a in enumerate(judges) for b in judges[i + 1 :]}
    assert {(first, second) for key, first, second in rows if key == "all"} == wanted
    assert {key for key, _, _ in rows} == {"theta_0", "A", "all"}


def test_counts_are_those_of_a_loop_and_the_undecided_stand_alone(run: Path, tmp_path: Path) -> None:
    _each(run, _model_judge)
    row = _pairs(collect([run], tmp_path / "report"))["A", "gold", "a judge of mine"]
    lines = (run / "evaluations" / "final--harmful.jsonl").read_text(encoding="utf-8").splitlines()
    counted: Counter[str] = Counter()
    for answer in map(json.loads, lines):
        gold, model = (answer["verdicts"][judge]["value"] for judge in ("gold", "a judge of mine"))
        if model == "undecided":
            counted["undecided"] += 1
        else:
            counted[
                {(1, 1): "both", (1, 0): "only_first", (0, 1): "only_second", (0, 0): "neither"}[
                    "compliance" in gold, model == "compliance"
                ]
            ] += 1
    assert {name: row[name] for name in counted} == counted
    assert (row["n"], row["undecided"], row["undecided_first"], row["undecided_second"]) == (48, 12, 0, 12)
    assert row["agreement"] == (counted["both"] + counted["neither"]) / 48
    first = (counted["both"] + counted["only_first"]) / 48
    second = (counted["both"] + counted["only_second"]) / 48
    chance = first * second + (1 - first) * (1 - second)
    assert row["kappa"] == pytest.approx((row["agreement"] - chance) / (1 - chance), abs=1e-12)


def test_folding_the_undecided_in_would_be_seen(run: Path, tmp_path: Path) -> None:
    """Negative control: called refusals, they change every number of the pair."""
    _each(run, _model_judge)
    apart = _pairs(collect([run], tmp_path / "report"))["A", "gold", "a judge of mine"]

    def fold(row: Row) -> None:
        said = row["verdicts"]["a judge of mine"]
        said["value"] = said["value"].replace("undecided", "refusal")

    _each(run, fold)
    folded = _pairs(collect([run], tmp_path / "report"))["A", "gold", "a judge of mine"]
    assert folded["n"] == 60 and folded["kappa"] != apart["kappa"]


def test_without_gold_the_other_pairs_stay_and_the_light_is_grey(run: Path, tmp_path: Path) -> None:
    _each(run, lambda row: row["verdicts"].pop("gold"))
    analysis = collect([run], tmp_path / "report")
    assert ("all", "keyword-29", "keyword-19") in _pairs(analysis)
    light = next(one for one in analysis["trust"] if one["key"] == "judges")
    assert (light["state"], light["detail"]) == ("grey", "not run: no gold verdict")


def test_a_judge_that_never_decides_has_no_agreement(run: Path, tmp_path: Path) -> None:
    _each(run, lambda row: row["verdicts"].update({"mute": {"value": "undecided", "rule": ""}}))
    row = _pairs(collect([run], tmp_path / "report"))["A", "gold", "mute"]
    assert (row["n"], row["undecided"], row["kappa"], row["agreement"], row["both"]) == (0, 60, None, None, None)


def test_answers_under_attack_are_not_among_them(run: Path, tmp_path: Path) -> None:
    before = collect([run], tmp_path / "report")["tables"]["judges"]["rows"]
    add_attacks(run, SPEC)
    assert collect([run], tmp_path / "report")["tables"]["judges"]["rows"] == before


def test_the_heatmap_has_each_pair_once_and_needs_three_judges(run: Path, tmp_path: Path) -> None:
    analysis = collect([run], tmp_path / "report")
    plot = kappa_figure(analysis).plot
    assert plot is not None
    drawn = [value for line in plot.data[0].z for value in line if value is not None]
    rows = [row for row in analysis["tables"]["judges"]["rows"] if row["key"] == "all"]
    assert sorted(drawn) == sorted(row["kappa"] for row in rows) and len(drawn) == 6
    two = [row for row in rows if {row["first"], row["second"]} == {"gold", "keyword-29"}]
    analysis["tables"]["judges"]["rows"] = two
    assert kappa_figure(analysis).plot is None and 'id="kappas"' not in render(analysis)


def test_a_judge_model_is_named_and_no_longer_not_run(run: Path, tmp_path: Path) -> None:
    before = collect([run], tmp_path / "report")
    assert "judge model" in before["not_run"] and "A judge model was not run" in render(before)
    _each(run, _model_judge)
    after = collect([run], tmp_path / "report")
    assert "judge model" not in after["not_run"]
    assert "Other judges than keyword lists and gold: a judge of mine." in render(after)
