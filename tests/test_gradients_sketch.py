"""Sketches: inner products unbiased, errors within the stated bound, the same map for the same seed everywhere."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from gradient_cases import lively_model, padded, shared_model, shared_rows, some_examples
from reference import gram_reference, slow_example_gradients
from tiny import GRADIENT_ARCHITECTURES
from torch import Tensor

from geomsafe.errors import GeomsafeError
from geomsafe.gradients import gradient_sketch

SEEDS = 60
DIM = 64


@cache
def products(arch: str) -> tuple[dict[str, Tensor], Tensor]:
    """Inner products of sketched gradients, (seeds, examples, examples), by parameter and of the total."""
    each: dict[str, list[Tensor]] = {}
    totals = []
    for seed in range(SEEDS):
        sketch = gradient_sketch(shared_model(arch), padded(some_examples()), dim=DIM, seed=seed, reduction="sum")
        for name, rows in sketch.items():
            assert rows.shape == (7, DIM)
            each.setdefault(name, []).append(rows.double() @ rows.double().T)
        total = sketch.total().double()
        totals.append(total @ total.T)
    return {name: torch.stack(found) for name, found in each.items()}, torch.stack(totals)


def standard_scores(found: Tensor, exact: Tensor) -> Tensor:
    """(mean over seeds - exact) / standard error of that mean, for every pair of examples."""
    error = found.std(dim=0) / found.shape[0] ** 0.5
    return (found.mean(dim=0) - exact) / error.clamp(min=1e-6 * float(exact.abs().max()))


@pytest.mark.parametrize("arch", ["qwen2", "gpt2", "mixtral"])
def test_inner_products_are_unbiased(arch: str) -> None:
    """The mean over seeds lies within 5 standard errors, for every weight, bias, embedding and norm, and in total.

    28 pairs and at most 30 parameters: at 5 standard errors a fair sketch fails once in some thousand draws,
    and the seeds are fixed. Means of one-sided errors would stand out: their square root of the mean square is near 1.
    """
    each, total = products(arch)
    exact = gram_reference(shared_rows(arch))
    assert list(each) == list(exact)
    scores = torch.cat([standard_scores(each[name], exact[name]).flatten() for name in exact])
    assert float(scores.abs().max()) < 5
    assert 0.5 < float(scores.square().mean().sqrt()) < 1.5
    assert float(standard_scores(total, sum(exact.values())).abs().max()) < 5


def test_control_a_biased_estimate_is_seen() -> None:
    each, _ = products("qwen2")
    exact = gram_reference(shared_rows("qwen2"))
    scores = torch.cat([standard_scores(1.3 * each[name], exact[name]).flatten() for name in exact])
    assert float(scores.abs().max()) > 5


@pytest.mark.parametrize("arch", ["qwen2", "gpt2", "mixtral"])
def test_stated_error_bound_holds_in_95_percent_of_seeds(arch: str) -> None:
    """The bound is on |<Sg_i, Sg_j> - <g_i, g_j>| / (|g_i| |g_j|), stated by the sketch itself for its dim."""
    each, _ = products(arch)
    exact = gram_reference(shared_rows(arch))
    sketch = gradient_sketch(shared_model(arch), padded(some_examples()), dim=DIM)
    bound = 2 * sketch.standard_deviation
    assert 0 < bound < 1, "a bound of 1 says nothing"
    for name, gram in exact.items():
        norms = gram.diagonal().clamp(min=1e-30).sqrt()
        relative = ((each[name] - gram).abs() / (norms[:, None] * norms)).flatten(1)
        held = (relative <= bound).double().mean(dim=0)  # of the seeds, for each pair
        assert float(held.min()) >= 0.95 - 2 * (0.95 * 0.05 / SEEDS) ** 0.5, name


@pytest.mark.parametrize("arch", GRADIENT_ARCHITECTURES)
def test_same_seed_same_map(arch: str) -> None:
    """One map for calls, batch compositions, padding sides and models: sketches add up and can be compared."""
    model, examples = shared_model(arch), some_examples()
    whole = gradient_sketch(model, padded(examples), dim=32, seed=3, reduction="sum")
    again = gradient_sketch(model, padded(examples), dim=32, seed=3, reduction="sum")
    part = gradient_sketch(model, padded(examples[2:4], left=arch != "gemma2"), dim=32, seed=3, reduction="sum")
    for name in whole:
        scale = float(whole[name].abs().max())
        assert torch.equal(whole[name], again[name])
        torch.testing.assert_close(part[name], whole[name][2:4], rtol=0, atol=2e-5 * scale, msg=name)


def test_sketches_of_two_models_can_be_compared() -> None:
    """The map does not depend on the weights: S(g(theta_1)) . S(g(theta_2)) estimates g(theta_1) . g(theta_2)."""
    first, second = shared_model("llama"), lively_model("llama", seed=0, rope_theta=500.0)
    examples = some_examples(4)
    one, two = (slow_example_gradients(model, examples) for model in (first, second))
    exact = {name: one[name].flatten(1) @ two[name].flatten(1).T for name in one}
    found: dict[str, list[Tensor]] = {name: [] for name in exact}
    for seed in range(40):
        a, b = (
            gradient_sketch(model, padded(examples), dim=128, seed=seed, reduction="sum") for model in (first, second)
        )
        for name in exact:
            found[name].append(a[name].double() @ b[name].double().T)
    for name, wanted in exact.items():
        assert float(standard_scores(torch.stack(found[name]), wanted).abs().max()) < 5, name


def test_maps_of_seeds_and_parameters_are_independent() -> None:
    """One gradient under two seeds, and one gradient as that of two parameters, have unrelated sketches."""
    model = lively_model("llama")
    layers = model.model.layers
    model.model.norm = torch.nn.Identity()
    batch = padded(some_examples())
    one, two = (gradient_sketch(model, batch, dim=512, seed=seed) for seed in (0, 1))
    for name in one:
        cosine = torch.nn.functional.cosine_similarity(one[name].double(), two[name].double(), dim=1)
        coordinates = min(512, model.get_parameter(name).numel())  # a small weight is kept whole, up to signs
        assert float(cosine.abs().max()) < 6 / coordinates**0.5, name

    # With a last layer that adds nothing but two equal branches, two weights have one gradient.
    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = (torch.nn.Linear(32, 32, bias=False, dtype=torch.float64) for _ in range(2))

        def forward(self, hidden: Tensor) -> Tensor:
            return self.left(hidden) + self.right(hidden)

    layers[1].mlp = Both()
    names = [f"model.layers.1.mlp.{side}.weight" for side in ("left", "right")]
    rows = slow_example_gradients(model, some_examples(), names=names)
    torch.testing.assert_close(rows[names[0]], rows[names[1]], rtol=1e-9, atol=0)
    sketch = gradient_sketch(model, batch, dim=512)
    cosine = torch.nn.functional.cosine_similarity(sketch[names[0]].double(), sketch[names[1]].double(), dim=1)
    assert float(cosine.abs().max()) < 6 / 512**0.5


def test_linear_in_the_gradients() -> None:
    """Mean and sum differ by the token count; nothing is normalised on the way."""
    model, batch = shared_model("gpt2"), padded(some_examples())
    summed, mean = (gradient_sketch(model, batch, dim=16, reduction=how) for how in ("sum", "mean"))
    for name in summed:
        scaled = mean[name].double() * mean.tokens[:, None]
        torch.testing.assert_close(scaled, summed[name].double(), rtol=1e-5, atol=1e-6 * float(scaled.abs().max()))


@pytest.mark.parametrize("arch", ["llama", "qwen2_moe"])
def test_pieces_equal_the_whole(arch: str) -> None:
    model, batch = shared_model(arch), padded(some_examples())
    whole = gradient_sketch(model, batch, dim=32)
    pieces = gradient_sketch(model, batch, dim=32, memory_budget="200KiB")
    for name in whole:
        torch.testing.assert_close(whole[name], pieces[name], rtol=0, atol=2e-5 * float(whole[name].abs().max()))


def test_errors_shrink_with_the_dimension() -> None:
    """Four times the dimension, about half the error."""
    exact = sum(gram_reference(shared_rows("llama")).values())
    norms = exact.diagonal().sqrt()

    def spread(dim: int) -> float:
        found: list[Any] = []
        for seed in range(12):
            total = gradient_sketch(
                shared_model("llama"), padded(some_examples()), dim=dim, seed=seed, reduction="sum"
            ).total()
            found.append(((total.double() @ total.double().T - exact) / (norms[:, None] * norms)).square().mean())
        return float(torch.stack(found).mean().sqrt())

    assert 1.4 < spread(64) / spread(256) < 2.9


def test_bad_dimensions_are_errors() -> None:
    for dim in (0, -3):
        with pytest.raises(GeomsafeError, match=str(dim)):
            gradient_sketch(shared_model("llama"), padded(some_examples()), dim=dim)
