"""Sweeps as they are written and laid out: expansion, sharing of fine-tunes, addresses, mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import tiny_run

from geomsafe.analyses.pairing import BESIDE, Method
from geomsafe.config import make_config
from geomsafe.errors import ConfigError
from geomsafe.methods import REGISTRY, make_method, make_methods
from geomsafe.records import SweepRecord, read_sweep, write_sweep
from geomsafe.sweeps import load_preset, load_sweep, make_plan, make_sweep
from geomsafe.sweeps.address import run_address

PRESETS = ("paper-a", "paper-b", "ema-controls")


def plan_of(**spec: Any) -> Any:
    return make_plan(make_sweep(spec), threads=1, device="cpu")


def points_of(plan: Any) -> dict[str, tuple[str, str]]:
    return {point.arm: (point.run, point.weights) for point in plan.record.points}


def test_points_are_conditions_times_arms_and_grid_and_draws_times_seeds() -> None:
    plan = plan_of(
        seeds=[3, 5],
        conditions={"plain": {}, "deep": {"epochs": 4}},
        arms={"a": {"lr": 1e-3}},
        grid={"lr": [1e-4, 1e-5], "batch_size": [4, 8, 16]},
        random={"lr": {"low": 1e-6, "high": 1e-2, "log": True}, "schedule": {"choices": ["linear", "cosine"]}},
        budget=5,
    )
    assert len(plan.record.points) == 2 * (1 + 2 * 3 + 5) * 2 == len(plan.runs)
    assert {point.seed for point in plan.record.points} == {3, 5}
    drawn = [point.settings for point in plan.record.points if "schedule" in point.settings]
    assert len(drawn) == 2 * 5 * 2
    assert all(1e-6 <= settings["lr"] <= 1e-2 for settings in drawn)
    assert {config.epochs for config in plan.runs.values()} == {1.0, 4.0}


def test_draws_depend_on_their_seed_alone() -> None:
    spec = {"random": {"lr": {"low": 0.1, "high": 0.9}}, "budget": 4}
    first, again, other = plan_of(**spec), plan_of(**spec), plan_of(**spec, random_seed=1)
    assert list(first.runs) == list(again.runs)
    assert not set(first.runs) & set(other.runs)


def test_later_layers_override_and_dots_reach_inside() -> None:
    plan = plan_of(
        base={"lr": 1.0, "lora": {"rank": 2, "alpha": 4}},
        conditions={"x": {"lr": 2.0, "clip": 0.5}},
        arms={"a": {}, "b": {"lr": 3.0, "lora.rank": 7}},
    )
    a, b = (plan.runs[run.rpartition("/")[2]] for run, _ in points_of(plan).values())
    assert (a.lr, a.clip, a.lora.rank, a.lora.alpha) == (2.0, 0.5, 2, 4)
    assert (b.lr, b.clip, b.lora.rank, b.lora.alpha) == (3.0, 0.5, 7, 4)


def test_arms_that_leave_training_alone_share_one_fine_tune() -> None:
    plan = plan_of(
        arms={
            "plain": {},
            "shadow": {"method": ["ema:eta=0.25"]},
            "slow": {"method": ["ema:eta=0.01"]},
            "slow-ray": {"method": ["ema:eta=0.01", "shrink:to=ema"]},
            "fast-ray": {"method": ["ema:eta=0.25", "shrink:to=ema"]},
            "half": {"method": ["interpolate:alpha=0.5"]},
            "patched": {"method": ["one-shot:epochs=2"]},
            "earlier": {"weights": "step-000004"},
            "fed-back": {"method": ["ema:eta=0.25,mode=feedback"]},
            "projected": {"method": ["spf:rank=4"]},
            "projected-shadow": {"method": ["spf:rank=4", "ema:eta=0.5"]},
            "faster": {"lr": 1e-3},
        },
        beside=["interpolate:alpha=0.2", "interpolate:alpha=0.5"],
        base={"save_weights_at": [4]},
    )
    places = points_of(plan)
    assert len(plan.runs) == 4
    shared = places["plain"][0]
    for arm in ("shadow", "slow", "slow-ray", "fast-ray", "half", "patched", "earlier"):
        assert places[arm][0] == shared, arm
    assert places["projected"][0] == places["projected-shadow"][0] != shared
    assert len({places[arm][0] for arm in ("plain", "fed-back", "projected", "faster")}) == 4
    weights = {arm: weights for arm, (_, weights) in places.items()}
    assert (weights["plain"], weights["fed-back"], weights["projected"]) == ("final", "final", "final")
    assert weights["earlier"] == "step-000004"
    methods = plan.runs[shared.rpartition("/")[2]].method
    labels = {method.label: text for method, text in zip(make_methods(methods), methods, strict=True)}
    assert labels[weights["shadow"]] == "ema:eta=0.25"
    assert labels[weights["slow"]] == "ema:eta=0.01"
    assert labels[weights["slow-ray"]] == f"shrink:to={weights['slow']}"
    assert labels[weights["fast-ray"]] == f"shrink:to={weights['shadow']}"
    assert labels[weights["half"]] == "interpolate:alpha=0.5"
    assert labels[weights["patched"]] == "one-shot:epochs=2"
    # Each is carried once, and what every run carries is in all of them.
    assert len(set(methods)) == len(methods)
    for config in plan.runs.values():
        assert {"interpolate:alpha=0.2", "interpolate:alpha=0.5"} <= set(config.method)


def test_references_follow_the_method_of_their_own_list() -> None:
    """Also where they stand before it, and where another arm's of the same name was there first."""
    plan = plan_of(
        arms={
            "other": {"method": ["ema:eta=0.5"]},
            "forward": {"method": ["shrink:to=ema", "ema:eta=0.05"], "weights": "shrink"},
            "chain": {"method": ["random:to=shrink", "shrink:to=ema", "ema:eta=0.2"], "weights": "random"},
            "fed-back": {"method": ["ema:eta=0.5,mode=feedback,every=3"]},
        },
        beside=["ema:eta=0.01", "shrink:to=ema"],
    )
    places = points_of(plan)
    methods = plan.runs[places["other"][0].rpartition("/")[2]].method
    text = {method.label: spec for method, spec in zip(make_methods(methods), methods, strict=True)}

    def behind(label: str) -> str:
        return text[text[label].rpartition("to=")[2]]

    assert behind(places["forward"][1]) == "ema:eta=0.05"
    assert behind(text[places["chain"][1]].rpartition("to=")[2]) == "ema:eta=0.2"
    for run, config in plan.runs.items():
        methods = config.method
        text = {method.label: spec for method, spec in zip(make_methods(methods), methods, strict=True)}
        assert any(spec.startswith("shrink") and behind(label) == "ema:eta=0.01" for label, spec in text.items()), run


