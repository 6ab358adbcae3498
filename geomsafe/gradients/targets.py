"""Which weights gradients are taken of, under names that a run with and without LoRA shares."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import Module, Parameter

from geomsafe.errors import ModelError
from geomsafe.models import base_parameter_name, lora_layers, trained_parameters


@contextmanager
def gradient_targets(model: Any, parameters: str | Collection[str] | None = None) -> Iterator[dict[str, Parameter]]:
    """Give the weights that gradients are taken of, ready for `torch.autograd.grad`.

    They are the effective weights of `geomsafe.models`. Full fine-tuning: the trainable
    parameters; a tied weight has its first name. LoRA: the base weights that carry adapters
    (the gradient with respect to a base weight W is the one with respect to the effective
    update dW, while gradients of the factors A and B depend on how dW is split between
    them), and whatever else is trainable. While the body runs, each such base weight is
    replaced by a leaf that shares its storage: the weight itself stays frozen, and where it
    is tied to another layer that layer's use of it does not leak into the gradient.

    Args:
        model: a transformers model or a peft model with LoRA adapters.
        parameters: None for the effective trained weights; "factors" for the trainable tensors as
            they are, LoRA's A and B among them (their gradients depend on how dW is split); "all"
            for every floating-point weight, frozen ones and LoRA's factors too; or names.

    Yields:
        Base model parameter name to parameter, in the model's order; never empty.

    Raises:
        ModelError: nothing is trainable, a name is unknown, or an adapter lies on a weight that has
            no gradient.
    """
    if parameters == "factors" or parameters == "all":
        yield _literal(model, frozen=parameters == "all")
        return
    if isinstance(parameters, str):
        raise ModelError(f"parameters '{parameters}' is unknown: choose factors, all or a list of parameter names")
    if parameters is not None:
        with _named(model, list(parameters)) as named:
            yield named
        return
    layers = lora_layers(model)
    trained = trained_parameters(model)
    if not layers and not trained:
        raise ModelError(f"{type(model).__name__} has no trainable weight to measure: all of its parameters are frozen")
    owners = {name: _weight_owner(name, layer) for name, layer in layers.items()}
    replaced: list[tuple[Module, str, Parameter]] = []
    targets: dict[str, Parameter] = {}
    try:
        for name, (owner, attribute, weight) in owners.items():
            targets[name] = Parameter(weight.detach(), requires_grad=True)
            replaced.append((owner, attribute, weight))
            owner._parameters[attribute] = targets[name]
        yield targets | trained
    finally:
        for owner, attribute, weight in replaced:
            owner._parameters[attribute] = weight


def _literal(model: Any, *, frozen: bool) -> dict[str, Parameter]:
    found: dict[str, Parameter] = {}
    for name, weight in model.named_parameters():
        if not weight.is_floating_point() or not (frozen or weight.requires_grad):
            continue
        base = base_parameter_name(name)
        if base in found:
            raise ModelError(f"'{name}' is a second tensor called '{base}': several adapters are active, keep one")
        found[base] = weight
    if not found:
        raise ModelError(f"{type(model).__name__} has no trainable weight to measure: all of its parameters are frozen")
    return found


@contextmanager
def _named(model: Any, names: list[str]) -> Iterator[dict[str, Parameter]]:
    # Effective weights first, so that a name means the same with and without the others.
    trained = trained_parameters(model)
    everything = _literal(model, frozen=True)
    unknown = sorted(set(names) - set(everything))
    if unknown or not names:
        known = ", ".join(f"'{name}'" for name in [*everything][:3])
        raise ModelError(
            f"parameters {unknown} are not in {type(model).__name__}: it has {len(everything)}, e.g. {known}"
        )
    adapted = set(lora_layers(model)) & set(names)
    effective: dict[str, Parameter] = {}
    if adapted:
        with gradient_targets(model) as effective:
            yield {n: effective.get(n, everything[n]) for n in everything if n in set(names)}
        return
    yield {n: trained.get(n, everything[n]) for n in everything if n in set(names)}


def target_shapes(model: Any) -> dict[str, torch.Size]:
    """Return the name and shape of every weight that gradients are taken of."""
    with gradient_targets(model) as targets:
        return {name: weight.shape for name, weight in targets.items()}


def _weight_owner(name: str, layer: Any) -> tuple[Module, str, Parameter]:
    owner: Any = layer.get_base_layer()
    # Adapters of two fused expert weights of one module lie one in the other.
    while hasattr(owner, "get_base_layer"):
        owner = owner.get_base_layer()
    attribute = getattr(layer, "parameter_name", "weight")
    weight = owner._parameters.get(attribute)
    if weight is None or not weight.is_floating_point():
        raise ModelError(
            f"the adapter of '{name}' lies on {type(owner).__name__} without a plain '{attribute}' (quantized?): "
            "probes need a base model in float32, bfloat16 or float16"
        )
    return owner, attribute, weight
