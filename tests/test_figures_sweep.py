"""The figures of a sweep: what is drawn equals the tables, gaps are words, incoherence is hollow."""

from __future__ import annotations

import copy
from typing import Any

import plotly.graph_objects as go
import pytest
from sweep_tables import ARMS, CONDITIONS, PRIMARY, add_sweep
from synthetic_runs import Spec, write_run

from geomsafe.reports.collect import collect
from geomsafe.reports.figures import Figure
from geomsafe.reports.figures_sweep import FIRST_ARMS, first_arms, sweep_looks
from geomsafe.reports.figures_sweep_curves import curves_figure, mean_curve
from geomsafe.reports.figures_sweep_matched import matched_figure
from geomsafe.reports.figures_sweep_pareto import pareto_figure
from geomsafe.reports.figures_sweep_settings import effects_figure, grid_figure
from geomsafe.reports.figures_sweep_tuning import tuning_figure
from geomsafe.reports.figures_sweep_twin import sham_figure
from geomsafe.reports.page import first_screen, render
from geomsafe.reports.sweep_page import narrowed, sweep_figures


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("plain")
    return collect([write_run(folder, Spec("one", prompts=12, schema=2))], folder / "report")


@pytest.fixture
def analysis(plain: dict[str, Any]) -> dict[str, Any]:
    return add_sweep(copy.deepcopy(plain))


def _traces(figure: Figure, **wanted: Any) -> list[Any]:
    assert figure.plot is not None, figure.missing
    return [one for one in figure.plot.data if all(getattr(one, key) == value for key, value in wanted.items())]


def _panel(trace: Any) -> str:
    return str(trace.xaxis or "x")


def _rows(analysis: dict[str, Any], table: str, **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in analysis["tables"][table]["rows"] if all(row[key] == value for key, value in wanted.items())]


def test_marks_of_the_front_equal_the_table(analysis: dict[str, Any]) -> None:
    figure = pareto_figure(analysis)
    for condition, panel in zip(CONDITIONS, ("x", "x2"), strict=True):
        for row in _rows(analysis, "sweep", condition=condition):
            (mark,) = [one for one in _traces(figure, legendgroup=row["arm"]) if _panel(one) == panel]
            assert (mark.x[0], mark.y[0]) == pytest.approx((100 * row[PRIMARY], 100 * row["utility"]))
            assert mark.error_x.array[0] == pytest.approx(100 * (row[f"{PRIMARY}_high"] - row[PRIMARY]))
        (front,) = [one for one in _traces(figure, name="front") if _panel(one) == panel]
        on_it = sorted(_rows(analysis, "sweep", condition=condition, pareto=True), key=lambda row: row[PRIMARY])
        assert list(front.x) == pytest.approx([100 * row[PRIMARY] for row in on_it])
        assert front.line.shape == "hv"
    start = next(row for row in analysis["tables"]["arms"]["rows"] if row["key"] == "theta_0")
    anchors = _traces(figure, name="θ₀, the aligned start")
    assert [(one.x[0], one.y[0]) for one in anchors] == [(100 * start[PRIMARY], 100 * start["utility"])] * 2


def test_incoherent_arms_are_hollow_and_coherent_ones_are_not(analysis: dict[str, Any]) -> None:
    colours = {
        one.legendgroup: one.marker.color[0] for one in _traces(pareto_figure(analysis)) if one.customdata is not None
    }
    assert colours.pop("scrambled") == "white"
    assert "white" not in colours.values()
    for row in _rows(analysis, "sweep", arm="scrambled"):
        row["incoherence"] = 0.05
    assert _traces(pareto_figure(analysis), legendgroup="scrambled")[0].marker.color[0] != "white"


def test_curves_are_the_checkpoints_on_every_axis(analysis: dict[str, Any]) -> None:
    figure = curves_figure(analysis)
    assert figure.plot is not None
    buttons = {one.label: one.args[0]["x"] for one in figure.plot.layout.updatemenus[0].buttons}
    wanted = {"L2 distance": ("relative_distance", 100), "KL on the task": ("kl_task", 1),
              "KL on harmful prompts": ("kl_harmful", 1), "utility loss": ("utility_loss", 1)}  # fmt: skip
    assert buttons.keys() == wanted.keys()
    rows = _rows(analysis, "curves", condition=CONDITIONS[0], arm="spf")
    spf = [index for index, one in enumerate(figure.plot.data) if one.legendgroup == "spf" and _panel(one) == "x"]
    seeds, mean, link = spf
    for label, (key, scale) in wanted.items():
        drawn = [value for value in buttons[label][seeds] if value is not None]
        assert drawn == pytest.approx([scale * row[key] for row in rows])
    assert [v for v in figure.plot.data[seeds].y if v is not None] == pytest.approx([
        100 * row[PRIMARY] for row in rows
    ])
    # Shown at first: KL on the task.
    assert list(figure.plot.data[mean].x) == pytest.approx(list(buttons["KL on the task"][mean]))
    ends = [sum(row[PRIMARY] for row in rows if row["weights"] == "final") / 3 * 100]
    control = _rows(analysis, "curves", condition=CONDITIONS[0], arm="baseline", weights="final")
    ends.append(sum(row[PRIMARY] for row in control) / 3 * 100)
    assert list(figure.plot.data[link].y) == pytest.approx(ends)
    assert figure.plot.data[mean].y[-1] == pytest.approx(ends[0])
    assert list(figure.plot.data[mean].marker.size)[-2:] == [4, 11]


