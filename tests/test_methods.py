"""EMA against a list-based reference and torch's own; what a specification may say; swapping weights.

Methods are driven by hand-written loops here; `test_methods_callback.py` has them inside a Trainer.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from reference import ema_of_lists
from tiny import tiny_model
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from geomsafe.errors import ConfigError, TrainingError
from geomsafe.methods import REGISTRY, Method, Schedule, make_method, make_methods

SCHEDULE = Schedule(total_steps=12, steps_per_epoch=4, lr=0.1)
FLOATS = st.floats(-1e3, 1e3, allow_nan=False, width=32)
PATHS = st.lists(st.lists(FLOATS, min_size=3, max_size=3), min_size=2, max_size=12)


class Point(nn.Module):
    """A model that is one vector, so that a path through weight space can be dictated."""

    def __init__(self, values: list[float], dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(values, dtype=dtype))

    def move(self, values: list[float]) -> None:
        """Go to given weights."""
        with torch.no_grad():
            self.weight.copy_(torch.tensor(values))


def walk(spec: str, path: list[list[float]], dtype: torch.dtype = torch.float64) -> tuple[Method, Point]:
    """Let a method watch a model go along a path; the first point is theta_0."""
    model, method = Point(path[0], dtype), make_method(spec)
    method.start(model, None, SCHEDULE)
    for step, values in enumerate(path[1:], start=1):
        model.move(values)
        method.after_step(model, step)
    return method, model


def average(method: Method, model: nn.Module) -> list[float]:
    """Read the `ema` weight set off the model."""
    with method.weight_sets()["ema"](model):
        return [float(value) for parameter in model.parameters() for value in parameter.detach().flatten()]


def lora_model(seed: int = 0) -> Any:
    """A float64 Llama with adapters whose B is not zero, so that delta W is not either."""
    model = get_peft_model(
        tiny_model("llama", dtype=torch.float64),
        LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        autocast_adapter_dtype=False,
    )
    model.to(torch.float64)
    shake(model, seed)
    return model


def shake(model: nn.Module, seed: int, scale: float = 0.1) -> None:
    """Move every trained parameter at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(scale * noise.to(parameter.dtype))


@settings(deadline=None, max_examples=60)
@given(path=PATHS, eta=st.floats(0, 1), every=st.integers(1, 4))
def test_shadow_equals_the_recursion_on_lists(path: list[list[float]], eta: float, every: int) -> None:
    method, model = walk(f"ema:eta={eta!r},every={every}", path)
    assert average(method, model) == pytest.approx(ema_of_lists(path, eta, every), rel=1e-12, abs=1e-9)


@settings(deadline=None, max_examples=30)
@given(path=PATHS)
def test_eta_one_is_the_last_iterate_and_eta_zero_is_theta_0(path: list[list[float]]) -> None:
    assert average(*walk("ema:eta=1", path)) == path[-1]
    assert average(*walk("ema:eta=0", path)) == path[0]


@settings(deadline=None, max_examples=30)
@given(path=PATHS, eta=st.floats(0, 1))
def test_the_average_stays_between_the_extremes_of_the_path(path: list[list[float]], eta: float) -> None:
    for place, value in enumerate(average(*walk(f"ema:eta={eta!r}", path))):
        along = [point[place] for point in path]
        assert min(along) - 1e-9 <= value <= max(along) + 1e-9


@settings(deadline=None, max_examples=30)
@given(point=st.lists(FLOATS, min_size=3, max_size=3), eta=st.floats(0, 1))
def test_frozen_weights_average_to_themselves(point: list[float], eta: float) -> None:
    assert average(*walk(f"ema:eta={eta!r}", [point] * 6)) == point


def test_shadow_equals_torchs_averaged_model_bitwise() -> None:
    model = tiny_model("gpt2")
    oracle = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay=0.75))
    oracle.update_parameters(model)  # its first update copies, which is theta_0
    method = make_method("ema")
    method.start(model, None, SCHEDULE)
    for step in range(1, 6):
        shake(model, step)
        method.after_step(model, step)
        oracle.update_parameters(model)
    with method.weight_sets()["ema"](model):
        for (name, ours), theirs in zip(model.named_parameters(), oracle.module.parameters(), strict=True):
            assert torch.equal(ours, theirs), name


def test_every_epoch_averages_at_the_end_of_epochs() -> None:
    path = [[float(step), -float(step), 1.0] for step in range(10)]
    by_epoch, by_step = walk("ema:unit=epoch", path), walk("ema:every=4", path)
    assert average(*by_epoch) == average(*by_step) == ema_of_lists(path, 0.25, 4)
    assert average(*by_epoch) != average(*walk("ema", path))


