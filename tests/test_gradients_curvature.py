"""Hessian products and eigenvalues equal those of a dense Hessian, and the model does not notice."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from gradient_cases import padded, with_lora
from peft import LoraConfig, get_peft_model
from reference import slow_hessian
from tiny import ARCHITECTURES, tiny_model
from torch import Tensor

from geomsafe.errors import ConfigError, DataError, GeomsafeError, ModelError, TrainingError
from geomsafe.gradients import curvature_along, hessian_vector, target_shapes, token_losses, top_eigenvalues
from geomsafe.gradients.hessian import BACKWARD, FORWARD, Hessian
from geomsafe.gradients.memory import saved_bytes
from geomsafe.models import base_parameter_name

VOCABULARY = 24
EXAMPLES = [
    ([3, 9, 14, 20, 7], [-100, -100, 14, 20, 7]),
    ([5, 11, 6], [-100, -100, 6]),
    ([8, 21, 13, 10, 19, 4, 17], [-100, -100, -100, 10, 19, 4, 17]),
]
TOKENS = [3, 1, 4]
REDUCTIONS = {
    "token-mean": [1 / 8, 1 / 8, 1 / 8],
    "mean": [1 / (3 * count) for count in TOKENS],
    "sum": [1.0, 1.0, 1.0],
}
# Norms and rotary embeddings work in float32 inside transformers, even in a float64 model; GPT-2's do not.
TOLERANCE = {"gpt2": 1e-11}
SMALL = {
    "llama": ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight", "model.norm.weight"),
    "qwen2": ("model.layers.0.self_attn.k_proj.bias", "model.embed_tokens.weight", "model.norm.weight"),
    "gemma": ("model.layers.0.self_attn.o_proj.weight", "model.layers.0.input_layernorm.weight"),
    "gpt2": ("transformer.h.0.ln_1.bias", "transformer.h.0.attn.c_proj.weight"),
    "mixtral": ("model.layers.0.mlp.gate.weight", "model.layers.0.mlp.experts.down_proj"),
}  # fmt: skip


def small_model(arch: str = "llama", seed: int = 0) -> Any:
    """A few hundred weights: one layer of width 8. Mixtral keeps its fused experts, which know no float64."""
    if arch == "gpt2":
        sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 32}
    else:
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        sizes |= {"num_key_value_heads": 1} | ({"head_dim": 4} if arch == "gemma" else {})
    model = tiny_model(arch, seed, torch.float64, vocab_size=VOCABULARY, initializer_range=0.3, **sizes)
    return model


@cache
def dense_hessian(arch: str, reduction: str = "token-mean") -> Tensor:
    return slow_hessian(small_model(arch), EXAMPLES, REDUCTIONS[reduction], SMALL[arch])


def direction_for(model: Any, names: Sequence[str] | None = None, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in target_shapes(model).items()
        if names is None or name in names
    }


def flat(tensors: dict[str, Tensor], names: Sequence[str]) -> Tensor:
    return torch.cat([tensors[name].flatten() for name in names])


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("arch", [*ARCHITECTURES, "mixtral"])
def test_product_equals_dense_hessian(arch: str, left: bool) -> None:
    model, names, dense = small_model(arch), SMALL[arch], dense_hessian(arch)
    along = direction_for(model, names)
    found = hessian_vector(model, padded(EXAMPLES, left), along, parameters=names)
    wanted = dense @ flat(along, names)
    assert found.route == FORWARD, found.reason
    assert set(found) == set(names)
    assert error(flat(dict(found), names), wanted) < TOLERANCE.get(arch, 3e-6)
    curvature = curvature_along(model, padded(EXAMPLES, left), along)
    assert float(curvature) == pytest.approx(float(flat(along, names) @ wanted), rel=TOLERANCE.get(arch, 1e-5))
    shares = {name: float(along[name].flatten() @ part) for name, part in _split(wanted, along, names).items()}
    assert curvature.shares == pytest.approx(shares, rel=1e-4 if arch != "gpt2" else 1e-10)


def _split(vector: Tensor, like: dict[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    return dict(zip(names, vector.split([like[name].numel() for name in names]), strict=True))


def test_lora_takes_the_hessian_over_base_weights() -> None:
    model = with_lora(small_model()).double()
    names = [name for name in target_shapes(model) if "self_attn" in name]
    literal = {base_parameter_name(name): name for name, _ in model.named_parameters()}
    dense = slow_hessian(model, EXAMPLES, REDUCTIONS["token-mean"], [literal[name] for name in names])
    along = direction_for(model, names)
    found = hessian_vector(model, padded(EXAMPLES), along, parameters=names)
    assert found.route == FORWARD, found.reason
    assert error(flat(dict(found), names), dense @ flat(along, names)) < 3e-6


@pytest.mark.parametrize("parameters", ["factors", "all"])
def test_other_weights_can_be_asked_for(parameters: str) -> None:
    """The factors of LoRA, or frozen weights: a frozen model has a curvature too, and stays frozen."""
    model = with_lora(small_model()).double()
    ends = ("q_proj.lora_A.weight", "q_proj.lora_B.weight", *(("norm.weight",) if parameters == "all" else ()))
    literal = {base_parameter_name(n): n for n, _ in model.named_parameters() if base_parameter_name(n).endswith(ends)}
    names = list(literal)
    dense = slow_hessian(model, EXAMPLES, REDUCTIONS["token-mean"], [*literal.values()])
    generator = torch.Generator().manual_seed(0)
    shapes = {name: model.get_parameter(place).shape for name, place in literal.items()}
    along = {n: torch.randn(shape, generator=generator, dtype=torch.float64) for n, shape in shapes.items()}
    found = hessian_vector(model, padded(EXAMPLES), along, parameters=parameters)
    assert error(flat(dict(found), names), dense @ flat(along, names)) < 3e-6
    frozen = model.requires_grad_(False)
    value = curvature_along(frozen, padded(EXAMPLES), along).value
    assert value == pytest.approx(float(flat(along, names) @ dense @ flat(along, names)), rel=1e-5)
    assert not any(weight.requires_grad for weight in frozen.parameters())


def test_lora_on_fused_experts() -> None:
    """A wrapper of peft's puts B A onto the weight anew in each forward pass, which has no forward rule."""
    adapted = get_peft_model(
        small_model("mixtral"), LoraConfig(r=2, target_modules=[], target_parameters=["mlp.experts.down_proj"])
    )
    model = adapted.double().eval()
    (name,) = target_shapes(model)
    literal = {base_parameter_name(name): name for name, _ in model.named_parameters()}
    before = set(dict(model.named_parameters()))
    dense = slow_hessian(model, EXAMPLES, REDUCTIONS["token-mean"], [literal[name]])
    along = direction_for(model)
    found = hessian_vector(model, padded(EXAMPLES), along)
    assert found.route == BACKWARD
    assert "forward AD" in found.reason
    assert error(found[name].flatten(), dense @ along[name].flatten()) < 3e-6
    assert set(dict(model.named_parameters())) == before


