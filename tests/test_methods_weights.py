"""Methods that act on weights, at the end and along the way, against their definitions over ten steps in float64.

All run inside a plain `transformers.Trainer` through `MethodsCallback`, with all weights trained, with tied
embeddings and with LoRA, where the definitions hold for W + (alpha / r) B A.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from method_paths import Fit, bits, difference, effective, fit, start_model
from reference import l2sp_by_hand, moved_norm, on_the_ray, uniform_mean
from tiny import tiny_model
from torch import nn

from geomsafe.errors import ConfigError, TrainingError
from geomsafe.methods import MethodsCallback, Origin, Schedule, make_method, make_methods

CLOSE = 1e-12
SPECS = [
    "ema:eta=0.1",
    "swa:start=0.6",
    "early-stop:step=4",
    "interpolate",
    "interpolate:alpha=-0.5",
    "shrink:distance=0.02",
    "shrink:relative=0.001",
    "shrink:to=ema",
    "random",
    "random:seed=1,norm=global",
    "random:to=ema",
]
KINDS = {"full": ("llama", False), "tied": ("gemma", False), "transposed": ("gpt2", False), "lora": ("llama", True)}
KINDS |= {"lora-transposed": ("gpt2", True)}


@pytest.fixture(scope="module", params=KINDS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Fit:
    arch, lora = KINDS[request.param]
    return fit(tmp_path_factory.mktemp("run"), SPECS, start_model(arch, lora))


def test_methods_at_the_end_leave_training_alone(run: Fit, tmp_path: Path) -> None:
    arch = run.model.config.model_type
    plain = fit(tmp_path, [], start_model(arch, hasattr(run.model, "peft_config")))
    assert all(torch.equal(plain.path[-1][name], run.path[-1][name]) for name in run.path[-1])
    assert difference(run.path[0], run.path[-1]) > 1e-3


def test_interpolation_is_the_line_through_theta_0(run: Fit) -> None:
    start, last = run.path[0], run.path[-1]
    assert difference(run.placed("interpolate"), on_the_ray(last, start, 0.5)) < CLOSE
    assert difference(run.placed("interpolate-2"), on_the_ray(last, start, -0.5)) < CLOSE
    assert difference(run.placed("interpolate"), on_the_ray(last, start, 0.51)) > 1e-6


def test_shrinkage_keeps_the_direction_and_takes_the_distance(run: Fit) -> None:
    start, last = run.path[0], run.path[-1]
    wanted = {
        "shrink": 0.02,
        "shrink-2": 0.001 * moved_norm(start, {name: torch.zeros_like(start[name]) for name in start}),
        "shrink-3": moved_norm(run.placed("ema"), start),
    }
    for name, distance in wanted.items():
        factor = distance / moved_norm(last, start)
        assert moved_norm(run.placed(name), start) == pytest.approx(distance, rel=1e-9), name
        assert difference(run.placed(name), on_the_ray(last, start, factor)) < 1e-11, name
    assert wanted["shrink-3"] != pytest.approx(moved_norm(last, start), rel=1e-2)


def test_a_random_direction_has_equal_norm_and_is_random(run: Fit) -> None:
    start, last = run.path[0], run.path[-1]
    by_tensor, in_all = run.placed("random"), run.placed("random-2")
    for name in start:
        one = {name: start[name]}
        assert moved_norm(by_tensor, one) == pytest.approx(moved_norm(last, one), rel=1e-6, abs=1e-15), name
        assert moved_norm(run.placed("random-3"), one) == pytest.approx(
            moved_norm(run.placed("ema"), one), rel=1e-6, abs=1e-15
        )
    assert moved_norm(in_all, start) == pytest.approx(moved_norm(last, start), rel=1e-9)
    profile = [moved_norm(in_all, {name: start[name]}) / start[name].numel() ** 0.5 for name in start]
    assert max(profile) < 3 * min(profile), "isotropic: the same size an element everywhere"
    trained = torch.cat([(last[name] - start[name]).flatten() for name in start])
    drawn = torch.cat([(by_tensor[name] - start[name]).flatten() for name in start])
    assert abs(float(torch.cosine_similarity(trained, drawn, dim=0))) < 0.05


def test_the_draw_depends_on_seed_and_name_alone(run: Fit) -> None:
    before = torch.get_rng_state()
    first, again = run.placed("random"), run.placed("random")
    assert torch.equal(before, torch.get_rng_state())
    assert difference(first, again) == 0
    start = run.path[0]
    drawn = {name: (first[name] - start[name]).flatten() for name in start}
    shapes: dict[int, str] = {}
    for name, values in drawn.items():
        other = shapes.setdefault(len(values), name)
        if other != name and values.norm() and drawn[other].norm():
            assert abs(float(torch.cosine_similarity(values, drawn[other], dim=0))) < 0.9, (name, other)


def test_swa_is_the_uniform_mean_of_the_tail(run: Fit) -> None:
    assert difference(run.placed("swa"), uniform_mean(run.path[7:])) < CLOSE  # 0.6 of ten steps: 7, 8, 9, 10
    assert difference(run.placed("swa"), uniform_mean(run.path[6:])) > 1e-6
    assert [row["methods"].get("swa", {}).get("averaged") for row in run.log] == [None] * 6 + [1, 2, 3, 4]


def test_early_stop_is_the_iterate_of_that_step_to_the_bit(run: Fit) -> None:
    assert difference(run.placed("early-stop"), run.path[4]) == 0
    assert difference(run.placed("early-stop"), run.path[5]) > 0


def test_every_set_leaves_the_model_bitwise_as_it_was(run: Fit) -> None:
    before = bits(run.model)
    for method in run.methods.values():
        for name, placed in method.weight_sets().items():
            with pytest.raises(RuntimeError, match="inside"), placed(run.model):
                assert any(not torch.equal(tensor, before[key]) for key, tensor in run.model.state_dict().items()), name
                raise RuntimeError("inside")
            assert all(torch.equal(tensor, before[key]) for key, tensor in run.model.state_dict().items()), name


def test_what_a_merged_set_says_of_its_displacement_is_true(run: Fit) -> None:
    adapted = hasattr(run.model, "peft_config")
    for name in ("interpolate", "shrink-3", "random", "swa"):
        with run.methods[name].weight_sets()[name](run.model):
            said = run.methods[name].displacement(name)
            assert (said is not None) == adapted
            now = effective(run.model)
            for key, change in said or ():
                assert float((now[key] - run.path[0][key] - change).abs().max()) < CLOSE


def test_the_record_names_the_sets(run: Fit) -> None:
    assert [entry["weight_set"] for entry in run.described] == [entry["label"] for entry in run.described]
    described = {entry["label"]: entry for entry in run.described}
    assert described["swa"]["effective_window_steps"] == 4
    assert described["early-stop"]["at_step"] == 4


@pytest.mark.parametrize("lora", [False, True])
def test_a_resumed_run_has_the_same_bits(tmp_path: Path, lora: bool) -> None:
    specs = ["swa:start=0.2,every=2", "early-stop:share=0.31", "shrink:to=swa", "random", "l2sp:mode=decoupled"]
    found = []
    for resume in (None, str(tmp_path / "checkpoint-5")):
        done = fit(tmp_path, specs, start_model(lora=lora), resume, save_steps=5, save_strategy="steps")
        found.append({name: done.placed(name) for name in ("swa", "early-stop", "shrink", "random")})
    assert len(done.path) == 5, "the second one did resume"
    for name, weights in found[0].items():
        assert difference(weights, found[1][name]) == 0, name


def test_interpolation_at_the_ends_is_exact(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        specs = ["interpolate:alpha=1", "interpolate:alpha=0"]
        done = fit(tmp_path / str(dtype), specs, start_model(dtype=dtype), max_steps=2)
        assert difference(done.placed("interpolate"), done.path[-1]) == 0
        assert difference(done.placed("interpolate-2"), done.path[0]) == 0
        assert difference(done.path[0], done.path[-1]) > 0


def test_training_that_does_not_move_has_no_ray(tmp_path: Path) -> None:
    done = fit(tmp_path, ["shrink:distance=1", "random"], learning_rate=0.0, max_steps=2)
    assert difference(done.placed("shrink"), done.path[0]) == 0
    assert difference(done.placed("random"), done.path[0]) == 0


def test_a_set_that_is_not_there_is_named_when_training_begins(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="method shrink: the run has no weight set 'ema': choose one of final, swa"):
        fit(tmp_path, ["swa", "shrink:to=ema"])
    with pytest.raises(ConfigError, match="method random: the run has no weight set 'ema': choose one of final$"):
        fit(tmp_path, ["ema:mode=feedback", "random:to=ema"])
    with pytest.raises(ConfigError, match="step=11 is beyond the run's 10 steps"):
        fit(tmp_path, ["early-stop:step=11"])


def test_weights_that_are_not_there_yet_are_refused(tmp_path: Path) -> None:
    callback = MethodsCallback(make_methods(["swa", "early-stop:step=3"]))
    callback.schedule = Schedule(total_steps=8, steps_per_epoch=8, lr=0.1)
    model = start_model()
    callback.begin(model, None, 0, tmp_path)
    for method, said in zip(callback.methods, ("first is that of step 7", "step 3 has not been reached"), strict=True):
        with pytest.raises(TrainingError, match=said), method.weight_sets()[method.label](model):
            pass


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("shrink", "give exactly one of distance=, relative= and to=, not none"),
        ("shrink:distance=1,to=ema", "not distance and to"),
        ("shrink:distance=-1", "option 'distance' = -1"),
        ("early-stop", "give either step= or share="),
        ("early-stop:step=1,share=0.5", "give either step= or share="),
        ("early-stop:share=0", "option 'share' = 0"),
        ("swa:start=1", "option 'start' = 1"),
        ("random:norm=layer", "Input should be 'tensor' or 'global'"),
        ("interpolate:alpha=inf", "option 'alpha'"),
        ("l2sp:strength=-1", "option 'strength' = -1"),
    ],
)
def test_a_wrong_option_is_named(spec: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_method(spec)
    assert said in str(caught.value)


# --- L2-SP -------------------------------------------------------------------------------------------------------


def batches(count: int = 10) -> list[Any]:
    """Loss functions of a small float64 network, one a step."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        data, target = (torch.randn(8, size, dtype=torch.float64, generator=generator) for size in (6, 2))
        made.append(lambda model, x=data, y=target: nn.functional.mse_loss(model(x), y))
    return made


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def pulled(mode: str, kind: str, strength: float = 0.7) -> dict[str, torch.Tensor]:
    """Ten steps with the method, in a loop by hand."""
    model, method = network(), make_method(f"l2sp:mode={mode},strength={strength}")
    optimizer: torch.optim.Optimizer = (
        torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.0)
        if kind == "adamw"
        else torch.optim.SGD(model.parameters(), lr=0.02)
    )
    method.origin = Origin(model)
    method.start(model, optimizer, Schedule(10, 10, 0.02))
    for step, loss_of in enumerate(batches(), start=1):
        optimizer.zero_grad()
        loss_of(model).backward()
        method.on_gradient(model, step)
        optimizer.step()
        method.after_step(model, step)
    return {name: weight.detach() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("mode", ["coupled", "decoupled"])
def test_l2sp_equals_the_penalty_written_out(mode: str, kind: str) -> None:
    assert difference(pulled(mode, kind), l2sp_by_hand(network(), batches(), 0.02, 0.7, mode, kind)) < CLOSE
    assert difference(pulled(mode, kind), l2sp_by_hand(network(), batches(), 0.02, 0.0, mode, kind)) > 1e-5
    other = "decoupled" if mode == "coupled" else "coupled"
    if kind == "adamw":  # for SGD they differ too, in second order
        assert difference(pulled(mode, kind), l2sp_by_hand(network(), batches(), 0.02, 0.7, other, kind)) > 1e-5


def test_without_strength_l2sp_changes_no_bit(tmp_path: Path) -> None:
    plain = fit(tmp_path / "plain", [], max_steps=3)
    for mode in ("coupled", "decoupled"):
        done = fit(tmp_path / mode, [f"l2sp:strength=0,mode={mode}"], max_steps=3)
        assert difference(plain.path[-1], done.path[-1]) == 0


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("mode", ["coupled", "decoupled"])
def test_l2sp_keeps_the_model_nearer_in_a_trainer(tmp_path: Path, mode: str, lora: bool) -> None:
    distances = []
    for strength in (0.0, 30.0):
        model = start_model(lora=lora)
        done = fit(tmp_path / f"{strength}", [f"l2sp:mode={mode},strength={strength}"], model)
        distances.append(moved_norm(done.path[-1], done.path[0]))
        pull = [row["methods"]["l2sp"]["pull"] for row in done.log]
        assert (max(pull) > 0) == (strength > 0)
    assert distances[1] < 0.9 * distances[0]


def test_under_lora_the_pull_is_that_of_delta_w() -> None:
    for arch in ("llama", "gpt2"):
        model = start_model(arch, lora=True)
        method = make_method("l2sp:strength=0.3")
        method.origin = Origin(model)
        start = effective(model)
        generator = torch.Generator().manual_seed(0)
        factors = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        with torch.no_grad():
            for weight in factors.values():
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
        log = method.on_gradient(model, 1)
        # 0.3 / 2 ||dW||^2 by central differences in a few places of each factor
        assert log["penalty"] == pytest.approx(0.15 * moved_norm(effective(model), start) ** 2, rel=1e-12)
        for name, weight in list(factors.items())[:6]:
            place, sides = (0, 1), []
            for side in (1e-5, -1e-5):
                with torch.no_grad():
                    weight[place] += side
                    sides.append(0.15 * moved_norm(effective(model), start) ** 2)
                    weight[place] -= side
            assert float(weight.grad[place]) == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-5, abs=1e-9), name


