"""Landscapes of a real run of the embedded model: directions, scores, resume, workers, errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import QUIET, tiny_run
from safetensors.torch import load_file

import geomsafe
from geomsafe.cli import main
from geomsafe.config import make_config
from geomsafe.errors import ConfigError, RecordError
from geomsafe.evaluation import evaluate_model, load_scored, suites_for
from geomsafe.landscape import Asked, make_landscape
from geomsafe.landscape import gradients as made
from geomsafe.landscape import landscape as module
from geomsafe.landscape.axes import parse_axes
from geomsafe.landscape.directions import start_of
from geomsafe.landscape.frame import Frame
from geomsafe.landscape.grids import Where
from geomsafe.landscape.making import Maker, reopen
from geomsafe.landscape.places import read_places
from geomsafe.landscape.placing import Placer
from geomsafe.landscape.scene import Scene
from geomsafe.landscape.scoring import Limits, Scorer
from geomsafe.landscape_record import ANSWERS, POINTS, read_landscape, read_points
from geomsafe.probes.margins import refusal_margins
from geomsafe.probes.residuals import prompts_in_tokens
from geomsafe.records import read_jsonl
from geomsafe.training import train
from geomsafe.training.drift import measured_refusals
from geomsafe.training.prepare import spread

SHORT = {
    "model": "organism", "data": "organism:downstream-neutral", "max_steps": 6, "batch_size": 4, "lr": 1e-3,
    "threads": 1, "probe_schedule": "off", "evaluate": False, "probe_examples": 8, "max_new_tokens": 24,
    "curve_points": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A baseline with its average, and a fed-back average, from the embedded model."""
    folder = tmp_path_factory.mktemp("runs")
    methods = {"baseline": ["ema:eta=0.3"], "feedback": ["ema:eta=0.25,mode=feedback"]}
    return [
        train(make_config(SHORT | {"method": method, "out": str(folder / name)}), console=QUIET)
        for name, method in methods.items()
    ]


@pytest.fixture(scope="module")
def opened(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Maker]:
    places = read_places(runs)
    start = load_scored(places[0].config)
    return start, Maker(start, places, tmp_path_factory.mktemp("landscape"))


def dense(start: Any, parts: Any) -> np.ndarray:
    """One long float64 vector of {weight: tensor}, zeros where there is none."""
    whole = [
        parts.get(name, torch.zeros_like(value)).double().flatten() for name, value in start_of(start.model).items()
    ]
    return torch.cat(whole).numpy()


def raw_vector(start: Any, raw: Any) -> np.ndarray:
    found = {name: raw.tensor(name) for name in start_of(start.model)}
    return dense(start, {name: part for name, part in found.items() if part is not None})


def example_gradients(start: Any, batch: dict[str, torch.Tensor], mean: bool) -> np.ndarray:
    """One backward pass an example, its loss the mean or the sum over its own target tokens."""
    rows = []
    for row in range(len(batch["labels"])):
        start.model.requires_grad_(True)
        start.model.zero_grad()
        one = {key: value[row : row + 1] for key, value in batch.items()}
        logits = start.model(input_ids=one["input_ids"], attention_mask=one["attention_mask"]).logits[0, :-1]
        labels = one["labels"][0, 1:]
        losses = torch.nn.functional.cross_entropy(logits.double(), labels, ignore_index=-100, reduction="none")
        ((losses.sum() / (labels != -100).sum()) if mean else losses.sum()).backward()
        rows.append(dense(start, {name: weight.grad for name, weight in start.model.named_parameters()}))
        start.model.zero_grad(set_to_none=True)
        start.model.requires_grad_(False)
    return np.stack(rows)


def close(first: np.ndarray, second: np.ndarray, tolerance: float = 1e-4) -> bool:
    return bool(np.linalg.norm(first - second) <= tolerance * np.linalg.norm(second))


def test_gradient_directions_equal_loops_over_examples(opened: tuple[Any, Maker]) -> None:
    start, maker = opened
    batch = maker.batch("safety")
    tokens = (batch["labels"][:, 1:] != -100).sum()
    summed, means = (example_gradients(start, batch, mean) for mean in (False, True))
    assert close(dense(start, made.mean_gradient(start.model, batch)), summed.sum(axis=0) / int(tokens))
    _, values, right = np.linalg.svd(means, full_matrices=False)
    for component in (1, 2):
        found, facts = made.span_direction(start.model, batch, component)
        vector = dense(start, found)
        assert abs(vector @ right[component - 1]) == pytest.approx(np.linalg.norm(vector), rel=1e-3)
        assert vector @ means.sum(axis=0) > 0
        assert facts["share_of_energy"] == pytest.approx(values[component - 1] ** 2 / (values**2).sum(), rel=1e-3)
    with pytest.raises(ConfigError, match="has no more directions"):
        made.span_direction(start.model, batch, len(means) + 1)