def test_arms_of_other_weights_are_points_without_a_curve(analysis: dict[str, Any]) -> None:
    means = [one for one in _traces(curves_figure(analysis), legendgroup="ema 0.1") if one.mode == "lines+markers"]
    assert [len(one.y) for one in means] == [1] * 6
    final = [one for one in _traces(curves_figure(analysis), legendgroup="lr/2") if one.mode == "lines+markers"]
    assert [len(one.y) for one in final] == [6] * 6


def test_a_mean_is_taken_over_all_seeds_or_not_at_all() -> None:
    def row(weights: str, kl: float | None, asr: float) -> dict[str, Any]:
        keys = ("relative_distance", "kl_harmful", "utility_loss", "keyword_asr", "utility", "sham_loss", "incoherence")
        return {"weights": weights, "step": 1, "kl_task": kl, "gold_asr": asr, **dict.fromkeys(keys)}

    curves = [[row("step-1", 1.0, 0.2), row("final", 2.0, 0.5)], [row("step-1", None, 0.4)]]
    (mean,) = mean_curve(curves)
    assert (mean["weights"], mean["kl_task"]) == ("step-1", None)
    assert mean["gold_asr"] == pytest.approx(0.3)


def test_few_arms_are_visible_at_first_and_never_by_attack_success(analysis: dict[str, Any]) -> None:
    first = first_arms(analysis)
    assert first[0] == "baseline" and len(first) == FIRST_ARMS
    visible = {one.legendgroup for one in _traces(curves_figure(analysis), visible=True)}
    assert visible == set(first)
    for row in analysis["tables"]["sweep"]["rows"]:
        row[PRIMARY] = 1 - row[PRIMARY]
    assert first_arms(analysis) == first
    for row in analysis["tables"]["tuning"]["rows"]:
        if row["family"] == "kl-tether" and row["chosen"]:
            row["chosen"] = "kl-tether 1"
    assert first_arms(analysis) != first


def test_no_two_arms_look_alike_and_families_share_a_colour(analysis: dict[str, Any]) -> None:
    looks = sweep_looks(analysis)
    assert len({(one.colour, one.symbol) for one in looks.values()}) == len(ARMS)
    assert looks["ema 0.1"].colour == looks["ema 0.25"].colour != looks["spf"].colour


def test_what_is_not_comparable_is_a_word_and_not_a_number(analysis: dict[str, Any]) -> None:
    figure = matched_figure(analysis)
    for panel, axis in zip(("x", "x2", "x3"), ("l2", "kl", "utility_loss"), strict=True):
        traces = [one for one in _traces(figure) if _panel(one) == panel]
        for condition, marks, words in zip(CONDITIONS, traces[::2], traces[1::2], strict=True):
            rows = _rows(analysis, "matched", condition=condition, axis=axis)
            compared = [row for row in rows if row["reason"] is None]
            assert list(marks.x) == pytest.approx([100 * row["difference"] for row in compared])
            assert list(words.text) == [row["reason"] for row in rows if row["reason"]]
            assert len(marks.y) + len(words.y) == len(rows) and not set(marks.y) & set(words.y)
            hollow = [colour == "white" for colour in marks.marker.color]
            assert hollow == [not row["all_matched"] for row in compared]
            assert marks.visible == words.visible == (condition == CONDITIONS[0])
    shapes = [(one.x0, one.x1) for one in figure.plot.layout.shapes if one.type == "rect"] if figure.plot else []
    assert shapes == [(-5, 5)] * 3


def test_the_switch_of_conditions_shows_each_once(analysis: dict[str, Any]) -> None:
    for figure in (matched_figure(analysis), grid_figure(analysis)):
        assert figure.plot is not None
        shown = [one.args[0]["visible"] for one in figure.plot.layout.updatemenus[0].buttons]
        assert [sum(column) for column in zip(*shown, strict=True)] == [1] * len(figure.plot.data)
        assert list(shown[0]) == [one.visible for one in figure.plot.data]


