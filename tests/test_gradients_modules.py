"""Modules that no architecture of transformers has: exact all the same, or measured by the loop and named."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from gradient_cases import lively_model, padded, some_examples
from reference import gram_reference, slow_example_gradients
from test_gradients_gram import OTHER, gram_error
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from geomsafe.errors import ModelError
from geomsafe.gradients import gradient_gram


def check(model: Any, left: bool = False) -> Any:
    """Compare with the loop over examples; return the result for further questions."""
    found = gradient_gram(model, padded(some_examples(), left), reduction="sum")
    assert gram_error(found, gram_reference(slow_example_gradients(model, some_examples()))) < OTHER
    return found


def as_mlp(model: Any, wrap: Any) -> Any:
    """Put `wrap(mlp)` in the place of the first layer's MLP."""
    model.model.layers[0].mlp = wrap(model.model.layers[0].mlp).to(torch.float64)
    return model


class Bent(nn.Module):
    """Parameters that no rule can know: they act through sines and mix with the hidden state."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.angle = nn.Parameter(torch.linspace(0.1, 2.0, 32, dtype=torch.float64))
        self.mixing = nn.Parameter(torch.linspace(-0.3, 0.3, 64, dtype=torch.float64).reshape(32, 2))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.inner(hidden) * torch.sin(self.angle) + torch.tanh(hidden @ self.mixing) @ self.mixing.T


class OwnLinear(nn.Linear):
    """A Linear that is not one: the output is squared before it leaves."""

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden) ** 2


class Flat(nn.Module):
    """Calls the inner module with rows of tokens, (examples * tokens, width)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor) -> Tensor:
        return self.inner(hidden.reshape(-1, hidden.shape[-1])).reshape(hidden.shape)


class TokensFirst(Flat):
    """Calls the inner module with (tokens, examples, width), as older recurrent code does."""

    def forward(self, hidden: Tensor) -> Tensor:
        return self.inner(hidden.transpose(0, 1)).transpose(0, 1)


class Mixed(Flat):
    """Calls the inner module with rows of tokens in an order of its own."""

    def forward(self, hidden: Tensor) -> Tensor:
        turned = hidden.transpose(0, 1)
        return self.inner(turned.reshape(-1, hidden.shape[-1])).reshape(turned.shape).transpose(0, 1)


class Borrowing(nn.Module):
    """Uses another module's weight by hand, beside that module's own use of it."""

    def __init__(self, inner: nn.Module, lender: nn.Linear) -> None:
        super().__init__()
        self.inner = inner
        self.lender = [lender]  # in a list, so that it is no submodule

    def forward(self, hidden: Tensor) -> Tensor:
        return self.inner(hidden) + nn.functional.linear(hidden, self.lender[0].weight)


class Hidden(torch.autograd.Function):
    """A linear map inside a Function of its own, as fused kernels are: no torch call shows the weight."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        return hidden @ weight.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        hidden, weight = ctx.saved_tensors
        return gradient @ weight, gradient.flatten(0, -2).T @ hidden.flatten(0, -2)


class Fused(nn.Module):
    """Its own weight, and perhaps another's, inside a Function."""

    def __init__(self, inner: nn.Module, lender: nn.Linear | None = None) -> None:
        super().__init__()
        self.inner = inner
        self.own = nn.Parameter(torch.eye(32) + 0.1)
        self.lender = [lender]

    def forward(self, hidden: Tensor) -> Tensor:
        weight = self.own if self.lender[0] is None else self.lender[0].weight
        return self.inner(hidden) + Hidden.apply(hidden, weight)


class Spelled(nn.Module):
    """The same linear map, written in four other ways."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        generator = torch.Generator().manual_seed(11)
        self.maps = nn.ParameterList(0.2 * torch.randn((32, 32), generator=generator) for _ in range(5))
        self.taps = nn.Conv1d(32, 32, 2)

    def forward(self, hidden: Tensor) -> Tensor:
        first = torch.einsum("btd,od->bto", hidden, self.maps[0])
        second = hidden @ self.maps[1].T
        third = (hidden[..., None, :] * self.maps[2]).sum(dim=-1)
        halves = nn.functional.linear(hidden[..., :16], self.maps[3][:, :16])
        wide = torch.baddbmm(hidden, hidden, self.maps[4].expand(len(hidden), -1, -1))
        behind = self.taps(nn.functional.pad(hidden.transpose(1, 2), (1, 0))).transpose(1, 2)
        return self.inner(first + second + third + halves + wide + behind)


class FastNorm(nn.Module):
    """A norm of another library: torch's own kernel, which takes one weight vector and nothing else."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, hidden: Tensor) -> Tensor:
        return nn.functional.rms_norm(hidden, (32,), self.weight, 1e-6)