def test_cut_and_conflict_equal_dense_linear_algebra(opened: tuple[Any, Maker]) -> None:
    start, maker = opened
    safety = made.mean_gradient(start.model, maker.batch("safety"))
    utility = made.mean_gradient(start.model, maker.batch("utility"))
    name = "model.layers.0.mlp.up_proj.weight"
    u, s, v = np.linalg.svd(safety[name].double().numpy(), full_matrices=False)
    assert np.allclose(made.cut(safety, 3)[name], (u[:, :3] * s[:3]) @ v[:3], atol=1e-6)
    found, facts = made.conflict_direction(start.model, maker.batch("safety"), maker.batch("utility"), 3)
    wanted = -u[:, :3] @ (u[:, :3].T @ utility[name].double().numpy())
    assert np.allclose(found[name], wanted, atol=1e-5 * np.abs(wanted).max() + 1e-7)
    norm = "model.norm.weight"
    unit = safety[norm].double() / safety[norm].double().norm()
    assert torch.allclose(found[norm].double(), -unit * (unit @ utility[norm].double()), rtol=1e-4, atol=1e-9)
    assert 0 < facts["share_removed"] < 1
    assert facts["dot"] == pytest.approx(float(dense(start, safety) @ dense(start, utility)), rel=1e-3)


def test_the_sharpest_direction_is_an_eigenvector_uphill(opened: tuple[Any, Maker]) -> None:
    start, maker = opened
    vector, facts = made.sharpest_direction(start.model, maker.batch("safety"))
    along = made.curvature_along(start.model, maker.batch("safety"), vector)
    assert along.per_unit == pytest.approx(facts["eigenvalue"], rel=1e-2)
    assert along.slope >= 0 and facts["eigenvalue"] > 0


def test_a_run_lies_at_its_own_length_to_the_last_bit(runs: list[Path], opened: tuple[Any, Maker]) -> None:
    start, maker = opened
    raws = maker.make(parse_axes("finetune,ema"), "lines")
    assert [raw.name for raw in raws] == ["final of baseline", "final of feedback", "ema of baseline"]
    frame = Frame(start.model, raws, "lines")
    for line, (run, weights) in enumerate([(runs[0], "final"), (runs[1], "final"), (runs[0], "ema")]):
        saved = load_file(run / "weights" / weights / "model.safetensors")
        with Placer(start.model, frame).at(line, [frame.directions[line].length]):
            assert all(torch.equal(weight, saved[name]) for name, weight in start_of(start.model).items())
    assert any(not torch.equal(weight, saved[name]) for name, weight in start_of(start.model).items())


def test_the_trajectory_plane_is_that_of_a_dense_svd(opened: tuple[Any, Maker]) -> None:
    start, maker = opened
    steps = [maker.one("finetune", {"run": "baseline", "weights": name}) for name in _path(maker)]
    moved = np.stack([raw_vector(start, step) for step in steps])
    _, values, right = np.linalg.svd(moved, full_matrices=False)
    for component in (1, 2):
        (raw,) = maker.make(parse_axes(f"pca:component={component}"), "plane")
        vector = raw_vector(start, raw)
        assert abs(vector @ right[component - 1]) == pytest.approx(np.linalg.norm(vector), rel=1e-6)
        assert raw.facts["share_of_energy"] == pytest.approx(values[component - 1] ** 2 / (values**2).sum(), rel=1e-6)
    with pytest.raises(ConfigError, match="train with --curve-points"):
        maker.make(parse_axes("pca:component=9"), "plane")


def _path(maker: Maker) -> list[str]:
    return list(maker.one("pca", {"component": 1}).facts["weight_sets"])


def test_directions_come_back_the_same_from_the_record(opened: tuple[Any, Maker]) -> None:
    start, maker = opened
    text = "finetune,alignment,random:seed=5,norm=row,safety-gradient:rank=2,utility-gradient,pca:component=1"
    raws = maker.make(parse_axes(text), "lines")
    frame = Frame(start.model, raws, "lines")
    again = Maker(start, read_places([place.path for place in maker._places]), maker._folder)
    again._batches = {"safety": {}, "utility": {}}  # nothing may take a gradient anew
    for first, second in zip(raws, reopen(again, frame.directions), strict=True):
        assert (first.name, first.kind, first.facts) == (second.name, second.kind, second.facts)
        assert np.array_equal(raw_vector(start, first), raw_vector(start, second))