def test_the_twin_stands_beside_each_difference(analysis: dict[str, Any]) -> None:
    traces = _traces(sham_figure(analysis))
    for condition, pair in zip(CONDITIONS, (traces[:2], traces[2:]), strict=True):
        rows = [row for row in _rows(analysis, "sweep", condition=condition) if row["difference"] is not None]
        for trace, key in zip(pair, ("difference", "sham_difference"), strict=True):
            assert list(trace.x) == pytest.approx([100 * row[key] for row in rows])
        assert list(pair[0].y) == pytest.approx([at - 0.28 for at in pair[1].y])


def test_cells_of_the_grid_are_the_table_and_empty_ones_say_not_run(analysis: dict[str, Any]) -> None:
    figure = grid_figure(analysis)
    rows = _rows(analysis, "grid", condition=CONDITIONS[0], accumulation=4)
    heatmaps = [one for one in _traces(figure, type="heatmap") if one.visible]
    words = [one for one in _traces(figure, type="scatter") if one.visible]
    for heatmap, empty, key in zip(heatmaps[2:], words[2:], (PRIMARY, "utility"), strict=True):
        z = [list(line) for line in heatmap.z]
        for x, lr in enumerate((3e-5, 1e-4, 3e-4, 1e-3)):
            for y, batch in enumerate((8, 16, 32, 64, 128)):
                found = [row[key] for row in rows if row["lr"] == lr and row["effective_batch"] == batch]
                assert z[y][x] == (pytest.approx(100 * found[0]) if found else None)
                assert ((x, y) in set(zip(empty.x, empty.y, strict=True))) == (not found)
        assert set(empty.text) == {"not run"}


def test_effects_and_tuning_are_the_tables(analysis: dict[str, Any]) -> None:
    effects = effects_figure(analysis)
    assert effects.plot is not None
    assert [one.text for one in effects.plot.layout.annotations][0] == "lr: 71.0 % of variance"
    lr = _traces(effects, name="gold ASR")[0]
    assert list(lr.x) == ["3e-5", "1e-4", "3e-4", "1e-3"]
    assert list(lr.y) == pytest.approx([12, 30, 60, 80]) and list(lr.error_y.array) == pytest.approx([7] * 4)
    rows = _rows(analysis, "tuning", condition=CONDITIONS[0], family="plain")
    lines = [one for one in _traces(tuning_figure(analysis), legendgroup="plain") if one.fill is None]
    assert list(lines[0].x) == [1, 2, 3, 4, 5]
    assert list(lines[0].y) == pytest.approx([100 * row["asr"] for row in rows])
    assert list(lines[1].y) == pytest.approx([100 * row["utility"] for row in rows])


def test_empty_tables_say_not_run(analysis: dict[str, Any]) -> None:
    for name in ("curves", "matched", "effects", "tuning", "grid"):
        analysis["tables"][name]["rows"] = []
    for row in analysis["tables"]["sweep"]["rows"]:
        row["utility"] = row["sham_difference"] = None
    figures = sweep_figures(analysis)
    assert [figure.plot for figure in figures] == [None] * 7
    assert all(figure.missing.startswith("not run: ") for figure in figures)


def test_a_sweep_narrows_the_figures_of_single_runs_and_plain_runs_stay_as_they_are(
    plain: dict[str, Any], analysis: dict[str, Any]
) -> None:
    assert narrowed(plain, set()) == (plain, 0)
    drawn, left_out = narrowed(analysis, {"theta_0"})
    assert left_out == len(plain["scope"]["arms"]) and drawn["scope"]["arms"] == {}
    assert [row["key"] for row in drawn["tables"]["points"]["rows"]] == ["theta_0"]
    assert {row["key"] for row in analysis["tables"]["points"]["rows"]} == {"theta_0", "A"}
    assert first_screen(analysis) == first_screen(plain)
    page = render(plain)
    assert 'id="sweep"' not in page and 'id="pareto"' not in page
    assert 'id="sweep"' in render(analysis)


def test_one_condition_has_no_switch(analysis: dict[str, Any]) -> None:
    for name in ("sweep", "curves", "matched", "tuning", "grid"):
        rows = _rows(analysis, name, condition=CONDITIONS[0])
        analysis["tables"][name]["rows"] = [{**row, "condition": ""} for row in rows]
    for figure in (matched_figure(analysis), grid_figure(analysis)):
        assert isinstance(figure.plot, go.Figure)
        assert len(figure.plot.layout.updatemenus) == 0
    assert "All arms" in render(analysis)


def test_names_of_arms_are_text_whatever_they_hold(analysis: dict[str, Any]) -> None:
    for row in analysis["tables"]["sweep"]["rows"]:
        if row["arm"] == "spf":
            row["arm"] = "<script>alert(1)</script>"
    assert "<script>alert(1)" not in render(analysis)