def test_decoupled_under_lora_shrinks_delta_w_and_not_the_input_factor() -> None:
    model = start_model(lora=True)
    method = make_method("l2sp:strength=2,mode=decoupled")
    method.origin = Origin(model)
    start = effective(model)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    method.start(model, torch.optim.SGD(trained, lr=0.05), Schedule(10, 10, 0.05))
    with torch.no_grad():
        for weight in trained:
            weight.add_(0.1)
    before = effective(model)
    inputs = {name: weight.clone() for name, weight in model.named_parameters() if "lora_A" in name}
    log = method.after_step(model, 1)
    assert difference(effective(model), on_the_ray(before, start, 0.9)) < CLOSE
    assert log["pull"] == pytest.approx(0.1 * moved_norm(before, start), rel=1e-12)
    assert all(torch.equal(weight, inputs[name]) for name, weight in model.named_parameters() if name in inputs)
    continued = make_method("l2sp:mode=decoupled")
    continued.origin = Origin(model)
    with pytest.raises(ConfigError, match="needs LoRA factors that start at B A = 0: use mode=coupled"):
        continued.start(model, None, Schedule(10, 10, 0.05))


def test_a_pull_beyond_theta_0_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="strength must be at most 333.333"):
        fit(tmp_path, ["l2sp:strength=400,mode=decoupled"])


def test_a_continued_adapter_starts_where_it_is(tmp_path: Path) -> None:
    model = start_model(lora=True)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.01)
    done = fit(tmp_path, ["interpolate", "shrink:distance=0.01"], model, max_steps=4)
    start, last = done.path[0], done.path[-1]
    assert difference(done.placed("interpolate"), on_the_ray(last, start, 0.5)) < CLOSE
    assert moved_norm(done.placed("shrink"), start) == pytest.approx(0.01, rel=1e-9)


def test_theta_0_of_another_model_is_refused() -> None:
    origin = Origin(tiny_model("llama"))
    with pytest.raises(TrainingError, match="theta_0 does not fit this model"):
        origin.load_state_dict(Origin(tiny_model("gpt2")).state_dict())
