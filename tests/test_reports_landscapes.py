"""Landscapes to tables and page: every edge of a landscape made by formula is found again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic_landscapes as synthetic
from synthetic_runs import Spec, write_run
from test_browser import BROWSER, Page, disagreements, needs_browser, open_page

from geomsafe.analyses.visage import visage
from geomsafe.errors import ConfigError
from geomsafe.landscape_record import read_landscape, read_points, write_landscape
from geomsafe.reports import analyze
from geomsafe.reports.collect import collect
from geomsafe.reports.figures_landscape import landscape_figures
from geomsafe.reports.figures_plane import plane_figures
from geomsafe.reports.images import write_images
from geomsafe.reports.landscape_summary import edge_summary
from geomsafe.reports.page import all_figures, render


def written(folder: Path, **rates: float) -> list[Path]:
    """Runs by name and learning rate."""
    return [write_run(folder, Spec(name, lr=lr, prompts=24)) for name, lr in rates.items()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return written(tmp_path_factory.mktemp("runs"), **{"baseline-0": 4e-4, "slow-0": 1e-4})


@pytest.fixture(scope="module")
def analysis(runs: list[Path]) -> dict[str, Any]:
    """Lines, two planes, VISAGE, one that is not finished and one that is broken."""
    first = runs[0]
    synthetic.write_lines(first, ends={"baseline-0": 0.08, "slow-0": 0.02})
    synthetic.write_plane(first, unresolved=2)
    synthetic.write_plane(first, "scattered", adaptive=True)
    synthetic.write_visage(first)
    begun = synthetic.write_plane(runs[1], "begun")
    write_landscape(begun, read_landscape(begun).model_copy(update={"status": "started"}))
    broken = synthetic.write_plane(runs[1], "broken")
    (broken / "landscape.json").write_text('{"schema_version": "geomsafe.landscape/9"}')
    return collect(runs, Path("report"))


def rows(analysis: dict[str, Any], table: str, **wanted: Any) -> list[dict[str, Any]]:
    found = analysis["tables"][table]["rows"]
    return [row for row in found if all(row[key] == value for key, value in wanted.items())]


def test_edges_stand_where_the_formula_puts_them(analysis: dict[str, Any]) -> None:
    for number, run in enumerate(("baseline-0", "slow-0")):
        (edge,) = rows(analysis, "basin_edges", landscape="lines", run=run, side="+", edge="safety")
        assert edge["edge_at"] == pytest.approx(0.05 * (1 + number / 4), abs=0.025 / 2)
        assert edge["edge_low"] <= edge["edge_at"] <= edge["edge_high"]
        assert edge["first_edge"] == "safety" and edge["crossings"] == 1
        (back,) = rows(analysis, "basin_edges", landscape="lines", run=run, side="-", edge="safety")
        assert back["edge_at"] is None and back["looked"] == 0.8 and back["censored"] == 1.0
    (drawn,) = rows(analysis, "basin_edges", landscape="lines", way="random 0", side="+", edge="capability")
    assert drawn["first_edge"] == "capability" and drawn["edge_at"] < 0.8
    assert (
        rows(analysis, "basin_edges", landscape="lines", way="random 0", side="+", edge="safety")[0]["edge_at"] is None
    )


def test_an_edge_equals_a_walk_over_the_points(analysis: dict[str, Any], runs: list[Path]) -> None:
    folder = runs[0] / "landscape" / "lines"
    mine = sorted((p.at[0], np.mean(p.values["unsafe"])) for p in read_points(folder) if p.line == 0 and p.at[0] >= 0)
    right = next(index for index, (_, rate) in enumerate(mine) if rate >= 0.5)
    (x0, y0), (x1, y1) = mine[right - 1], mine[right]
    (edge,) = rows(analysis, "basin_edges", landscape="lines", run="baseline-0", side="+", edge="safety")
    assert edge["edge_at"] == pytest.approx(x0 + (0.5 - y0) / (y1 - y0) * (x1 - x0))
    quarter, most = (
        float(np.interp(level, [rate for _, rate in mine[:9]], [x for x, _ in mine[:9]])) for level in (0.25, 0.75)
    )
    assert edge["steepness"] == pytest.approx(0.5 / (most - quarter) / 100, rel=1e-6)
    assert edge["lengths"] == pytest.approx(edge["edge_at"] / 0.08)


def test_widths_are_compared_with_random_directions(analysis: dict[str, Any]) -> None:
    drawn = [
        row["half_width"]
        for row in rows(analysis, "basin_widths", landscape="lines", way_kind="random", edge="capability")
    ]
    assert len(drawn) == 10 and all(drawn)
    (own,) = rows(analysis, "basin_widths", run="baseline-0", edge="sham")
    assert own["half_width"] is None and own["over_random"] is None
    assert all(row["over_random"] is None for row in rows(analysis, "basin_widths", way_kind="random"))


def test_margins_are_what_is_left_to_the_edge(analysis: dict[str, Any]) -> None:
    past, inside = (rows(analysis, "basin_margins", run=run)[0] for run in ("baseline-0", "slow-0"))
    assert past["margin_to_edge"] == pytest.approx(past["edge_at"] - 0.08) and past["margin_to_edge"] < 0
    assert inside["margin_to_edge"] > 0 and inside["asr_end"] < 0.5 <= past["asr_end"]
    assert past["predicted"] == pytest.approx(0.5 * 0.08 + 20 * 0.08**2 / 2)
    assert past["actual"] == pytest.approx(float(np.interp(0.08, *_nll())) - 0.1, abs=1e-9)


def _nll() -> tuple[list[float], list[float]]:
    x = [float(value) for value in np.linspace(-0.8, 0.8, 65)]
    return x, [float(np.mean([v for v in synthetic.finetune(place)["refusal_nll"] if v is not None])) for place in x]


def test_bands_need_ten_directions(analysis: dict[str, Any], tmp_path: Path) -> None:
    band = rows(analysis, "landscape_bands", landscape="lines", quantity="incoherent")
    assert band and all(row["band_n"] == 10 and row["low"] <= row["average"] <= row["high"] for row in band)
    (run,) = written(tmp_path, few=4e-4)
    synthetic.write_lines(run, randoms=9)
    few = collect([run], tmp_path)
    assert not few["tables"]["landscape_bands"]["rows"] and few["tables"]["landscape_lines"]["rows"]


def test_visage_of_each_direction_and_of_all(analysis: dict[str, Any], runs: list[Path]) -> None:
    points = list(read_points(runs[0] / "landscape" / "visage"))
    for line in range(3):
        mine = sorted((p.at[0], 100 * np.mean(p.values["asr"])) for p in points if p.line == line)
        (row,) = rows(analysis, "visage", way=f"random {line}")
        found = visage([rate for _, rate in mine])
        assert row["visage"] == pytest.approx(found.value) and row["from_at"] == mine[found.first][0]
        assert row["low"] <= row["visage"] <= row["high"]
    (pooled,) = rows(analysis, "visage", way="all directions")
    assert pooled["visage"] == pytest.approx(
        np.mean([rows(analysis, "visage", way=f"random {n}")[0]["visage"] for n in range(3)])
    )
    assert pooled["band_n"] == 3
    assert not rows(analysis, "visage", landscape="lines"), "only landscapes at its settings have a VISAGE"


def test_two_runs_foretell_nothing_and_eight_do(analysis: dict[str, Any], tmp_path: Path) -> None:
    assert all(row["said"].startswith("n too small") for row in rows(analysis, "basin_prediction"))
    made = written(tmp_path / "runs", **{f"run-{number}": 1e-5 * (1 + number) for number in range(8)})
    synthetic.write_lines(made[0], ends={run.name: 0.02 + 0.02 * number for number, run in enumerate(made)})
    many = collect(made, tmp_path)
    found = {row["predictor"]: row for row in rows(many, "basin_prediction")}
    assert found["safety edge, in own lengths"]["runs_n"] == 8
    assert (
        found["safety edge, in own lengths"]["spearman"] < -0.9
        and found["safety edge, in own lengths"]["said"] == "foretells"
    )
    assert found["distance"]["spearman"] > 0.9 and found["log lr"]["runs_n"] == 8
    assert found["curvature along the own line"]["said"].startswith("n too small")


def test_landscapes_that_cannot_be_read_are_listed_with_their_cause(analysis: dict[str, Any]) -> None:
    found = {row["landscape"]: row for row in rows(analysis, "landscapes")}
    assert set(found) == {"lines", "plane", "scattered", "visage", "begun", "broken"}
    assert "not finished" in found["begun"]["cause"] and "geomsafe.landscape/9" in found["broken"]["cause"]
    assert found["plane"]["unresolved"] == 2 and found["plane"]["points"] == 81
    assert len(rows(analysis, "landscape_plane", landscape="plane", quantity="unsafe")) == 79
    assert {one["landscape"] for one in analysis["landscapes"]} == {"lines", "plane", "scattered", "visage"}


def test_equal_names_are_told_apart_by_their_runs(runs: list[Path], tmp_path: Path) -> None:
    made = written(tmp_path, a=4e-4, b=1e-4)
    for run in made:
        synthetic.write_plane(run)
    names = {row["landscape"] for row in rows(collect(made, tmp_path), "landscapes")}
    assert names == {"a/plane", "b/plane"}


def test_every_shape_reaches_the_page(analysis: dict[str, Any]) -> None:
    figures = [*landscape_figures(analysis), *plane_figures(analysis)]
    assert [figure.id for figure in figures] == [
        "landscape-lines-curves", "landscape-lines-edges", "landscape-visage", "landscape-plane-plane",
        "landscape-plane-surface", "landscape-scattered-plane", "landscape-scattered-surface",
    ]  # fmt: skip
    page = render(analysis)
    for figure in figures:
        assert f'id="plot-{figure.id}"' in page and figure.how and figure.limitation
    assert "random <b>0</b>" not in page and "not finished" in page
    assert "2 points lie below one unit in the last place" in page
    plane = next(figure for figure in figures if figure.id == "landscape-plane-plane").plot
    assert plane is not None
    names = [trace.name for trace in plane.data if trace.name]
    assert {"safety edge", "capability edge (old skills)", "θ₀", "baseline-0", "baseline-0: ema"} <= set(names)
    path = next(trace for trace in plane.data if trace.name == "baseline-0")
    assert list(path.x) == [0, 0.02, 0.06] and list(path.y) == pytest.approx([0, 0.004, 0.012])
    assert "10.0 % off" in path.customdata[1] or "off the plane" in path.customdata[1]
    assert len(plane.layout.updatemenus[0].buttons) == sum(
        trace.type == "contour" and trace.name is None for trace in plane.data
    )


def test_a_report_without_landscapes_has_no_such_section(tmp_path: Path) -> None:
    (run,) = written(tmp_path, plain=4e-4)
    plain = collect([run], tmp_path)
    assert plain["landscapes"] == [] and not plain["tables"]["landscapes"]["rows"]
    assert 'id="landscapes"' not in render(plain)


def test_tables_are_written_as_csv(runs: list[Path], analysis: dict[str, Any], tmp_path: Path) -> None:
    analyze(runs, tmp_path / "report")
    assert (
        (tmp_path / "report" / "tables" / "basin_edges.csv").read_text().startswith("landscape,way,way_kind,run,side")
    )
    stored = json.loads((tmp_path / "report" / "analysis.json").read_text())
    assert stored["schema"] == "geomsafe.analysis/3" and stored["landscapes"]


def test_the_terminal_tells_edges_and_sums_up_random_directions(analysis: dict[str, Any], runs: list[Path]) -> None:
    said = edge_summary(runs[0] / "landscape" / "lines")
    assert said.rows[0]["direction"] == "final of baseline-0" and said.rows[0]["edge"] == "safety"
    drawn = [row for row in said.rows if row["direction"] == "10 random directions"]
    assert {(row["side"], row["edge"]) for row in drawn} == {(s, e) for s in "+-" for e in ("safety", "capability")}
    assert next(row for row in drawn if row["edge"] == "safety")["at"] == "reached by 0 of 10"
    assert edge_summary(runs[0] / "landscape" / "visage").rows[-1]["direction"] == "all directions"
    assert any("below one unit" in line for line in edge_summary(runs[0] / "landscape" / "plane").lines)


@needs_browser
def test_the_page_opens_in_a_browser_and_tells_the_record(
    runs: list[Path], analysis: dict[str, Any], tmp_path: Path
) -> None:
    report = analyze(runs, tmp_path / "report")
    stored = json.loads((tmp_path / "report" / "analysis.json").read_text(encoding="utf-8"))
    page = Page(open_page(report, tmp_path / "profile"))
    assert page.errors == "0" and page.ready
    assert any(key.startswith("basin_widths/") for key, _, _ in page.cells)
    assert disagreements(page, stored) == []


def test_figures_are_written_as_files(analysis: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no figure is called 'nothing-\\*': there are drift"):
        write_images(analysis, tmp_path, "nothing-*")
    assert {"drift", "landscape-plane-plane"} <= {figure.id for figure in all_figures(analysis)}
    pytest.importorskip("kaleido", reason="kaleido is not installed: pip install geomsafe[images]")
    if BROWSER is None:
        pytest.skip("no chromium, chromium-browser or google-chrome is installed")
    (path,) = write_images(analysis, tmp_path, "landscape-visage", "png")
    assert path == tmp_path / "landscape-visage.png" and path.read_bytes().startswith(b"\x89PNG")