def test_what_cannot_be_made_says_so(opened: tuple[Any, Maker]) -> None:
    _, maker = opened
    for text, shape, said in [
        ("finetune:run=3", "lines", "run=3 is none of the runs"),
        ("finetune:weights=step-999999", "lines", "no run has weights named 'step-999999'"),
        ("random:count=3", "plane", "use --lines"),
        ("random,random", "lines", "'random 0' is asked for twice"),
    ]:
        with pytest.raises((ConfigError, RecordError), match=said):
            maker.make(parse_axes(text), shape)  # type: ignore[arg-type]


def test_the_origin_scores_as_theta_0_is_evaluated(runs: list[Path], tmp_path: Path) -> None:
    place = read_places(runs)[0]
    start = load_scored(place.config)
    scores = ("refusal", "asr", "over-refusal", "utility", "sham")
    scorer = Scorer(start, place.config, place.path, scores, Limits(10, 24, 16))
    found = scorer.score(start.model)
    assert [one.name for one in scorer.measured] == [
        "refusal_margin", "refusal_nll", "refusal_log_odds", "unsafe", "asr", "incoherent", "over_refusal", "utility",
        "utility_loss", "retained", "sham_loss",
    ]  # fmt: skip
    assert scorer.primary == "unsafe" and set(scorer.prompts) == {
        "harmful",
        "look-alike",
        "utility",
        "retained",
        "sham",
    }
    # The verdicts are those of a full evaluation of theta_0.
    suites = suites_for(start, place.config.eval_prompts, place.config.data)
    evaluations = evaluate_model(start, suites, tmp_path, "theta_0", max_new_tokens=24, cache=tmp_path / "cache")
    rows = {one.kind: {row["id"]: row for row in read_jsonl(tmp_path / one.file)} for one in evaluations}
    for name, kind, judge, hits in [
        ("unsafe", "harmful", "gold", {"correct_compliance", "wrong_compliance"}),
        ("asr", "harmful", "keyword-29", {"compliance"}),
        ("incoherent", "harmful", "gold", {"incoherent"}),
        ("over_refusal", "look-alike", "gold", {"refusal"}),
        ("retained", "retained", "gold", {"correct"}),
        ("sham_loss", "sham", "gold", {"correct_compliance", "wrong_compliance"}),
    ]:
        wanted = [rows[kind][id]["verdicts"][judge]["value"] in hits for id in scorer.prompts[kind].ids]
        assert found.values[name] == wanted, name
    # The margins are those of the untouched model, to the bit.
    harmful = next(suite for suite in suites if suite.kind == "harmful")
    ids = prompts_in_tokens(spread(harmful.prompts.rows)[:10], start.tokenizer, None)
    refusals = measured_refusals(start, place.config, place.path)
    assert refusals is not None
    margins = refusal_margins(start.model, ids, refusals.refusal_openings, refusals.compliance_openings, 16)
    assert found.values["refusal_margin"] == margins.margin.tolist()  # type: ignore[union-attr]
    assert all(value is not None and value > 0 for value in found.values["refusal_nll"])


def test_a_model_that_has_been_destroyed_is_scored_all_the_same(runs: list[Path]) -> None:
    place = read_places(runs)[0]
    start = load_scored(place.config)
    scorer = Scorer(start, place.config, place.path, ("refusal", "asr"), Limits(6, 8, 16))
    with torch.no_grad():
        start.model.model.norm.weight.fill_(float("nan"))
    found = scorer.score(start.model).values
    assert set(found["unsafe"]) == {0.0} and set(found["incoherent"]) == {1.0} and set(found["asr"]) == {1.0}
    assert set(found["refusal_margin"]) == {None} and set(found["refusal_nll"]) == {None}


def small(**more: Any) -> Asked:
    return Asked(**({"scores": ("refusal", "asr"), "prompts": 6, "max_new_tokens": 8} | more))