@pytest.mark.parametrize("arch", [*ARCHITECTURES, "mixtral"])
def test_both_routes_agree(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = small_model(arch), padded(EXAMPLES)
    along = direction_for(model)
    forward = hessian_vector(model, batch, along)

    def no_rule(*_: object) -> None:
        raise NotImplementedError("no forward rule")

    monkeypatch.setattr(Hessian, "_forward_over_reverse", no_rule)
    backward = hessian_vector(model, batch, along)
    assert (forward.route, backward.route) == (FORWARD, BACKWARD)
    assert backward.reason == "NotImplementedError: no forward rule"
    assert list(forward) == list(backward) == list(target_shapes(model))
    assert error(flat(dict(forward), list(forward)), flat(dict(backward), list(forward))) < TOLERANCE.get(arch, 3e-6)


class _Cube(torch.autograd.Function):
    """x^3 / 9 without a forward rule."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3 / 9

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * x**2 / 3


class _CubeOnce(_Cube):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * x**2 / 3


def test_an_operation_without_forward_rule_takes_the_other_route() -> None:
    model, names = small_model(), SMALL["llama"]
    plain = copy.deepcopy(model)
    model.model.layers[0].mlp.act_fn.forward = _Cube.apply
    plain.model.layers[0].mlp.act_fn.forward = lambda x: x**3 / 9
    along = direction_for(model, names)
    found, wanted = (hessian_vector(each, padded(EXAMPLES), along, parameters=names) for each in (model, plain))
    assert (found.route, wanted.route) == (BACKWARD, FORWARD)
    assert "setup_context" in found.reason
    assert error(flat(dict(found), names), flat(dict(wanted), names)) < 3e-6
    assert curvature_along(model, padded(EXAMPLES), along).route == BACKWARD


def test_what_cannot_be_differentiated_twice_is_refused() -> None:
    model = small_model()
    model.model.layers[0].mlp.act_fn.forward = _CubeOnce.apply
    with pytest.raises(ModelError, match="cannot be differentiated twice: .*once_differentiable"):
        curvature_along(model, padded(EXAMPLES), direction_for(model))


@pytest.mark.parametrize("size", [None, 1, 2, 3])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions_do_not_depend_on_sub_batches(reduction: Any, size: int | None) -> None:
    model, names = small_model("gpt2"), SMALL["gpt2"]
    along = direction_for(model, names)
    found = hessian_vector(
        model, padded(EXAMPLES), along, parameters=names, reduction=reduction, batch_size=size, memory_budget=1
    )
    errors = {
        kind: error(flat(dict(found), names), dense_hessian("gpt2", kind) @ flat(along, names)) for kind in REDUCTIONS
    }
    assert errors.pop(reduction) < 1e-11
    # Negative control: another reduction's Hessian is another matrix.
    assert min(errors.values()) > 1e-2


def test_a_mask_that_is_missing_is_seen() -> None:
    """Negative control: left padding that the model attends to changes the Hessian."""
    model, names = small_model("gpt2"), SMALL["gpt2"]
    along = direction_for(model, names)
    batch = padded(EXAMPLES, left=True)
    wanted = dense_hessian("gpt2") @ flat(along, names)
    wrong = batch | {"attention_mask": torch.ones_like(batch["attention_mask"])}
    assert error(flat(dict(hessian_vector(model, batch, along, parameters=names)), names), wanted) < 1e-11
    assert error(flat(dict(hessian_vector(model, wrong, along, parameters=names)), names), wanted) > 1e-2


def test_second_order_prediction_of_a_step() -> None:
    """Loss along theta + s u: its derivatives by finite differences, over all weights, and the cubic remainder."""
    model, batch = small_model("gpt2"), padded(EXAMPLES)
    along = {name: value / 10 for name, value in direction_for(model).items()}

    def loss(scale: float) -> float:
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for name, weight in moved.named_parameters():
                weight += scale * along[name]
            measured = token_losses(moved, batch)
            return float(measured.losses.sum() / measured.tokens.sum())

    found = curvature_along(model, batch, along)
    h = 1e-3
    assert found.slope == pytest.approx((loss(h) - loss(-h)) / (2 * h), rel=1e-5)
    assert found.value == pytest.approx((loss(h) - 2 * loss(0) + loss(-h)) / h**2, rel=1e-5)
    assert sum(found.slopes.values()) == pytest.approx(found.slope, rel=1e-12)
    assert found.per_unit == pytest.approx(found.value / sum(float((v**2).sum()) for v in along.values()), rel=1e-12)
    small = curvature_along(model, batch, {name: value * h for name, value in along.items()})
    assert small.predicted_change == pytest.approx(loss(h) - loss(0), rel=1e-5)
    assert abs(small.slope / (loss(h) - loss(0)) - 1) > 1e-5, "first order alone is worse"


def test_a_direction_of_zero_has_no_curvature() -> None:
    model = small_model()
    along = {name: torch.zeros_like(value) for name, value in direction_for(model).items()}
    found = curvature_along(model, padded(EXAMPLES), along)
    assert (found.value, found.slope, found.per_unit) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("which", ["largest", "magnitude"])
def test_eigenvalues_equal_those_of_the_dense_hessian(which: Any) -> None:
    model, names, dense = small_model("gpt2"), SMALL["gpt2"], dense_hessian("gpt2")
    values, vectors = np.linalg.eigh(dense.numpy())
    order = np.argsort(-values if which == "largest" else -np.abs(values))[:4]
    found = top_eigenvalues(model, padded(EXAMPLES), 4, parameters=names, which=which, tolerance=1e-12, batch_size=2)
    assert found.values == pytest.approx(values[order], rel=1e-9)
    assert which == "largest" or (found.values < 0).any(), "the sample has a large negative eigenvalue"
    assert found.residuals.max() < 1e-9 * abs(values).max()
    assert found.names == names
    assert found.products > 4
    assert found.route == FORWARD
    for index in range(4):
        alike = abs(float(flat(found.vectors[index], names).numpy() @ vectors[:, order[index]]))
        assert alike == pytest.approx(1, abs=1e-6)
        along = curvature_along(model, padded(EXAMPLES), found.vectors[index])
        assert along.per_unit == pytest.approx(found.values[index], rel=1e-8)


def test_eigenvalues_of_the_whole_model_are_seeded() -> None:
    model, batch = small_model(), padded(EXAMPLES)
    first, again, other = (top_eigenvalues(model, batch, 2, seed=seed) for seed in (0, 0, 1))
    assert first.names == tuple(target_shapes(model))
    assert first.values.tolist() == again.values.tolist()
    assert first.values.tolist() != other.values.tolist()
    assert first.values == pytest.approx(other.values, rel=1e-5)
    assert first.residuals.max() < 1e-4 * first.values[0]
    block = top_eigenvalues(model, batch, 1, parameters=["model.norm.weight"])
    assert block.values[0] < first.values[0], "a block's largest eigenvalue is below the whole model's"


def test_iteration_that_does_not_converge_is_an_error() -> None:
    model = small_model()
    with pytest.raises(TrainingError, match=r"of 5 eigenvalues converged in 1 restarts .* raise restarts"):
        top_eigenvalues(model, padded(EXAMPLES), 5, tolerance=1e-15, restarts=1)


def test_bfloat16_is_near_and_in_float32() -> None:
    model = small_model("gpt2")
    along = direction_for(model)
    wanted = curvature_along(model, padded(EXAMPLES), along)
    # As small as an update: a tangent that is not brought to length 1 would lose its digits.
    update = {name: value * 1e-9 for name, value in along.items()}
    found = curvature_along(model.bfloat16(), padded(EXAMPLES), update)
    assert found.value * 1e18 == pytest.approx(wanted.value, rel=0.1)
    assert {value.dtype for value in hessian_vector(model, padded(EXAMPLES), update).values()} == {torch.float32}


def fused_mixtral() -> Any:
    """A model in an odd state: fused experts, one module in train mode, a gradient, a frozen weight, another kernel."""
    model = small_model("mixtral").float()
    model.config._attn_implementation_internal = "flex_attention"
    model.model.layers[0].mlp.train()
    model.model.norm.weight.requires_grad_(False)
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    return model


def trace(model: Any) -> dict[str, Any]:
    return {
        "weights": {name: (id(weight), weight.detach().clone()) for name, weight in model.named_parameters()},
        "flags": [(module.training, len(module._forward_hooks)) for module in model.modules()],
        "grads": {name: (weight.requires_grad, weight.grad) for name, weight in model.named_parameters()},
        "config": model.config.to_dict(),
        "kernels": (model.config._attn_implementation, model.config._experts_implementation),
        "random": torch.get_rng_state(),
    }


def same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, tuple | list):
        return len(first) == len(second) and all(same(*pair) for pair in zip(first, second, strict=True))
    return bool(first == second)


def test_the_model_is_left_as_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = fused_mixtral(), padded(EXAMPLES)
    along = direction_for(model)
    before = trace(model)
    assert before["kernels"] == ("flex_attention", "grouped_mm")
    first = curvature_along(model, batch, along)
    top_eigenvalues(model, batch, 1, parameters=["model.layers.0.mlp.gate.weight"])
    assert first == curvature_along(model, batch, along), "a second time, the same bits"
    assert same(before, trace(model))

    def broken(*_: object, **__: object) -> None:
        raise ValueError("in the middle")

    monkeypatch.setattr(model.model.layers[0].mlp, "forward", broken)
    with pytest.raises(ValueError, match="in the middle"):
        curvature_along(model, batch, along)
    assert same(before, trace(model))


BAD: list[tuple[dict[str, Any], type[GeomsafeError], str]] = [
    ({"direction": {"model.nrom.weight": torch.ones(8)}}, ModelError, "model.nrom.weight.*not in"),
    ({"direction": {"model.norm.weight": torch.ones(3)}}, ModelError, r"shape \(3,\), its parameter \(8,\)"),
    ({"direction": {}}, ModelError, r"parameters \[\] are not"),
    ({"reduction": "average"}, ConfigError, "'average' is not known: choose token-mean, mean or sum"),
    ({"batch_size": 0}, ConfigError, "batch_size 0 is below 1"),
    ({"memory_budget": "much"}, ConfigError, "'much' is no size"),
    ({"batch": padded([([3, 4, 5], [-100, -100, -100])])}, DataError, "example 0 has no target token"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "kind", "said"), BAD)
def test_mistakes_are_named(change: dict[str, Any], kind: type[GeomsafeError], said: str) -> None:
    given = {"batch": padded(EXAMPLES), "direction": {"model.norm.weight": torch.ones(8)}} | change
    with pytest.raises(kind, match=said):
        curvature_along(small_model(), given.pop("batch"), given.pop("direction"), **given)


@pytest.mark.parametrize(("change", "said"), [({"count": 8}, "choose 1 to 7"), ({"which": "small"}, "'small'")])
def test_mistakes_about_eigenvalues_are_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        top_eigenvalues(small_model(), padded(EXAMPLES), parameters=["model.norm.weight"], **change)


def test_weights_that_have_diverged_are_named() -> None:
    model = small_model()
    with torch.no_grad():
        model.lm_head.weight[:] = float("inf")
    with pytest.raises(TrainingError, match="not finite"):
        curvature_along(model, padded(EXAMPLES), {"model.norm.weight": torch.ones(8)})


def test_saved_bytes_grow_with_examples() -> None:
    model = small_model()
    one, four = (saved_bytes(model, partial(token_losses, model, padded([EXAMPLES[0]] * count))) for count in (1, 4))
    assert 3.5 * one < four < 4.1 * one