def optimise(spec: str, kind: str, lr: float, steps: int = 15) -> nn.Module:
    """Train a small float64 network for a few steps under a method."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    data, target = torch.randn(32, 6, dtype=torch.float64), torch.randn(32, 2, dtype=torch.float64)
    optimizer: torch.optim.Optimizer = (
        torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1)
        if kind == "adamw"
        else torch.optim.SGD(model.parameters(), lr=lr, weight_decay=0.1)
    )
    method = make_method(spec)
    method.start(model, optimizer, SCHEDULE)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(data), target).backward()
        optimizer.step()
        method.after_step(model, step)
    return model


def largest_difference(first: nn.Module, second: nn.Module) -> float:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return max(float((one - other).detach().abs().max()) for one, other in pairs)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_feedback_every_step_is_the_learning_rate_times_eta(kind: str) -> None:
    fed_back = optimise("ema:eta=0.25,mode=feedback", kind, lr=0.02)
    assert largest_difference(fed_back, optimise("baseline", kind, lr=0.005)) < 1e-9
    # The test can see the difference that the equality denies.
    assert largest_difference(fed_back, optimise("baseline", kind, lr=0.02)) > 1e-3
    assert largest_difference(fed_back, optimise("ema:mode=feedback,every=5", kind, lr=0.02)) > 1e-3


def test_feedback_every_k_steps_is_lookahead() -> None:
    path = [[float(step**2), 0.0, 1.0] for step in range(5)]
    model, method = Point(path[0]), make_method("ema:eta=0.5,mode=feedback,every=2")
    method.start(model, None, SCHEDULE)
    slow = list(path[0])
    for step, target in enumerate(path[1:], start=1):
        model.move(target)
        method.after_step(model, step)
        slow = [(a + b) / 2 for a, b in zip(slow, target, strict=True)] if step % 2 == 0 else slow
        assert model.weight.tolist() == (slow if step % 2 == 0 else target)


def test_feedback_logs_how_far_it_moves_back_and_at_which_rate() -> None:
    """Removed is the distance between theta before and after, effective_lr the optimizer's rate x eta at this step."""
    for spec, each_step in (("ema:eta=0.25,mode=feedback", True), ("ema:eta=0.25,mode=feedback,every=2", False)):
        model, method = Point([0.0, 0.0]), make_method(spec)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        method.start(model, optimizer, Schedule(4, 4, 0.5))
        for step, rate in ((1, 0.5), (2, 0.1)):
            optimizer.param_groups[0]["lr"] = rate
            model.move([3.0 * step, 4.0 * step])
            before = [weight.detach().clone() for weight in model.parameters()]
            log = method.after_step(model, step)
            if not each_step and step == 1:
                assert log == {}
                continue
            moved = sum(float((a - b).square().sum()) for a, b in zip(before, model.parameters(), strict=True)) ** 0.5
            assert log["removed"] == pytest.approx(moved, rel=1e-12) and moved > 0
            assert log.get("effective_lr") == (pytest.approx(0.25 * rate) if each_step else None)
    shadow = make_method("ema:eta=0.25")
    shadow.start(model, optimizer, Schedule(4, 4, 0.5))
    assert set(shadow.after_step(model, 1)) == {"gap"}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("make", [lambda: tiny_model("gpt2"), lora_model], ids=["full", "lora"])
