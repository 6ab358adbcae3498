"""The metric that Adam puts on gradients, read from the optimizer's own state.

What is covered: torch's Adam and AdamW, with amsgrad, with settings that differ by group, fused or not, and as
accelerate wraps them. What is not: optimizers that only resemble Adam (8-bit states, Adafactor, NAdam), which are
refused by name, since their step is not P * m_hat.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from geomsafe.errors import ModelError
from geomsafe.models import base_parameter_name


def adam_preconditioner(model: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """Read P = 1 / (sqrt(v_hat) + eps) of every trained weight; a step is theta -= lr P m_hat, weight decay aside.

    v_hat = v / (1 - beta2^t) is the bias-corrected mean of squared gradients after t steps, with amsgrad the largest
    v so far in place of v (Kingma & Ba 2015; Reddi et al. 2018). P weighs gradients as Adam does:
    <g_u, P g_s> is minus the change of the safety loss that a step along g_u would make, to first order and by lr.

    Args:
        model: the model that the optimizer trains, plain or peft.
        optimizer: torch's Adam or AdamW, or accelerate's wrapper around one.

    Returns:
        Base parameter name -> P, of the parameter's shape and on the device of Adam's state, in float32 (float64 for
        float64 state), positive. Under LoRA the trained weights are the factors, `...q_proj.lora_A.weight`: P is a
        metric on them and not on the effective weight. A weight that Adam has never moved, because no gradient has
        reached it, has P = 0: that is how a step treats it.

    Raises:
        ModelError: the optimizer is not Adam, has no state yet, or does not train this model's weights.
    """
    adam = _adam(optimizer)
    groups = {id(weight): group for group in adam.param_groups for weight in group["params"]}
    trained = _trained(model)
    strangers = [name for name, weight in trained.items() if id(weight) not in groups]
    if strangers:
        raise ModelError(
            f"the optimizer does not hold {len(strangers)} of {len(trained)} trained weights, the first is "
            f"'{strangers[0]}': pass the model that it was made for"
        )
    states = {name: adam.state.get(weight) for name, weight in trained.items()}
    if not any(states.values()):
        raise ModelError(
            f"{type(adam).__name__} has no state before its first step, so its preconditioner is undefined: "
            "measure after a step"
        )
    return {
        name: _inverse_root(state, groups[id(trained[name])]) if state else _unmoved(trained[name])
        for name, state in states.items()
    }


def _adam(optimizer: Any) -> torch.optim.Adam:
    inner = optimizer
    while not isinstance(inner, torch.optim.Adam) and hasattr(inner, "optimizer"):
        inner = inner.optimizer
    # AdamW is a kind of Adam in torch.
    if not isinstance(inner, torch.optim.Adam):
        raise ModelError(
            f"the optimizer is {type(inner).__name__}, which has no Adam preconditioner: "
            "train with torch's Adam or AdamW, or leave preconditioning out"
        )
    return inner


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what the optimizer moves, literally: under LoRA the factors, not the effective weights.

    Raises:
        ModelError: nothing is trained, or two adapters give two weights one name.
    """
    found: dict[str, nn.Parameter] = {}
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        base = base_parameter_name(name)
        if base in found:
            raise ModelError(
                f"two trained weights are called '{base}', the second is '{name}': keep one adapter active"
            )
        found[base] = weight
    if not found:
        raise ModelError(f"{type(model).__name__} has no trainable weight: all of its parameters are frozen")
    return found


def _inverse_root(state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    squares: Tensor = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
    correction = 1 - float(group["betas"][1]) ** float(state["step"])
    wide = squares.detach().to(torch.float64 if squares.dtype == torch.float64 else torch.float32)
    # In the order of torch's own step, so that rounding is the same too.
    return (wide.sqrt() / math.sqrt(correction)).add_(group["eps"]).reciprocal_()


def _unmoved(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight, dtype=torch.float64 if weight.dtype == torch.float64 else torch.float32)