class ScaledNorm(FastNorm):
    """A norm that uses its weight in a way of its own: its mean too."""

    def forward(self, hidden: Tensor) -> Tensor:
        return nn.functional.rms_norm(hidden, (32,)) * self.weight * self.weight.mean()


class Resorted(Flat):
    """Sorts rows of tokens, as some mixtures do, without indexing by brackets."""

    def forward(self, hidden: Tensor) -> Tensor:
        rows = hidden.reshape(-1, hidden.shape[-1])
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(len(rows)))
        return self.inner(rows.index_select(0, order)).index_select(0, order.argsort()).reshape(hidden.shape)


class Bracketed(Flat):
    """Sorts rows of tokens by brackets."""

    def forward(self, hidden: Tensor) -> Tensor:
        rows = hidden.reshape(-1, hidden.shape[-1])
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(len(rows)))
        return self.inner(rows[order])[order.argsort()].reshape(hidden.shape)


class Checkpointed(nn.Module):
    """Runs its inside again in the backward pass, in eval mode too."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor) -> Tensor:
        found: Tensor = checkpoint(self.inner, hidden, use_reentrant=False)
        return found


class Unused(nn.Module):
    """Has a layer that is never called."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.spare = nn.Linear(4, 3)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.inner(hidden)


def test_parameters_without_a_rule_take_the_loop_and_are_named() -> None:
    found = check(as_mlp(lively_model("llama"), Bent))
    assert set(found.slow) == {"model.layers.0.mlp.angle", "model.layers.0.mlp.mixing"}


def test_subclass_that_changes_what_a_linear_does() -> None:
    model = lively_model("llama")
    projection = model.model.layers[0].mlp.up_proj
    projection.__class__ = OwnLinear
    check(model)


UNSEEN = pytest.mark.xfail(strict=True, reason="no shape tells that rows do not go example by example")


@pytest.mark.parametrize("wrap", [Flat, TokensFirst, pytest.param(Mixed, marks=UNSEEN)])
@pytest.mark.parametrize("left", [False, True])
def test_inputs_of_other_layouts(wrap: Any, left: bool) -> None:
    check(as_mlp(lively_model("llama"), wrap), left)


@pytest.mark.parametrize("wrap", [Bracketed, Resorted])
def test_rows_that_were_sorted(wrap: Any) -> None:
    check(as_mlp(lively_model("llama"), wrap))


def test_tokens_first_in_a_square_batch() -> None:
    """As many examples as tokens: the shape alone cannot tell which axis is which."""
    model = as_mlp(lively_model("llama"), TokensFirst)
    examples = some_examples(9, equal=True)
    found = gradient_gram(model, padded(examples), reduction="sum")
    assert gram_error(found, gram_reference(slow_example_gradients(model, examples))) < OTHER


def test_linear_maps_written_in_other_ways() -> None:
    found = check(as_mlp(lively_model("llama"), Spelled))
    assert set(found.slow) <= {name for name in found if "maps" in name or "taps" in name}


@pytest.mark.parametrize("kind", [FastNorm, ScaledNorm])
def test_norms_of_other_libraries(kind: Any) -> None:
    model = lively_model("llama")
    model.model.layers[0].post_attention_layernorm = kind(model.model.layers[0].post_attention_layernorm.weight)
    check(model)


def test_norm_of_torch() -> None:
    model = lively_model("llama")
    model.model.norm = nn.RMSNorm(32, dtype=torch.float64)
    check(model)


def test_one_gain_in_two_norms() -> None:
    model = lively_model("llama")
    model.model.layers[1].input_layernorm.weight = model.model.layers[0].post_attention_layernorm.weight
    check(model)


def test_weight_inside_an_autograd_function() -> None:
    found = check(as_mlp(lively_model("llama"), Fused))
    assert "model.layers.0.mlp.own" in found.slow


