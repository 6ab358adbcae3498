"""Captures to tables and figures: both schemas, every number again from the file, and what is left blank."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from synthetic_captures import NULLS, PHI_RANKS, PROBES, RANK, names
from synthetic_runs import Spec, write_run

from geomsafe.errors import RecordError
from geomsafe.records import read_record, write_record
from geomsafe.reports.captures import read_capture
from geomsafe.reports.collect import collect
from geomsafe.reports.figures_conflict import cosine_figure, kinds_figure
from geomsafe.reports.figures_subspaces import (
    excess_figure,
    one_sample_figure,
    overlap_figure,
    share_figure,
    sufficiency_figure,
    turn_figure,
)
from geomsafe.reports.subspace_tables import ONE_SAMPLE, TURNS
from tests import reference

LAST = "step-000060.safetensors"


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("geometry")
    run = write_run(folder, Spec("run", prompts=6, schema=2))
    return run, collect([run], folder / "report")


def _rows(analysis: dict[str, Any], table: str, **wanted: Any) -> list[dict[str, Any]]:
    rows = analysis["tables"][table]["rows"]
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def _edit(path: Path, *, drop: tuple[str, ...] = (), **metadata: Any) -> None:
    """Rewrite a capture without some arrays and with other metadata."""
    with safe_open(path, framework="numpy") as stream:
        old = stream.metadata()
    tensors = {name: one for name, one in load_file(path).items() if not name.startswith(drop or ("\0",))}
    save_file(tensors, path, metadata=old | {key: json.dumps(value) for key, value in metadata.items()})


def test_cosines_of_the_table_are_those_of_the_file(one: tuple[Path, dict[str, Any]]) -> None:
    """Whole model at the last step, from the Gram by explicit sums over pairs of different clusters."""
    run, analysis = one
    tensors = load_file(run / "captures" / LAST)
    tokens = tensors["example_tokens"].astype(float)
    cluster = [index // 2 for index in range(PROBES)] + list(range(100, 100 + PROBES))
    for space, name in (("raw", "example_gram"), ("preconditioned", "preconditioned_gram")):
        gram = tensors[name].sum(axis=0)

        def u(rows: range, gram: np.ndarray = gram) -> float:
            pairs = [(i, j) for i in rows for j in rows if cluster[i] != cluster[j]]
            return sum(gram[i, j] for i, j in pairs) / sum(tokens[i] * tokens[j] for i, j in pairs)

        safety, utility = range(PROBES), range(PROBES, 2 * PROBES)
        cross = gram[:PROBES, PROBES : 2 * PROBES].sum() / tokens[:PROBES].sum() / tokens[PROBES : 2 * PROBES].sum()
        (row,) = _rows(analysis, "cosines", step=60, set="safety", gradient_space=space, layer="all")
        assert row["cosine"] == pytest.approx(cross / math.sqrt(u(safety) * u(utility)), rel=1e-9)
        assert row["dot"] == pytest.approx(cross, rel=1e-9) and row["spf_trigger"] == (cross < 0)
        assert row["contrast"] == pytest.approx(row["cosine"] - row["anchor_cosine"], rel=1e-9)


def test_a_conflict_is_claimed_where_the_anchor_was_measured_only(one: tuple[Path, dict[str, Any]]) -> None:
    layers = _rows(one[1], "cosines", grouping="layer", set="safety", gradient_space="raw")
    assert {row["step"] for row in layers if row["claimed"] is None} == {1, 4, 16}
    planted = [row for row in layers if row["layer"] in {"1", "2"}]
    assert all(row["negative"] for row in planted)
    assert all(row["claimed"] for row in planted if row["step"] in {0, 60})
    assert not any(row["claimed"] for row in layers if row["layer"] in {"0", "embedding", "other"})
    assert {row["gradient_space"] for row in _rows(one[1], "cosines", step=0)} == {"raw"}
    kinds = {row["layer"] for row in _rows(one[1], "cosines", grouping="kind")}
    assert kinds == {"embed", "q", "v", "up", "down", "norm"}


def test_undefined_cells_are_blank(one: tuple[Path, dict[str, Any]]) -> None:
    """A number in an undefined cell would be read: the heatmaps hold None there, raw and preconditioned."""
    for space in ("raw", "preconditioned"):
        figure = cosine_figure(one[1], space)
        assert figure.plot is not None and figure.limitation
        (trace,) = figure.plot.data
        wanted = _rows(one[1], "cosines", grouping="layer", set="safety", gradient_space=space)
        labels = figure.plot.layout.yaxis.ticktext
        assert labels[-1] == "other" and list(trace.z[-1]) == [None] * len(trace.z[0])
        assert sum(value is None for line in trace.z for value in line) == sum(row["cosine"] is None for row in wanted)
        assert {mark for line in trace.text for mark in line} == {"", "•", "◆"}
    kinds = kinds_figure(one[1])
    assert kinds.plot is not None
    assert list(kinds.plot.layout.xaxis.ticktext) == ["safety", "sham"]
    assert list(kinds.plot.layout.xaxis2.ticktext) == ["safety", "sham", "safety, Adam", "sham, Adam"]
    assert kinds.plot.layout.yaxis.ticktext[0] == "whole model"


def test_excess_is_the_difference_of_energies_over_matrices(one: tuple[Path, dict[str, Any]]) -> None:
    run, analysis = one
    tensors = load_file(run / "captures" / LAST)
    differences = []
    for name, shape in names().items():
        if len(shape) == 2:
            curves = [
                np.cumsum(values**2) / np.sum(values**2)
                for values in (
                    tensors[f"{kind}_singular_values/{name}"].astype(float) for kind in ("safety", "untrained")
                )
            ]
            differences.append(curves[0][2] - curves[1][2])
    (row,) = _rows(analysis, "excess", step=60, null="untrained", k=3)
    assert row["excess"] == pytest.approx(np.median(differences), rel=1e-6)
    assert row["examples"] == PROBES and row["excess"] > 0.3
    assert {row["null"] for row in analysis["tables"]["excess"]["rows"]} == {*NULLS, "sham", "benign"}
    assert all(abs(row["excess"]) < 0.2 for row in _rows(analysis, "excess", null="sham"))


def test_untrained_weights_of_the_first_capture_stand_beside_the_last(tmp_path: Path) -> None:
    run = write_run(tmp_path, Spec("run", prompts=6, schema=2))
    _edit(run / "captures" / LAST, drop=("untrained",), nulls=[null for null in NULLS if null != "untrained"])
    analysis = collect([run], tmp_path / "report")
    (row,) = _rows(analysis, "excess", step=60, null="untrained", k=3)
    assert row["excess"] > 0.3
    first = load_file(run / "captures" / "step-000000.safetensors")
    last = load_file(run / "captures" / LAST)
    name = "model.layers.1.mlp.up_proj.weight"
    assert f"untrained_singular_values/{name}" in first and f"untrained_singular_values/{name}" not in last


def test_gram_ranks_are_those_of_the_examples(one: tuple[Path, dict[str, Any]]) -> None:
    run, analysis = one
    tensors = load_file(run / "captures" / LAST)
    tokens = tensors["example_tokens"][:PROBES].astype(float)
    layer = [at for at, name in enumerate(names()) if ".layers.2." in name]
    gram = tensors["preconditioned_gram"][layer].sum(axis=0)[:PROBES, :PROBES] / np.outer(tokens, tokens)
    energy = np.linalg.eigvalsh(gram)
    wanted = {"set": "safety", "gradient_space": "preconditioned", "layer": "2", "form": "uncentred", "step": 60}
    (row,) = _rows(analysis, "gram_ranks", **wanted)
    assert row["stable_rank"] == pytest.approx(energy.sum() / energy.max(), rel=1e-6)
    assert row["participation_ratio"] == pytest.approx(energy.sum() ** 2 / np.sum(energy**2), rel=1e-6)
    assert {row["step"] for row in _rows(analysis, "gram_ranks", grouping="whole")} == {0, 1, 4, 16, 60}
    assert {row["step"] for row in _rows(analysis, "gram_ranks", grouping="kind")} == {0, 60}


def test_shares_are_projections_of_the_displacement(one: tuple[Path, dict[str, Any]]) -> None:
    run, analysis = one
    tensors = load_file(run / "captures" / LAST)
    matrices = [name for name, shape in names().items() if len(shape) == 2]
    place = {name: index for index, name in enumerate(names())}
    whole = sum(tensors["displacement_norm"][place[name]] ** 2 for name in matrices)
    for k in (1, 4, RANK):
        inside = sum(float(tensors[f"displacement_in/safety@0/{name}"][:k].sum()) for name in matrices)
        (row,) = _rows(analysis, "shares", step=60, what="displacement", set="safety", basis_step="0", k=k)
        assert row["share"] == pytest.approx(inside / whole, rel=1e-9)
        random = sum(k / names()[name][0] * tensors["displacement_norm"][place[name]] ** 2 for name in matrices) / whole
        assert row["random_share"] == pytest.approx(random, rel=1e-9)
    assert not _rows(analysis, "shares", step=0)
    assert max(row["k"] for row in analysis["tables"]["shares"]["rows"]) == RANK, "no columns, no number"


def test_experts_of_a_fused_weight_share_its_norm(tmp_path: Path) -> None:
    """Two experts with a space each: their energies add under the one norm of the fused weight."""
    run = write_run(tmp_path, Spec("run", prompts=6, schema=2))
    path = run / "captures" / LAST
    with safe_open(path, framework="numpy") as stream:
        metadata = stream.metadata()
    fused = "model.layers.1.mlp.up_proj.weight"
    before = {row["k"]: row["share"] for row in _shares_of(run, tmp_path)}
    tensors = load_file(path)
    for key in [key for key in tensors if key.endswith(f"/{fused}")]:
        one = tensors.pop(key)
        energy = "_in/" in key
        tensors |= {f"{key}[0]": 0.25 * one if energy else one, f"{key}[1]": 0.75 * one if energy else one}
    save_file(tensors, path, metadata=metadata)
    assert {row["k"]: row["share"] for row in _shares_of(run, tmp_path)} == pytest.approx(before, rel=1e-9)


def _shares_of(run: Path, folder: Path) -> list[dict[str, Any]]:
    analysis = collect([run], folder / "report")
    return _rows(analysis, "shares", step=60, what="displacement", set="safety", basis_step="0")


def test_probes_follow_displacement_and_update(one: tuple[Path, dict[str, Any]]) -> None:
    run, analysis = one
    tensors = load_file(run / "captures" / LAST)
    tokens = tensors["example_tokens"].astype(float)
    (row,) = _rows(analysis, "probes", step=60)
    for key, name, rows in (
        ("dot_safety", "displacement_dots", slice(0, PROBES)),
        ("update_dot_safety", "update_dots", slice(0, PROBES)),
        ("update_dot_utility", "update_dots", slice(PROBES, 2 * PROBES)),
    ):
        assert row[key] == pytest.approx(tensors[name][:, rows].sum() / tokens[rows].sum(), rel=1e-9)
    assert row["update_dot_safety"] > 0 > row["update_dot_utility"]
    losses = tensors["example_losses"]
    assert row["safety_loss"] == pytest.approx(losses[:PROBES].sum() / tokens[:PROBES].sum())
    assert row["safety_change"] == pytest.approx(
        row["safety_loss"] - _rows(analysis, "probes", step=0)[0]["safety_loss"]
    )
    assert 0 < row["safety_turn_sd"] < 0.3 and row["safety_turn"] > 2 * row["safety_turn_sd"]
    (start,) = _rows(analysis, "probes", step=0)
    assert start["update_dot_safety"] is None and start["safety_turn"] is None


def test_singles_are_left_out_with_their_cluster(one: tuple[Path, dict[str, Any]]) -> None:
    run, analysis = one
    rows = _rows(analysis, "singles", step=60, set="safety")
    assert len(rows) == PROBES and {row["others"] for row in rows} == {PROBES - 2}
    tensors = load_file(run / "captures" / LAST)
    tokens = tensors["example_tokens"][:PROBES].astype(float)
    gram = tensors["example_gram"].sum(axis=0)[:PROBES, :PROBES] / np.outer(tokens, tokens)
    values, vectors = np.linalg.eigh(gram)
    means = vectors * np.sqrt(np.clip(values, 0, None))
    wanted = reference.single_against_others(means, [index // 2 for index in range(PROBES)])
    assert [row["single_cosine"] for row in rows] == pytest.approx([found[2] for found in wanted], rel=1e-6)
    assert [row["of_energy"] for row in rows] == pytest.approx([found[1] for found in wanted], rel=1e-6)


def test_overlaps_stand_beside_ceiling_and_baseline_at_equal_count(one: tuple[Path, dict[str, Any]]) -> None:
    spans = _rows(one[1], "overlaps", space="example_span", step=60)
    assert {row["examples"] for row in spans} == {PROBES // 2}
    by_name = {name: [row["phi"] for row in spans if row["comparison"] == name] for name in
               {row["comparison"] for row in spans}}  # fmt: skip
    ceiling = by_name.pop("safety half – safety half (ceiling)")
    assert set(by_name) == {f"safety half – {kind} half" for kind in ("utility", "sham", "benign")}
    assert all(phi[0] < ceiling[0] for phi in by_name.values())
    left = _rows(one[1], "overlaps", space="left_space", step=60)
    for step in (1, 4, 16, 60):
        turned = _rows(one[1], "overlaps", comparison=TURNS["safety"], step=step)
        assert [row["phi"] for row in turned[:2]] == pytest.approx([1, 1], abs=0.05), "two planted directions"
        assert len(_rows(one[1], "overlaps", comparison=TURNS["utility"], step=step)) == len(turned)
    assert not _rows(one[1], "overlaps", comparison=TURNS["safety"], step=0)
    assert {row["examples"] for row in left if row["comparison"] in ONE_SAMPLE.values()} == {PROBES // 2}


def test_one_sample_overlaps_stand_beside_their_nulls(one: tuple[Path, dict[str, Any]]) -> None:
    """Medians over examples, then over weights, of what the capture holds; planted directions lie above the null."""
    tensors = load_file(one[0] / "captures" / LAST)
    rows = {
        (name, row["k"]): row
        for name in ONE_SAMPLE.values()
        for row in _rows(one[1], "overlaps", space="left_space", step=60, comparison=name)
    }
    for prefix, name in ONE_SAMPLE.items():
        each = [np.median(np.atleast_2d(tensors[key]), axis=0) for key in tensors if key.startswith(f"{prefix}/")]
        for index, k in enumerate(PHI_RANKS):
            assert rows[name, k]["phi"] == pytest.approx(np.median(each, axis=0)[index], rel=1e-6)
            assert rows[name, k]["baseline"] == pytest.approx(k / 24)
    single, null, ceiling, _ = (rows[name, 2]["phi"] for name in ONE_SAMPLE.values())
    assert null < 0.3 < single < ceiling
    figure = one_sample_figure(one[1])
    assert figure.plot is not None and {trace.name for trace in figure.plot.data} == {
        "random subspaces", *ONE_SAMPLE.values()
    }  # fmt: skip


def test_every_figure_says_how_to_read_it_and_its_limitation(one: tuple[Path, dict[str, Any]]) -> None:
    analysis = one[1]
    for figure in (
        excess_figure(analysis),
        overlap_figure(analysis, "example_span"),
        overlap_figure(analysis, "left_space"),
        share_figure(analysis),
        sufficiency_figure(analysis),
        turn_figure(analysis),
    ):
        assert figure.plot is not None and figure.plot.data
        assert figure.how and figure.limitation and all(name in analysis["tables"] for name in figure.tables)


def test_a_null_of_another_count_is_named_and_not_compared(tmp_path: Path) -> None:
    run = write_run(tmp_path, Spec("run", prompts=6, schema=2))
    for path in (run / "captures").iterdir():
        match = read_capture(path).metadata["match"]
        _edit(path, match=match | {"random-tokens": {"examples": PROBES - 5}})
    analysis = collect([run], tmp_path / "report")
    reasons = {row["null"]: row["reason"] for row in analysis["tables"]["nulls"]["rows"]}
    assert reasons["random-tokens"] == f"{PROBES - 5} examples, and the safety set has {PROBES}"
    assert reasons["sham"] is None and reasons["untrained"] is None
    assert "random-tokens" not in {row["null"] for row in analysis["tables"]["excess"]["rows"]}
    light = next(light for light in analysis["trust"] if light["key"] == "nulls")
    assert light["state"] == "amber" and "not in every run: random-tokens" in light["detail"]


def test_without_nulls_nothing_is_claimed_and_all_is_listed(tmp_path: Path) -> None:
    run = write_run(tmp_path, Spec("run", prompts=6, schema=2, nulls=False))
    analysis = collect([run], tmp_path / "report")
    assert {row["claimed"] for row in analysis["tables"]["cosines"]["rows"]} == {None}
    assert {"nulls for spectra", "benign anchor for conflict", "sham behaviour"} <= set(analysis["not_run"])
    assert excess_figure(analysis).missing.startswith("not run")
    assert next(light["state"] for light in analysis["trust"] if light["key"] == "nulls") == "grey"


def test_captures_of_blocks_are_still_read(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, Spec(f"schema-{schema}", seed=schema, prompts=6, schema=schema)) for schema in (1, 2)]
    analysis = collect(runs, tmp_path / "report")
    for run in ("schema-1", "schema-2"):
        rows = _rows(analysis, "cosines", run=run, layer="2", set="safety", gradient_space="raw")
        assert len(rows) == 5 and all(row["cosine"] == pytest.approx(-0.45, abs=0.15) for row in rows)
        assert _rows(analysis, "energy", run=run, set="safety", step=60)
        assert _rows(analysis, "probes", run=run, step=60)[0]["dot_safety"] is not None
    assert not _rows(analysis, "singles", run="schema-1") and _rows(analysis, "singles", run="schema-2")
    old = collect(runs[:1], tmp_path / "report")
    assert {"single examples", "preconditioned geometry"} <= set(old["not_run"])
    assert sufficiency_figure(old).missing.startswith("not run") and share_figure(old).plot is None


def test_a_check_of_gradients_lights_its_lamp(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, Spec(name, seed=seed, prompts=6)) for seed, name in enumerate(("a", "b"))]

    def lamp(*errors: float | None) -> tuple[str, str]:
        for run, error in zip(runs, errors, strict=True):
            record = read_record(run)
            check = {} if error is None else {"checks": {"gradients": {"relative_error": error, "tolerance": 1e-4}}}
            kept = {key: value for key, value in record.provenance.items() if key != "checks"}
            write_record(run, record.model_copy(update={"provenance": kept | check}))
        lights = collect(runs, tmp_path / "report")["trust"]
        return next((light["state"], light["detail"]) for light in lights if light["key"] == "gradient")

    assert lamp(None, None)[0] == "grey"
    assert lamp(2e-7, None) == ("amber", "relative error 2.0e-07 at most, in 1 of 2 runs")
    assert lamp(2e-7, 3e-6)[0] == "green"
    assert lamp(2e-7, 3e-3)[0] == "red"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sets": ["safety"]}, "has 128 examples, its sets name 32"),
        ({"set_examples": {}}, "broken metadata"),
        ({"shapes": "none"}, "broken metadata"),
    ],
)
def test_captures_that_contradict_themselves_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_run(tmp_path, Spec("run", prompts=6, schema=2)) / "captures" / LAST
    _edit(path, **changes)
    with pytest.raises(RecordError, match=message):
        read_capture(path)


def test_a_capture_of_a_later_schema_is_refused_by_name(tmp_path: Path) -> None:
    path = write_run(tmp_path, Spec("run", prompts=6)) / "captures" / LAST
    tensors = load_file(path)
    save_file(tensors, path, metadata={"schema": "geomsafe.capture/3", "convention": "token-sum"})
    with pytest.raises(RecordError, match="geomsafe.capture/3.*reads 'geomsafe.capture/1' and 'geomsafe.capture/2'"):
        read_capture(path)