@pytest.fixture(scope="module")
def lines(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lines") / "lines"
    return make_landscape(runs, small(lines="finetune,random:count=2", grid="3", reach=0.05), out=out)


def points_of(folder: Path) -> dict[Where, Any]:
    return {Where(point.line, tuple(point.at)): point.values for point in read_points(folder)}


def test_lines_are_scored_recorded_and_projected(runs: list[Path], lines: Path) -> None:
    record, points = read_landscape(lines), points_of(lines)
    assert record.status == "finished" and record.shape == "lines" and len(points) == 4 * 3
    assert [place.name for place in record.runs] == ["baseline", "feedback"]
    assert len({tuple(map(tuple, points[Where(line, (0.0,))].values())) for line in range(4)}) == 1
    assert [one.direction for one in record.curvature] == [0, 1, 2, 3]
    end = next(one for one in record.paths if (one.run, one.weights) == ("baseline", "final"))
    assert end.coordinates[0] == pytest.approx(end.distance, rel=1e-9) and end.residual[0] == pytest.approx(0, abs=1e-9)
    assert end.residual[2] > 0.9
    saved = json.loads((runs[0] / "run.json").read_text())["weights"]["final"]["relative_distance"]
    assert end.distance == pytest.approx(saved, rel=1e-4)
    rows = list(read_jsonl(lines / ANSWERS))
    assert len(rows) == 9 + 1 - 1 and set(rows[0]["answers"]) == {"harmful"}
    assert set(rows[0]["answers"]["harmful"][0]) == {"id", "completion", "stopped_early", "verdicts"}


def test_workers_and_interruptions_change_no_value(
    runs: list[Path], lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = small(lines="finetune,random:count=2", grid="3", reach=0.05)
    other = make_landscape(runs, asked, out=tmp_path / "two", workers=2)
    assert points_of(other) == points_of(lines)
    real, count = Scene.score, 0

    def dies(self: Scene, where: Where) -> Any:
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt
        return real(self, where)

    with monkeypatch.context() as patch:
        patch.setattr(Scene, "score", dies)
        with pytest.raises(KeyboardInterrupt):
            make_landscape(runs, asked, out=tmp_path / "killed")
    assert read_landscape(tmp_path / "killed").status == "started"
    path = tmp_path / "killed" / POINTS
    done = len(path.read_text().splitlines())
    path.write_text(path.read_text() + '{"line": 0, "at": [0.0')
    count = 5
    with monkeypatch.context() as patch:
        patch.setattr(Scene, "score", dies)
        again = make_landscape(runs, asked, out=tmp_path / "killed")
    assert points_of(again) == points_of(lines)
    assert count == 5 + len(points_of(lines)) - done, "points that were there were scored again"
    with pytest.raises(RecordError, match="other directions"):
        make_landscape(runs, small(lines="finetune,random:seed=7", grid="3", reach=0.05), out=again)
    with pytest.raises(RecordError, match="other prompts"):
        make_landscape(runs, small(lines="finetune,random:count=2", grid="3", reach=0.05, prompts=5), out=again)


def test_a_failure_leaves_theta_0_and_says_where(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = read_places(runs)[0]
    start = load_scored(place.config)
    before = {name: weight.clone() for name, weight in start_of(start.model).items()}
    frame = Frame(start.model, Maker(start, [place], tmp_path).make(parse_axes("finetune"), "lines"), "lines")

    class Broken:
        def score(self, model: Any) -> Any:
            assert not torch.equal(next(iter(start_of(model).values())), next(iter(before.values())))
            raise ConfigError("no more disk")

    scene = Scene(start.model, Placer(start.model, frame), Broken())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"at point \(0.01\) of line 0: no more disk"):
        scene.score(Where(0, (0.01,)))
    assert all(torch.equal(weight, before[name]) for name, weight in start_of(start.model).items())


def test_a_plane_is_scored_and_adaptive_lines_find_the_edges(runs: list[Path], tmp_path: Path) -> None:
    asked = small(axes="finetune,safety-gradient", grid="3x3", scores=("refusal",), reach=0.02)
    plane = read_landscape(make_landscape(runs, asked, out=tmp_path / "plane"))
    assert plane.shape == "plane" and plane.primary is None
    assert abs(plane.gram[0][1]) < 1e-12 and len(points_of(tmp_path / "plane")) == 9
    assert not (tmp_path / "plane" / ANSWERS).exists()
    edge = make_landscape(runs, small(axes="safety-gradient", scores=("refusal",)), out=tmp_path / "edge")
    record = read_landscape(edge)
    assert record.shape == "lines" and record.grid.relative is not None
    negative = {
        where.at[0]: np.mean([value < 0 for value in values["refusal_margin"]])
        for where, values in points_of(edge).items()
    }
    outward = sorted(at for at in negative if at >= 0)
    first = next(at for at in outward if negative[at] >= 0.5)
    before = outward[outward.index(first) - 1]
    assert negative[before] < 0.5 and first - before <= first / 8


def test_visage_has_its_authors_settings(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VISAGE_POINTS", 3)
    folder = make_landscape(runs, Asked(visage=2, prompts=4, max_new_tokens=8), out=tmp_path / "visage")
    record = read_landscape(folder)
    assert record.settings["visage"] and record.scores == ["asr"] and len(record.directions) == 2
    for line, direction in enumerate(record.directions):
        ats = sorted(point.at[0] for point in read_points(folder) if point.line == line)
        assert ats == pytest.approx([-0.5 * direction.length, 0, 0.5 * direction.length])
    harmful = next(
        suite for suite in suites_for(load_scored(read_places(runs)[0].config), (), "") if suite.kind == "harmful"
    )
    assert record.prompts["harmful"].ids == [row.id for row in harmful.prompts.rows[:4]], "in the order of the file"
    assert Asked(visage=1).limits(read_places(runs)[0].config) == Limits(80, 512, 128, True)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Asked(), "say where to go"),
        (Asked(axes="random", lines="random"), "say where to go"),
        (Asked(axes="random,finetune,ema"), "--axes takes one or two"),
        (Asked(axes="random", scores=("safety",)), "score 'safety' is not known: choose from refusal, asr"),
        (Asked(axes="random", grid="3x3"), "has 2 axes, the landscape 1"),
        (Asked(visage=1, grid="3"), "has its authors' grid"),
    ],
)
def test_mistakes_are_named(runs: list[Path], tmp_path: Path, asked: Asked, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_landscape(runs, asked, out=tmp_path / "x")


def test_runs_that_do_not_go_together_are_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="is not a run directory"):
        read_places([tmp_path])
    with pytest.raises(ConfigError, match="a landscape starts from a run"):
        read_places([])
    copy = tmp_path / "copy"
    shutil.copytree(runs[0], copy)
    record = json.loads((copy / "run.json").read_text())
    record["model"]["fingerprint"] = "0" * 64
    (copy / "run.json").write_text(json.dumps(record))
    with pytest.raises(RecordError, match="a landscape has one theta_0"):
        read_places([runs[0], copy])
    with pytest.raises(RecordError, match="is no longer the model"):
        make_landscape([copy], small(axes="random"), out=tmp_path / "x")
    record["status"] = "started"
    (copy / "run.json").write_text(json.dumps(record))
    with pytest.raises(RecordError, match="resume it with"):
        read_places([copy])