def test_weight_borrowed_by_an_autograd_function() -> None:
    """As a fused loss does with a tied output layer: one use follows a rule, the other is invisible to torch calls."""
    model = lively_model("llama")
    lender = model.model.layers[1].self_attn.q_proj
    model = as_mlp(model, lambda inner: Fused(inner, lender))
    model.model.layers[0].mlp.own.requires_grad_(False)
    check(model)


def test_module_that_is_run_again_in_the_backward_pass() -> None:
    with pytest.raises(ModelError, match="switch its checkpointing off"):
        gradient_gram(as_mlp(lively_model("llama"), Checkpointed), padded(some_examples()))


def test_weight_borrowed_by_hand() -> None:
    """The module's own call sees only part of the gradient; the rest comes from a functional use elsewhere."""
    model = lively_model("llama")
    lender = model.model.layers[1].self_attn.q_proj
    check(as_mlp(model, lambda inner: Borrowing(inner, lender)))


def test_module_that_is_never_called_has_gradient_zero() -> None:
    model = as_mlp(lively_model("llama"), Unused)
    found = gradient_gram(model, padded(some_examples()), reduction="sum")
    spare = {name: gram for name, gram in found.items() if "spare" in name}
    assert len(spare) == 2 and not any(gram.any() for gram in spare.values())
    rest = {name: gram for name, gram in found.items() if name not in spare}
    wanted = gram_reference(slow_example_gradients(model, some_examples()))
    assert gram_error(rest, {name: gram for name, gram in wanted.items() if name not in spare}) < OTHER


def test_one_module_in_two_places() -> None:
    model = lively_model("llama")
    model.model.layers[1].mlp.up_proj = model.model.layers[0].mlp.up_proj
    model.model.layers[1].input_layernorm = model.model.layers[0].input_layernorm
    check(model)


def test_one_weight_in_two_modules() -> None:
    model = lively_model("gpt2")
    first, second = (model.transformer.h[index] for index in (0, 1))
    second.mlp.c_fc.weight = first.mlp.c_fc.weight
    second.ln_1.weight = first.ln_1.weight
    second.mlp.c_proj.bias = first.mlp.c_proj.bias
    check(model)


def test_module_called_twice_in_one_layer() -> None:
    class Twice(Flat):
        def forward(self, hidden: Tensor) -> Tensor:
            return self.inner(self.inner(hidden))

    check(as_mlp(lively_model("llama"), Twice))


def test_output_changed_in_place_after_the_module() -> None:
    class InPlace(Flat):
        def forward(self, hidden: Tensor) -> Tensor:
            return self.inner(hidden).mul_(0.5).add_(hidden)

    check(as_mlp(lively_model("llama"), InPlace))


def test_frozen_layers_below_and_weights_without_gradient_path() -> None:
    """With everything below frozen no hidden state carries a gradient into the first trained layer."""
    model = lively_model("llama")
    for name, weight in model.named_parameters():
        weight.requires_grad_("layers.1.mlp" in name)
    found = check(model)
    assert len(found) == 3


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_train_mode_and_dropout(reentrant: bool) -> None:
    """A model in the middle of training is measured as in eval mode."""
    model = lively_model("gpt2", resid_pdrop=0.2, attn_pdrop=0.1, embd_pdrop=0.1).train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    quiet = lively_model("gpt2")
    quiet.load_state_dict(model.state_dict())
    found = gradient_gram(model, padded(some_examples()), reduction="sum")
    assert gram_error(found, gram_reference(slow_example_gradients(quiet, some_examples()))) < OTHER
    assert model.training and model.is_gradient_checkpointing


def test_user_hook_that_changes_the_output() -> None:
    """A hook of the user's own is part of the model."""
    model = lively_model("llama")
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda _module, _inputs, output: torch.tanh(output))
    twin = copy.deepcopy(model)
    found = gradient_gram(model, padded(some_examples()), reduction="sum")
    assert gram_error(found, gram_reference(slow_example_gradients(twin, some_examples()))) < OTHER
    plain = gram_reference(slow_example_gradients(lively_model("llama"), some_examples()))
    assert gram_error(found, plain) > 1e-2, "the hook matters here"