def test_repeated_draws_are_one_arm_and_near_values_are_two() -> None:
    drawn = plan_of(random={"schedule": {"choices": ["linear", "cosine"]}}, budget=9)
    assert {point.arm for point in drawn.record.points} == {"schedule=linear", "schedule=cosine"}
    near = plan_of(grid={"lr": [1.00001e-4, 1.00002e-4, 0.1]})
    assert [point.arm for point in near.record.points] == ["lr=0.000100001", "lr=0.000100002", "lr=0.1"]


def test_a_method_that_acts_after_one_that_looks_on_keeps_its_own_run() -> None:
    """The order of methods is the order in which they see the weights: a shadow taken before l2sp pulls is another."""
    plan = plan_of(
        arms={
            "plain": {},
            "after": {"method": ["l2sp:strength=1,mode=decoupled", "ema"]},
            "before": {"method": ["ema", "l2sp:strength=1,mode=decoupled"]},
        }
    )
    places = points_of(plan)
    assert len({run for run, _ in places.values()}) == 3
    assert places["before"][1] == places["after"][1] == "ema"


def test_reports_know_the_methods_that_stand_beside() -> None:
    """Analyses import no method, so they have a list of their own: it names the same ones, EMA's shadow apart."""
    needed = {"shrink": "shrink:to=final", "early-stop": "early-stop:step=1", "safe-lora": "safe-lora:layers=1"}
    beside = {name for name in REGISTRY if make_method(needed.get(name, name)).stands_beside}
    assert beside - {"baseline", "ema"} == set(BESIDE)
    assert Method("ema", {"mode": "shadow"}).is_shadow and make_method("ema").stands_beside
    assert not Method("ema", {"mode": "feedback"}).is_shadow and not make_method("ema:mode=feedback").stands_beside


