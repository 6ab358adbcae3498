"""Measuring leaves the model bit for bit as it was found, after success and after an error; bad input is one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gradient_cases import lively_model, padded, some_examples, with_lora
from torch import Tensor, nn

from geomsafe.errors import DataError, ModelError, TrainingError
from geomsafe.gradients import gradient_dots, gradient_factors, gradient_gram, gradient_sketch

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)
MEASURES: dict[str, Callable[..., Any]] = {
    "gram": gradient_gram,
    "dots": lambda model, batch, **common: gradient_dots(model, batch, ones(model), **common),
    "sketch": lambda model, batch, **common: gradient_sketch(model, batch, dim=16, **common),
    "factors": gradient_factors,
}


def ones(model: Any) -> dict[str, Tensor]:
    return {name: torch.ones_like(weight) for name, weight in model.named_parameters() if weight.requires_grad}


def state(model: Any) -> list[Any]:
    """Everything a caller could notice. Identities as ids, tensors as copies."""
    parameters = [
        (name, id(weight), weight.data_ptr(), weight.requires_grad, id(weight.grad), len(weight._backward_hooks or ()))
        for name, weight in model.named_parameters(remove_duplicate=False)
    ]
    modules = [
        (name, type(module), module.training, module.__dict__.get("forward"), sorted(module.__dict__))
        for name, module in model.named_modules()
    ]
    hooks = [[dict(getattr(module, kind)) for kind in HOOKS] for module in model.modules()]
    return [parameters, modules, hooks, repr(getattr(model, "config", None)), torch.is_grad_enabled()]


def tensors(model: Any) -> list[Tensor]:
    found = [torch.get_rng_state()]
    for weight in [*model.parameters(), *model.buffers()]:
        found += [weight.detach().clone()] + ([weight.grad.clone()] if weight.grad is not None else [])
    return found


def in_training(lora: bool = False, arch: str = "gpt2") -> Any:
    """A model in the middle of a training step: gradients there, partly in train mode, with a hook of the user's."""
    model = lively_model(arch, torch.float32, **({"resid_pdrop": 0.2} if arch == "gpt2" else {}))
    model = with_lora(model) if lora else model
    model.train()
    next(module for name, module in model.named_modules() if name.endswith(".0")).eval()
    batch = padded(some_examples(3, seed=9))
    model(**batch).loss.backward()
    model.register_forward_hook(lambda *_: None)
    return model


class Failing(nn.Module):
    """Raises in the middle of the backward pass."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.inner(hidden)
        if output.requires_grad:
            output.register_hook(self.fail)
        return output

    def fail(self, _gradient: Tensor) -> None:
        raise RuntimeError("no gradient for you")


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(("lora", "arch"), [(False, "gpt2"), (True, "llama"), (False, "mixtral")])
def test_model_is_left_exactly_as_found(measure: str, lora: bool, arch: str) -> None:
    model = in_training(lora, arch)
    if measure == "dots" and lora:
        pytest.skip("directions of adapted weights are covered in test_gradients_dots")
    before, values = state(model), tensors(model)
    MEASURES[measure](model, padded(some_examples()))
    after = state(model)
    for old, new in zip(before, after, strict=True):
        assert old == new
    assert all(torch.equal(old, new) for old, new in zip(values, tensors(model), strict=True))


@pytest.mark.parametrize("measure", MEASURES)
def test_model_is_left_as_found_by_an_error_in_the_backward_pass(measure: str) -> None:
    model = in_training(arch="llama")
    model.model.layers[0].mlp = Failing(model.model.layers[0].mlp)
    before, values = state(model), tensors(model)
    with pytest.raises(RuntimeError, match="no gradient for you"):
        MEASURES[measure](model, padded(some_examples()))
    for old, new in zip(before, state(model), strict=True):
        assert old == new
    assert all(torch.equal(old, new) for old, new in zip(values, tensors(model), strict=True))


def test_a_parameter_that_takes_the_loop_leaves_no_trace_either() -> None:
    model = in_training(arch="llama")
    model.model.layers[0].mlp.register_parameter("odd", nn.Parameter(torch.ones(3)))
    inner = model.model.layers[0].mlp
    run = type(inner).forward
    inner.forward = lambda hidden: run(inner, hidden) * inner.odd.prod()
    before, values = state(model), tensors(model)
    found = gradient_gram(model, padded(some_examples()), parameters="all")
    assert "model.layers.0.mlp.odd" in found.slow
    for old, new in zip(before, state(model), strict=True):
        assert old == new
    assert all(torch.equal(old, new) for old, new in zip(values, tensors(model), strict=True))


def test_called_under_no_grad() -> None:
    """A caller's no_grad does not turn gradients into zeros."""
    model = lively_model("llama")
    wanted = gradient_gram(model, padded(some_examples())).total()
    with torch.no_grad():
        found = gradient_gram(model, padded(some_examples())).total()
    assert torch.equal(wanted, found) and float(found.diagonal().min()) > 0


def test_results_carry_no_graph() -> None:
    model = lively_model("llama")
    found = gradient_gram(model, padded(some_examples()))
    sketch = gradient_sketch(model, padded(some_examples()), dim=8)
    for tensor in [*found.values(), *sketch.values(), found.losses, found.total()]:
        assert not tensor.requires_grad


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", MEASURES)
def test_an_example_without_target_is_named(measure: str) -> None:
    model, batch = lively_model("llama"), padded(some_examples())
    batch["labels"][4] = -100
    batch["labels"][4, 0] = 7  # nothing predicts the first token
    before = state(model)
    with pytest.raises(DataError, match="4") as caught:
        MEASURES[measure](model, batch)
    assert "\n" not in str(caught.value) and "target" in str(caught.value)
    assert before == state(model)


@pytest.mark.parametrize("measure", MEASURES)
def test_an_empty_batch_is_an_error(measure: str) -> None:
    batch = {key: value[:0] for key, value in padded(some_examples()).items()}
    with pytest.raises(DataError, match="empty|no example|at least one"):
        MEASURES[measure](lively_model("llama"), batch)


def test_unknown_names_nothing_trainable_and_diverged_weights() -> None:
    model, batch = lively_model("llama"), padded(some_examples())
    with pytest.raises(ModelError, match=r"no\.such\.weight"):
        gradient_gram(model, batch, parameters=["model.norm.weight", "no.such.weight"])
    with pytest.raises(ModelError):
        gradient_gram(model, batch, parameters=[])
    literal = gradient_gram(model, batch, parameters="factors")  # without adapters: the trainable tensors
    assert torch.equal(literal.total(), gradient_gram(model, batch).total())
    with pytest.raises(ModelError, match="frozen"):
        gradient_gram(lively_model("llama").requires_grad_(False), batch)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="nan"):
        gradient_gram(model, batch)


def test_malformed_requests_name_the_value() -> None:
    model, batch = lively_model("llama"), padded(some_examples())
    with pytest.raises((DataError, ModelError, ValueError), match="reduction|median"):
        gradient_gram(model, batch, reduction="median")
    with pytest.raises(Exception, match="12 potatoes"):
        gradient_gram(model, batch, memory_budget="12 potatoes")
    with pytest.raises((DataError, ModelError, ValueError), match="dim|-3"):
        gradient_sketch(model, batch, dim=-3)
    wrong = dict(batch, labels=batch["labels"][:, :-1])
    with pytest.raises((DataError, ModelError, ValueError), match="labels|shape"):
        gradient_gram(model, wrong)
    with pytest.raises((DataError, ModelError, KeyError), match="labels"):
        gradient_gram(model, {key: batch[key] for key in ("input_ids", "attention_mask")})
