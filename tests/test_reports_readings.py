"""Tables, light and page of what was read without generating, from files made by formula."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_runs import Spec, write_run, write_study

from geomsafe.records import read_jsonl, read_record, write_jsonl
from geomsafe.reports import analyze
from geomsafe.reports.collect import collect

SITE = {
    "norm": 2.0, "auroc": 0.97, "random_low": 0.1, "random_high": 0.9, "null_norm": 0.5, "null_auroc": 0.45,
    "start_auroc": 0.9, "cosine": 0.8, "null_cosine": 0.7, "harmful": 1.5, "harmless": -0.5, "token": "<|end|>",
    "n_harmful": 20, "n_harmless": 20, "held_out_harmful": 20, "held_out_harmless": 21,
}  # fmt: skip


def add_readings(run: Path, signal: float) -> None:
    """Write what `geomsafe train` writes: a margin that knows the verdict up to noise of size 1 / signal."""
    names = ["theta_0", *read_record(run).weights]
    proxies, shallow, directions = [], [], []
    for place, weights in enumerate(names):
        judged = list(read_jsonl(run / "evaluations" / f"{weights}--harmful.jsonl"))
        # Equal answers are equal weights, whatever the run.
        hits = [row["verdicts"]["gold"]["value"] == "correct_compliance" for row in judged]
        luck = np.random.default_rng([sum(hits), len(weights), 0 if weights == "theta_0" else len(run.name)])
        for row, hit in zip(judged, hits, strict=True):
            margin = 8 - 10 * sum(hits) / len(hits) - signal * hit + float(luck.normal())
            proxies.append({
                "weights": weights, "suite": "harmful", "id": row["id"], "cluster": row["cluster"],
                "refusal_margin": margin, "refusal_log_odds": margin / 2, "refusal_nll": None if hit else 0.1,
            })  # fmt: skip
        directions += [
            SITE | {"weights": weights, "layer": layer, "position": position, "norm": 2.0 + place}
            for layer in (0, 1)
            for position in (-2, -1)
        ]
    for weights, size in (("theta_base", 4.0), *((name, 0.5 * place) for place, name in enumerate(names))):
        shallow += [
            {"weights": weights, "id": f"p{i}", "cluster": f"c{i // 2}", "kl": [size * 0.5**t for t in range(6 + i)]}
            for i in range(8)
        ]
    for kind, rows in (("proxies", proxies), ("shallow", shallow), ("directions", directions)):
        write_jsonl(run / "probes" / f"{kind}.jsonl", rows)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("readings")
    runs = write_study(folder / "runs", seeds=(0, 1), prompts=60)
    for run in runs:
        add_readings(run, signal=6.0)
    page = analyze(runs, folder / "report").read_text(encoding="utf-8")
    return json.loads((folder / "report" / "analysis.json").read_text(encoding="utf-8")), page


def _light(analysis: dict[str, Any]) -> dict[str, str]:
    return next(light for light in analysis["trust"] if light["key"] == "proxy")


def test_the_light_is_green_where_the_margin_is_valid(study: tuple[dict[str, Any], str]) -> None:
    analysis, page = study
    rows = {row["proxy"]: row for row in analysis["tables"]["proxies"]["rows"]}
    assert rows["refusal_margin"]["validity"] == "valid" and rows["refusal_margin"]["auroc"] > 0.9
    light = _light(analysis)
    assert (light["state"], light["section"]) == ("green", "proxies") and "margin valid" in light["detail"]
    # The nll exists where theta_0 refuses: those answers here never comply, so it ranks nothing.
    assert rows["refusal_nll"]["validity"] != "valid" and "nll" in light["detail"]
    assert "Do margins foretell attack success?" in page and "Does the refusal direction stay?" in page


def test_each_set_of_weights_counts_once(study: tuple[dict[str, Any], str]) -> None:
    row = next(row for row in study[0]["tables"]["proxies"]["rows"] if row["proxy"] == "refusal_margin")
    points = [row for row in study[0]["tables"]["points"]["rows"] if row["weights"] != "theta_base"]
    assert 6 <= row["checkpoints"] <= len(points) and row["n"] == 60 * row["checkpoints"]


def test_an_invalid_margin_is_amber_and_a_single_run_grey(tmp_path: Path) -> None:
    runs = write_study(tmp_path / "runs", seeds=(0,), prompts=60)
    for run in runs:
        add_readings(run, signal=0.0)
    light = _light(collect(runs, tmp_path / "report"))
    assert light["state"] == "amber" and "AUROC" in light["detail"]
    one = write_run(tmp_path, Spec("one", prompts=60))
    add_readings(one, signal=9.0)
    light = _light(collect([one], tmp_path / "report"))
    assert light["state"] == "grey" and "6 are needed" in light["detail"]


def test_curves_pool_seeds_and_show_how_many_prompts_reach(study: tuple[dict[str, Any], str]) -> None:
    analysis, _ = study
    tables = analysis["tables"]
    base = [row for row in tables["shallow"]["rows"] if row["key"] == "theta_base"]
    assert [row["n"] for row in base] == [8] * 6 + [7, 6, 5, 4, 3, 2, 1], "theta_base once, not once a run"
    assert [row["kl"] for row in base] == pytest.approx([4 * 0.5**t for t in range(13)])
    arm = next(row for row in tables["shallow"]["rows"] if row["weights"] == "final")
    assert (arm["n"], arm["clusters"], arm["position"]) == (16, 4, 1)
    share = next(row for row in tables["shallow_shares"]["rows"] if row["key"] == "theta_base")
    wanted = [sum(0.5**t for t in range(6 + i)) for i in range(8)]
    assert share["first_share"] == pytest.approx(8 * sum(0.5**t for t in range(5)) / sum(wanted))
    # The last position has one prompt, and so no interval.
    assert base[-1]["kl_low"] is None and base[0]["kl_low"] is not None


def test_directions_are_means_over_seeds(study: tuple[dict[str, Any], str]) -> None:
    rows = study[0]["tables"]["directions"]["rows"]
    start = [row for row in rows if row["key"] == "theta_0"]
    assert len(start) == 4 and {row["direction_norm"] for row in start} == {2.0} and start[0]["held_out"] == 41
    assert all(row["seeds"] == 2 for row in rows if row["weights"] == "final")


def test_runs_of_before_say_not_run(tmp_path: Path) -> None:
    run = write_run(tmp_path, Spec("old", prompts=12))
    page = analyze([run], tmp_path / "report").read_text(encoding="utf-8")
    assert "not run: no scored harmful prompts with compliant answers" in page
    assert "not run: no margins on the prompts whose answers were judged" in page
    assert "not run: no harmful and harmless prompts of 8 clusters each were read" in page