def test_lookahead_means_its_slow_weights() -> None:
    plan = plan_of(
        arms={"k": {"method": ["ema:eta=0.5,mode=feedback,every=5"]}, "one": {"method": ["ema:mode=feedback"]}}
    )
    assert {arm: weights for arm, (_, weights) in points_of(plan).items()} == {"k": "ema", "one": "final"}


def test_an_address_follows_what_decides_a_run_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run(tmp_path)
    address = run_address(config, "cpu")
    same = [{"out": tmp_path / "elsewhere"}, {"report_to": ["wandb"]}, {"save_every": 2}]
    other: list[dict[str, Any]] = [{"threads": 2}, {"seed": 1}, {"lr": 2e-2}, {"method": ["ema"]}, {"drift": False}]
    assert {run_address(config.model_copy(update=change), "cpu") for change in same} == {address}
    changed = {run_address(config.model_copy(update=change), "cpu") for change in other}
    assert len(changed) == len(other) and address not in changed
    assert run_address(config, "cuda") != address
    data = Path(config.data)
    monkeypatch.chdir(tmp_path)
    for name in (data.name, f"./{data.name}"):
        assert run_address(config.model_copy(update={"data": name}), "cpu") == address, "the same file by another name"
    for named in (
        {"eval_prompts": ["harmful= extra.jsonl"]},
        {"safety_data": "extra.jsonl:unsafe"},
        {"method": ["spf:anchor=extra.jsonl"]},
    ):
        (tmp_path / "extra.jsonl").write_text("one\n", encoding="utf-8")
        first = run_address(config.model_copy(update=named), "cpu")
        (tmp_path / "extra.jsonl").write_text("two\n", encoding="utf-8")
        assert run_address(config.model_copy(update=named), "cpu") != first, named
    before = data.read_text(encoding="utf-8")
    data.write_text(before + before.splitlines()[0] + "\n", encoding="utf-8")
    assert run_address(config, "cpu") != address, "the file's name is the same, its content is not"
    data.write_text(before, encoding="utf-8")
    assert run_address(config, "cpu") == address
    weights = next(Path(config.model).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    assert run_address(config, "cpu") != address


def test_threads_are_part_of_the_address() -> None:
    spec = make_sweep({"arms": {"a": {}}})
    one, two = make_plan(spec, 1, "cpu"), make_plan(spec, 2, "cpu")
    assert not set(one.runs) & set(two.runs)
    stated = make_sweep({"arms": {"a": {"threads": 1}}})
    assert set(make_plan(stated, 2, "cpu").runs) == set(one.runs)


def test_the_record_reads_back(tmp_path: Path) -> None:
    plan = plan_of(arms={"a": {"family": "x"}, "b": {"controls": ["a"], "method": ["ema", "swa"]}}, reference="a")
    write_sweep(tmp_path, plan.record)
    read = read_sweep(tmp_path)
    assert read == plan.record
    assert isinstance(read, SweepRecord)
    assert (read.controls, read.families) == ({"b": ["a"]}, {"a": "x", "b": "ema + swa"})
    (tmp_path / "sweep.json").write_text(json.dumps({"schema_version": "geomsafe.sweep/9"}), encoding="utf-8")
    with pytest.raises(Exception, match="geomsafe.sweep/9"):
        read_sweep(tmp_path)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_can_be_run(name: str) -> None:
    """Every setting and method of every arm is valid, every control is an arm, and each arm has one run a seed."""
    spec = load_preset(name)
    plan = make_plan(spec, 1, "cpu")
    assert len(plan.record.points) == len(list(spec.all_arms())) * len(spec.conditions or [1]) * len(spec.seeds)
    assert spec.reference in spec.arms
    assert len(spec.seeds) >= 3
    assert not {0, 1, 2} & set(spec.seeds), "the seeds on which the organism's rates were chosen"
    for config in plan.runs.values():
        make_methods(make_config(config.model_dump()).methods)


def test_paper_b_names_ten_arms_under_four_conditions() -> None:
    spec = load_preset("paper-b")
    assert (len(spec.arms), list(spec.conditions)) == (10, ["benign", "harmful-10", "harmful-50", "deep"])


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "nothing to run: give arms, grid, or random with budget"),
    ({"arm": {"a": {}}}, "unknown key 'arm': did you mean 'arms'"),
    ({"arms": {"a": {"learning_rate": 1}}}, "unknown setting 'learning_rate'"),
    ({"arms": {"a": {"batchsize": 1}}}, "unknown setting 'batchsize': did you mean 'batch_size'"),
    ({"arms": {"a": {"seed": 1}}}, "setting 'seed' is the sweep's own: seeds go under 'seeds'"),
    ({"base": {"out": "x"}, "arms": {"a": {}}}, "setting 'out' is the sweep's own"),
    ({"arms": {"a": {"lora.rang": 1}}}, "unknown setting 'lora.rang': nested ones are lora.rank"),
    ({"grid": {"lr": 1e-3}}, "grid.lr"),
    ({"random": {"lr": {"low": 1, "high": 2}}}, "'random' and 'budget' go together"),
    ({"random": {"lr": {"low": 2, "high": 1}}, "budget": 2}, "low < high"),
    ({"random": {"lr": {"low": 0, "high": 1, "log": True}}, "budget": 2}, "log needs low > 0, not 0"),
    ({"random": {"lr": {"low": 0, "hihg": 1}}, "budget": 2}, "did you mean 'high'"),
    ({"arms": {"a": {"controls": ["b"]}}}, "arm 'a' has control 'b', which is no other arm"),
    ({"arms": {"a": {"controls": ["a"]}}}, "which is no other arm"),
    ({"arms": {"careless": {}}, "reference": "carless"}, "reference 'carless' is no arm: did you mean 'careless'"),
    ({"arms": {"a": {}}, "seeds": [1, 1]}, "repeat one"),
    ({"arms": {"a": {"lr": -1}}}, "arm 'a': setting 'lr' = -1"),
    ({"arms": {"a": {"method": ["emma"]}}}, "arm 'a': unknown method 'emma': did you mean 'ema'"),
    ({"arms": {"a": {"method": ["ema"], "weights": "swa"}}}, "no weight set 'swa': choose one of final, ema"),
    ({"arms": {"a": {"weights": "step-50", "save_weights_at": [50]}}}, "choose one of final, step-000050"),
    (
        {"arms": {"a": {"method": ["spf"], "weights": "spf"}}},
        "arm 'a': it has no weight set 'spf': choose one of final",
    ),
    ({"arms": {"a": {"method": ["ema:mode=feedback"], "weights": "ema"}}}, "no weight set 'ema': choose one of final"),
    ({"arms": {"a": {"method": ["shrink:to=ema"]}, "b": {"method": ["ema"]}}}, "no weight set 'ema' beside it"),
    ({"arms": {"a": {}}, "beside": ["shrink:to=ema"]}, "no weight set 'ema' beside it: choose one of final"),
    ({"arms": {"a": 0.1}}, "arms.a"),
    ({"arms": {"a": "ema"}}, "arms.a"),
    ({"grid": {"lr": []}}, "grid.lr"),
    ({"arms": {"a": {}}, "beside": ["spf"]}, "'beside' holds 'spf', which acts on training"),
    ({"arms": {"lr=0.1": {}}, "grid": {"lr": [0.1]}}, "two arms named 'lr=0.1'"),
]


@pytest.mark.parametrize(("spec", "said"), BAD, ids=[said for _, said in BAD])
def test_mistakes_name_the_thing_and_the_remedy(spec: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(spec), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        make_plan(load_sweep(path), 1, "cpu")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_names_the_near_one() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'paper-c': did you mean 'paper-"):
        load_preset("paper-c")