def test_swapping_restores_bitwise_even_after_an_exception(make: Any, fails: bool) -> None:
    model, method = make(), make_method("ema")
    method.start(model, None, SCHEDULE)
    shake(model, 5)
    method.after_step(model, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        with method.weight_sets()["ema"](model):
            assert any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
            shake(model, 6)  # what happens inside must not reach the average either
            if fails:
                raise RuntimeError("inside")
    except RuntimeError:
        assert fails
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    with method.weight_sets()["ema"](model):
        inside = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with method.weight_sets()["ema"](model):
        assert all(torch.equal(tensor, inside[name]) for name, tensor in model.state_dict().items())


def test_bfloat16_weights_have_a_float32_average() -> None:
    method, model = walk("ema:eta=0.001", [[1.0, 2.0, 3.0], *[[1.0078125, 2.0, 3.0]] * 40], torch.bfloat16)
    kept = method.state_dict()["average.weight"]
    assert kept.dtype == torch.float32
    expected = ema_of_lists([[1.0], *[[1.0078125]] * 40], 0.001, 1)[0]
    assert float(kept[0]) == pytest.approx(expected, abs=1e-6)
    assert 1 < expected < 1.0078125 / 1.0039  # below one bfloat16 step from 1: a bfloat16 average would not move
    assert model.weight.dtype == torch.bfloat16


def test_product_space_averages_delta_w_and_saves_it_merged() -> None:
    model, method = lora_model(), make_method("ema")
    method.start(model, None, SCHEDULE)
    layers = {name: m for name, m in model.named_modules() if hasattr(m, "get_delta_weight")}
    path = {name: [layer.get_delta_weight("default").detach()] for name, layer in layers.items()}
    logs = []
    for step in range(1, 4):
        shake(model, step, 0.3)
        logs.append(method.after_step(model, step))
        for name, layer in layers.items():
            path[name].append(layer.get_delta_weight("default").detach())
    base = {name: layer.base_layer.weight.detach().clone() for name, layer in layers.items()}
    with method.weight_sets()["ema"](model):
        for name, layer in layers.items():
            merged = layer.base_layer.weight + layer.get_delta_weight("default")
            expected = ema_of_lists([delta.flatten().tolist() for delta in path[name]], 0.25, 1)
            assert (merged - base[name]).flatten().tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    moved = dict(method.displacement("ema") or ())
    assert moved.keys() == {f"{name.removeprefix('base_model.model.')}.weight" for name in layers}
    assert logs[-1]["factors_gap"] > 1e-3  # the average of factors is another model


def test_factor_space_averages_the_factors() -> None:
    model, method = lora_model(), make_method("ema:space=factors")
    method.start(model, None, SCHEDULE)
    name, factor = next((n, p) for n, p in model.named_parameters() if p.requires_grad)
    path = [factor.detach().flatten().tolist()]
    for step in range(1, 4):
        shake(model, step)
        method.after_step(model, step)
        path.append(factor.detach().flatten().tolist())
    assert method.displacement("ema") is None
    with method.weight_sets()["ema"](model):
        assert factor.flatten().tolist() == pytest.approx(ema_of_lists(path, 0.25, 1), rel=1e-12), name


def test_state_continues_where_it_was() -> None:
    for make in (lambda: tiny_model("llama"), lora_model):
        model = make()
        method = make_method("ema")
        method.start(model, None, SCHEDULE)
        shake(model, 1)
        method.after_step(model, 1)
        continued = make_method("ema")
        continued.start(model, None, SCHEDULE)
        continued.load_state_dict({name: tensor.clone() for name, tensor in method.state_dict().items()})
        shake(model, 2)
        assert method.after_step(model, 2) == continued.after_step(copy.deepcopy(model), 2)
        for name, tensor in method.state_dict().items():
            assert torch.equal(tensor, continued.state_dict()[name]), name
    with pytest.raises(TrainingError, match="does not fit this model"):
        continued.load_state_dict({})


@pytest.mark.parametrize(
    ("spec", "window", "lr", "weight_set"),
    [
        ("ema", 4, 0.1, "ema"),
        ("ema:eta=0.5,every=3", 6, 0.1, "ema"),
        ("ema:mode=feedback", 4, 0.025, "final"),
        ("ema:mode=feedback,unit=epoch", 16, None, "ema"),
        ("ema:eta=0", None, 0.1, "ema"),
        ("baseline", None, 0.1, "final"),
    ],
)
def test_a_method_describes_what_it_amounts_to(spec: str, window: Any, lr: Any, weight_set: str) -> None:
    method = make_method(spec)
    method.start(Point([0.0]), None, SCHEDULE)
    described = method.describe(SCHEDULE)
    assert described["effective_window_steps"] == window
    assert described["effective_lr"] == (lr if lr is None else pytest.approx(lr))
    assert described["weight_set"] == weight_set
    assert set(method.weight_sets()) == ({weight_set} - {"final"})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ena", "unknown method 'ena': did you mean 'ema'?"),
        ("dropout9", "known methods are "),
        ("ema:etta=0.1", "unknown option 'etta': did you mean 'eta'?"),
        ("ema:eta=2", "option 'eta' = 2: Input should be less than or equal to 1"),
        ("ema:mode=feed", "option 'mode' = 'feed': Input should be 'shadow' or 'feedback'"),
        ("ema:every=0", "option 'every' = 0"),
        ("ema:mode=feedback,space=product", "cannot be fed back into the factors: use space=factors"),
        ("baseline:eta=1", "unknown option 'eta': it has no options"),
    ],
)
def test_a_wrong_specification_is_named(spec: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_method(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_space_is_refused_without_adapters() -> None:
    with pytest.raises(ConfigError, match="space=factors is for LoRA runs"):
        make_method("ema:space=factors").start(tiny_model("llama"), None, SCHEDULE)


def test_methods_keep_their_order_and_get_names_of_their_own() -> None:
    methods = make_methods(["ema:eta=0.5", "baseline", "ema"])
    assert [method.label for method in methods] == ["ema", "baseline", "ema-2"]
    assert [method.name for method in make_methods([])] == ["baseline"]
    assert {"baseline", "ema"} <= set(REGISTRY)
    assert all(name == method.name for name, method in REGISTRY.items())
