"""Adam's metric is the one that its own next step uses, for every kind of group and wrapper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from gradient_cases import padded, some_examples, with_lora
from tiny import tiny_model
from torch import Tensor

from geomsafe.errors import ModelError
from geomsafe.gradients import adam_preconditioner, token_losses
from geomsafe.models import base_parameter_name

BETAS = (0.8, 0.95)


def small(arch: str = "llama") -> Any:
    return tiny_model(arch, dtype=torch.float64, num_hidden_layers=1).requires_grad_(True)


def named(model: Any) -> dict[str, Tensor]:
    return {base_parameter_name(name): weight for name, weight in model.named_parameters() if weight.requires_grad}


def take_steps(model: Any, optimizer: Any, count: int) -> None:
    for seed in range(count):
        optimizer.zero_grad()
        measured = token_losses(model, padded(some_examples(2, seed)))
        (measured.losses.sum() / measured.tokens.sum()).backward()
        optimizer.step()


def values(model: Any) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in named(model).items()}


def step_error(model: Any, optimizer: torch.optim.Adam, before: dict[str, Tensor]) -> float:
    """Largest relative difference between the step just taken and lr P m_hat, over weights."""
    metric = adam_preconditioner(model, optimizer)
    errors = []
    for name, weight in named(model).items():
        group = next(g for g in optimizer.param_groups if any(p is weight for p in g["params"]))
        state = optimizer.state[weight]
        mean = state["exp_avg"] / (1 - group["betas"][0] ** float(state["step"]))
        predicted = before[name] - group["lr"] * metric[name] * mean
        moved = (weight.detach() - before[name]).norm()
        errors.append(float((weight.detach() - predicted).norm() / moved) if float(moved) else 0.0)
    return max(errors)


def error_after_steps(model: Any, optimizer: Any, inner: torch.optim.Adam) -> float:
    take_steps(model, optimizer, 3)
    before = values(model)
    take_steps(model, optimizer, 1)
    return step_error(model, inner, before)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("speed", ["plain", "foreach", "fused"])
def test_a_step_is_lr_times_the_metric_times_the_mean(kind: Any, amsgrad: bool, speed: str) -> None:
    model = small()
    quick = {} if speed == "plain" else {speed: True}
    optimizer = kind(model.parameters(), lr=3e-3, betas=BETAS, eps=1e-5, weight_decay=0.0, amsgrad=amsgrad, **quick)
    assert error_after_steps(model, optimizer, optimizer) < 1e-12


def test_groups_have_their_own_settings() -> None:
    model = small()
    weights = list(model.parameters())
    groups = [
        {"params": weights[:4], "betas": (0.9, 0.999), "eps": 1e-3, "lr": 1e-2},
        {"params": weights[4:], "betas": BETAS, "eps": 1e-8, "amsgrad": True},
    ]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, weight_decay=0.0)
    assert error_after_steps(model, optimizer, optimizer) < 1e-12


def test_the_comparison_sees_a_wrong_eps() -> None:
    """Negative control: the same step against a metric with another eps."""
    model = small()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, eps=1e-5)
    take_steps(model, optimizer, 1)
    before = values(model)
    take_steps(model, optimizer, 1)
    assert step_error(model, optimizer, before) < 1e-12
    optimizer.param_groups[0]["eps"] = 1.1e-5
    assert step_error(model, optimizer, before) > 1e-6


def test_accelerates_wrapper_is_seen_through() -> None:
    model = small()
    inner = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    wrapped = Accelerator(cpu=True).prepare_optimizer(inner)
    assert type(wrapped) is not type(inner)
    assert error_after_steps(model, wrapped, inner) < 1e-12
    assert list(adam_preconditioner(model, wrapped)) == list(named(model))


def test_lora_has_a_metric_on_its_factors() -> None:
    model = with_lora(small()).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    assert error_after_steps(model, optimizer, optimizer) < 1e-12
    names = list(adam_preconditioner(model, optimizer))
    assert "model.layers.0.self_attn.q_proj.lora_A.weight" in names
    assert all("lora_" in name for name in names)


def test_a_tied_weight_is_there_once() -> None:
    model = small("qwen2")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    take_steps(model, optimizer, 1)
    names = list(adam_preconditioner(model, optimizer))
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


def test_a_weight_without_gradient_is_not_moved() -> None:
    model = small()
    model.spare = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    take_steps(model, optimizer, 1)
    metric = adam_preconditioner(model, optimizer)
    assert metric["spare"].tolist() == [0.0, 0.0, 0.0]
    assert all(bool((value > 0).all()) for name, value in metric.items() if name != "spare")


def test_bfloat16_state_gives_float32() -> None:
    model = tiny_model("llama", dtype=torch.bfloat16, num_hidden_layers=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    take_steps(model, optimizer, 1)
    assert {value.dtype for value in adam_preconditioner(model, optimizer).values()} == {torch.float32}


def test_before_the_first_step_it_is_undefined() -> None:
    model = small()
    with pytest.raises(ModelError, match="AdamW has no state before its first step.*measure after a step"):
        adam_preconditioner(model, torch.optim.AdamW(model.parameters()))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.NAdam, torch.optim.Adagrad])
def test_another_optimizer_is_refused_by_name(kind: Any) -> None:
    model = small()
    with pytest.raises(ModelError, match=f"{kind.__name__}.*train with torch's Adam"):
        adam_preconditioner(model, kind(model.parameters(), lr=0.1))


def test_another_models_optimizer_is_refused() -> None:
    model = small()
    optimizer = torch.optim.AdamW(model.parameters())
    take_steps(model, optimizer, 1)
    with pytest.raises(ModelError, match=r"does not hold .* 'model.embed_tokens.weight'"):
        adam_preconditioner(small(), optimizer)
    with pytest.raises(ModelError, match="all of its parameters are frozen"):
        adam_preconditioner(small().requires_grad_(False), optimizer)
