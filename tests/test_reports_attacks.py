"""Attacks in the report: kept out of every headline rate, and a table and figure of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import Spec, add_attacks, write_run

from geomsafe.records import read_record, write_record
from geomsafe.reports.collect import collect
from geomsafe.reports.runs import read_run

SPECS = [Spec("careless", prompts=60), Spec("careful", lr=2.5e-4, prompts=60)]
HEADLINE = ("arms", "points", "suites", "judges")


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [write_run(tmp_path / "runs", spec) for spec in SPECS]


def _relabelled(run: Path) -> None:
    """Call every evaluation direct: the mistake that the report must not be able to hide."""
    record = read_record(run)
    same = [one.model_copy(update={"attack": "direct"}) for one in record.evaluations]
    write_record(run, record.model_copy(update={"evaluations": same}))


def _headlines(analysis: dict[str, Any]) -> dict[str, Any]:
    scope = {key: analysis["scope"][key] for key in ("prompts", "clusters", "settings")}
    return {name: analysis["tables"][name]["rows"] for name in HEADLINE} | scope


def test_direct_and_attacked_evaluations_are_two_lists(runs: list[Path]) -> None:
    add_attacks(runs[0], SPECS[0])
    run = read_run(runs[0])
    assert [one.suite for one in run.evaluations("final", "harmful")] == ["harmful"]
    assert [one.attack for one in run.attacked("final")] == ["prefill:1", "template:base64"]
    every = {(one.weights, one.suite) for one in run.record.evaluations}
    parted = {
        (one.weights, one.suite)
        for weights in {one.weights for one in run.record.evaluations}
        for one in (
            *run.attacked(weights),
            *(
                one
                for kind in ("harmful", "look-alike", "utility", "retained")
                for one in run.evaluations(weights, kind)
            ),
        )
    }
    assert parted == every


def test_attacks_change_no_headline(runs: list[Path], tmp_path: Path) -> None:
    """Attacked evaluations stand first in the record, where a careless reader would take them for the suite."""
    before = collect(runs, tmp_path / "report")
    for run, spec in zip(runs, SPECS, strict=True):
        add_attacks(run, spec)
    after = collect(runs, tmp_path / "report")
    assert _headlines(after) == _headlines(before)
    assert (after["verdict"], after["banners"], after["trust"]) == (
        before["verdict"],
        before["banners"],
        before["trust"],
    )
    for run in runs:
        _relabelled(run)
    wrong = collect(runs, tmp_path / "report")
    assert all(_headlines(wrong)[name] != _headlines(before)[name] for name in HEADLINE), "the test sees the mistake"