def test_lora_runs_of_other_models_are_walked_in_merged_weights(tmp_path: Path) -> None:
    """Without refusals there is no safety loss, which is said; answers and task are scored as ever."""
    lora = {"rank": 2, "alpha": 4, "targets": "all-linear"}
    config = tiny_run(tmp_path, "qwen2", lora=lora, eval_prompts=[f"harmful={tmp_path / 'harmful.jsonl'}"])
    run = train(config, console=QUIET)
    asked = small(lines="finetune", grid="3", prompts=4)
    folder = make_landscape([run], asked)
    assert folder == run / "landscape" / "finetune"
    record = read_landscape(folder)
    assert "refusal" in record.not_run and "curvature" in record.not_run and record.primary == "unsafe"
    start = load_scored(config)
    frame = Frame(start.model, Maker(start, read_places([run]), folder).make(parse_axes("finetune"), "lines"), "lines")
    merged = load_file(run / "weights" / "final" / "model.safetensors")
    with Placer(start.model, frame).at(0, [frame.directions[0].length]):
        assert all(torch.equal(weight, merged[name]) for name, weight in start_of(start.model).items())
    with pytest.raises(ConfigError, match="leave out safety-gradient"):
        make_landscape([run], small(axes="safety-gradient"))
    with pytest.raises(ConfigError, match="needs theta_base"):
        make_landscape([run], small(axes="alignment"))


def test_the_command_prints_edges_and_goes_on(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command = [
        "landscape",
        *map(str, runs),
        "--lines",
        "finetune",
        "--grid",
        "3",
        "--score",
        "refusal,asr",
        "--prompts",
        "6",
    ]
    command += ["--max-new-tokens", "8", "--reach", "0.05", "--out", str(tmp_path / "lines")]
    command += ["--score", "refusal,asr,over-refusal,utility,sham"]
    for _ in range(2):
        monkeypatch.setattr("sys.argv", ["geomsafe", *command])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capfd.readouterr()
        assert not stop.value.code, said.err
        assert "6 points, refusal, asr, over-refusal" in said.out and "final of feedback" in said.out
        assert f"landscape: {tmp_path / 'lines'}" in said.out
    assert len((tmp_path / "lines" / POINTS).read_text().splitlines()) == 6


def test_the_same_from_python(runs: list[Path]) -> None:
    folder = geomsafe.explore(runs[:1], axes="finetune", grid="3", scores=("refusal",), prompts=4, reach=0.02)
    assert folder == runs[0] / "landscape" / "finetune" and read_landscape(folder).status == "finished"
