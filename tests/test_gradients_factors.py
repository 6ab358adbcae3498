"""Left bases, singular values and sums of gradients equal those of the dense gradients; planted structure is found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gradient_cases import lively_model, merged, padded, shared_model, shared_rows, some_examples, with_lora
from reference import gram_reference, left_basis_reference, slow_example_gradients
from test_gradients_gram import OTHER, gram_error
from tiny import GRADIENT_ARCHITECTURES, MIXTURES
from torch import Tensor, nn

from geomsafe.errors import GeomsafeError
from geomsafe.gradients import Basis, Sum, gradient_factors, gradient_gram, gradient_pass

SOME = [0, 2, 3]


def input_first(model: Any, name: str) -> bool:
    """Tell whether the weight is stored (d_in, d_out): GPT-2's Conv1D and embeddings that are not also the head."""
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    return "transformer.h" in name or "wpe" in name or ("embed" in name and not tied)


def projector_distance(found: Tensor, wanted: Tensor) -> float:
    """||U U^T - V V^T||_2 of two orthonormal bases of equal width, 0 for one subspace and at most 1."""
    assert found.shape == wanted.shape
    return float(torch.linalg.matrix_norm(found @ found.T - wanted @ wanted.T, ord=2))


def well_separated(values: Tensor, most: int) -> int:
    """Find the largest k <= most at which the k-th and next singular value differ by 1 %: elsewhere no span is defined.

    0 for a gradient of zero.
    """
    floor = 1e-6 * float(values[0])
    here, after = values.tolist(), [*values[1:].tolist(), 0.0]
    good = [k for k in range(1, min(most, len(here)) + 1) if after[k - 1] < 0.99 * here[k - 1] and here[k - 1] > floor]
    return max(good, default=0)


@pytest.mark.parametrize("arch", GRADIENT_ARCHITECTURES)
def test_equals_the_dense_svd(arch: str) -> None:
    model, rows = shared_model(arch), shared_rows(arch)
    factors = gradient_factors(model, padded(some_examples()), reduction="sum")
    matrices = {name: row.sum(dim=0) for name, row in rows.items() if row[0].dim() == 2}
    assert set(matrices) <= set(factors.names)
    for name, gradient in matrices.items():
        _, values = left_basis_reference(gradient, 1)
        rank = well_separated(values, 12)
        wanted, _ = left_basis_reference(gradient, rank, input_first(model, name))
        found = factors.left_basis(name, rank=rank)
        torch.testing.assert_close(found.T @ found, torch.eye(rank, dtype=found.dtype), rtol=0, atol=1e-5)
        assert projector_distance(found.double(), wanted) < 1e-5, name
        singular = factors.singular_values(name).double()
        assert len(singular) <= min(gradient.shape)
        torch.testing.assert_close(singular, values[: len(singular)], rtol=0, atol=2e-6 * float(values[0]))
        assert not len(values[len(singular) :]) or float(values[len(singular) :].max()) < 2e-6 * float(values[0])
        torch.testing.assert_close(
            factors.summed(name).double(), gradient, rtol=0, atol=OTHER * float(gradient.abs().max())
        )


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_choice_of_examples(reduction: str) -> None:
    model = shared_model("llama")
    rows = slow_example_gradients(model, some_examples(), reduction)
    factors = gradient_factors(model, padded(some_examples()), reduction=reduction)
    for name in ("model.layers.0.mlp.gate_proj.weight", "lm_head.weight", "model.layers.1.self_attn.k_proj.weight"):
        gradient = rows[name][SOME].sum(dim=0)
        _, values = left_basis_reference(gradient, 1)
        rank = well_separated(values, 8)
        wanted, _ = left_basis_reference(gradient, rank)
        found = factors.left_basis(name, rank=rank, examples=SOME).double()
        assert projector_distance(found, wanted) < 1e-5
        singular = factors.singular_values(name, examples=SOME).double()
        torch.testing.assert_close(singular, values[: len(singular)], rtol=0, atol=2e-6 * float(values[0]))
        summed = factors.summed(name, examples=SOME).double()
        torch.testing.assert_close(summed, gradient, rtol=0, atol=OTHER * float(gradient.abs().max()))


@pytest.mark.parametrize("arch", MIXTURES)
def test_single_experts_of_a_fused_weight(arch: str) -> None:
    model, rows = shared_model(arch), shared_rows(arch)
    factors = gradient_factors(model, padded(some_examples()), reduction="sum")
    name = "model.layers.1.mlp.experts.gate_up_proj"
    used = 0
    for index in range(4):
        gradient = rows[name][:, index].sum(dim=0)
        _, values = left_basis_reference(gradient, 1)
        singular = factors.singular_values(name, index=index).double()
        torch.testing.assert_close(singular, values[: len(singular)], rtol=0, atol=2e-6 * float(values[0]))
        rank = well_separated(values, 6)
        if rank == 0:  # no target token came past this expert
            continue
        used += 1
        wanted, _ = left_basis_reference(gradient, rank)
        assert projector_distance(factors.left_basis(name, rank=rank, index=index).double(), wanted) < 1e-5
    assert used >= 2
    torch.testing.assert_close(
        factors.summed(name).double(), rows[name].sum(0), rtol=0, atol=OTHER * float(rows[name].abs().max())
    )


def test_factors_hold_no_graph() -> None:
    factors = gradient_factors(shared_model("llama"), padded(some_examples()))
    for name in factors.names:
        assert not factors.summed(name).requires_grad
        if "norm" not in name:
            assert not factors.left_basis(name).requires_grad, name


def test_gram_of_factors() -> None:
    found = gradient_factors(shared_model("phi3"), padded(some_examples()), reduction="sum").gram()
    wanted = gram_reference(shared_rows("phi3"))
    assert gram_error({name: found[name] for name in wanted if name in found}, wanted) < OTHER


def test_lora_bases_are_those_of_the_merged_weights() -> None:
    adapted = with_lora(lively_model("gpt2"))
    factors = gradient_factors(adapted, padded(some_examples()), reduction="sum")
    rows = slow_example_gradients(merged(adapted, list(factors.names)), some_examples())
    name = "transformer.h.0.mlp.c_fc.weight"
    gradient = rows[name].sum(dim=0)
    _, values = left_basis_reference(gradient, 1)
    rank = well_separated(values, 10)
    wanted, _ = left_basis_reference(gradient, rank, input_first=True)
    assert projector_distance(factors.left_basis(name, rank=rank).double(), wanted) < 1e-5


def test_one_pass_gives_bases_and_sums_of_several_sets() -> None:
    model, rows, batch = shared_model("llama"), shared_rows("llama"), padded(some_examples())
    weights = torch.tensor([0.5, -2.0, 1.0])
    found = gradient_pass(
        model,
        batch,
        {"first": Basis(rank=5, examples=[0, 1, 2]), "rest": Basis(rank=5, examples=[3, 4, 5, 6]),
         "sum": Sum(examples=[4, 0, 5], weights=weights)},
        reduction="sum",
    )  # fmt: skip
    for key, chosen in (("first", [0, 1, 2]), ("rest", [3, 4, 5, 6])):
        for name, row in rows.items():
            if row[0].dim() != 2:
                continue
            gradient = row[chosen].sum(dim=0)
            basis = found[key][name]
            assert basis.energy == pytest.approx(float(gradient.norm() ** 2), rel=1e-5)
            _, values = left_basis_reference(gradient, 1)
            singular = basis.singular_values.double()
            torch.testing.assert_close(singular, values[: len(singular)], rtol=0, atol=2e-6 * float(values[0]))
            rank = well_separated(values, 5)
            wanted, _ = left_basis_reference(gradient, rank, input_first(model, name))
            assert basis.vectors.shape[1] <= 5
            assert projector_distance(basis.vectors[:, :rank].double(), wanted) < 1e-5, (key, name)
    for name, row in rows.items():
        exact = torch.tensordot(weights.double(), row[[4, 0, 5]], dims=1)
        torch.testing.assert_close(found["sum"][name].double(), exact, rtol=0, atol=OTHER * float(row.abs().max()))


# --- planted structure ---------------------------------------------------------------------------------------------


def planted(k: int) -> tuple[Any, Tensor]:
    """A model whose gradients at the last residual write lie in a known subspace of dimension k.

    Without the last norm the gradient at the residual stream is W_head^T (p - y). With W_head = A V^T, V
    orthonormal (width, k), it lies in span V whatever the examples, hence so do the left singular
    vectors of the last down projection's gradient.
    """
    model = lively_model("llama")
    generator = torch.Generator().manual_seed(7)
    span = torch.linalg.qr(torch.randn((32, k), generator=generator, dtype=torch.float64)).Q
    model.model.norm = nn.Identity()
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.randn((384, k), generator=generator, dtype=torch.float64) @ span.T)
    return model, span


@pytest.mark.parametrize("k", [1, 4])
def test_planted_left_space_is_recovered(k: int) -> None:
    model, span = planted(k)
    factors = gradient_factors(model, padded(some_examples()))
    name = "model.layers.1.mlp.down_proj.weight"
    values = factors.singular_values(name).double()
    assert float(values[k - 1]) > 1e-3 * float(values[0])
    assert k == len(values) or float(values[k:].max()) < 1e-6 * float(values[0])
    found = factors.left_basis(name, rank=k).double()
    assert projector_distance(found, span) < 1e-5
    other, _ = planted(5)  # control: the same question to a model with another subspace
    elsewhere = gradient_factors(other, padded(some_examples())).left_basis(name, rank=k).double()
    assert projector_distance(elsewhere, span) > 0.1


def test_planted_rank_of_the_gram_is_recovered() -> None:
    """Nine examples that are copies of three: rank 3, and equal rows."""
    distinct = some_examples(3)
    gram = gradient_gram(shared_model("qwen2"), padded(distinct * 3)).total()
    values = torch.linalg.eigvalsh(gram).flip(0)
    assert float(values[2]) > 1e-4 * float(values[0]) and float(values[3]) < 1e-6 * float(values[0])
    torch.testing.assert_close(gram[:3], gram[3:6], rtol=1e-6, atol=1e-6 * float(gram.max()))
    other = torch.linalg.eigvalsh(gradient_gram(shared_model("qwen2"), padded(some_examples(9))).total()).flip(0)
    assert float(other[3]) > 1e-4 * float(other[0]), "control: nine different examples have a higher rank"


def test_few_target_tokens_bound_the_rank_of_the_head() -> None:
    """Each target adds one outer product to the head's gradient."""
    examples = [(ids, [-100] * (len(ids) - 1) + labels[-1:]) for ids, labels in some_examples(3)]
    factors = gradient_factors(shared_model("llama"), padded(examples))
    values = factors.singular_values("lm_head.weight").double()
    assert float(values[2]) > 1e-6 * float(values[0])
    assert len(values) == 3 or float(values[3:].max()) < 1e-6 * float(values[0])
    assert factors.left_basis("lm_head.weight", rank=20).shape[0] == 384


# --- errors --------------------------------------------------------------------------------------------------------


def test_unknown_names_and_examples() -> None:
    factors = gradient_factors(shared_model("llama"), padded(some_examples()))
    with pytest.raises((GeomsafeError, KeyError), match=r"no\.such"):
        factors.left_basis("no.such")
    with pytest.raises((GeomsafeError, IndexError), match="7"):
        factors.left_basis("lm_head.weight", examples=[0, 7])
    with pytest.raises(GeomsafeError):
        factors.left_basis("lm_head.weight", examples=[])
    with pytest.raises(GeomsafeError, match="norm"):
        factors.left_basis("model.norm.weight")


@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen2", "mixtral"])
def test_either_side_of_one_example_and_the_axis_it_lies_on(arch: str) -> None:
    model, rows = shared_model(arch), shared_rows(arch)
    factors = gradient_factors(model, padded(some_examples()[:1]), reduction="sum")
    kept = 0
    for name, row in rows.items():
        if row.dim() != 3:
            continue
        left, values, right = torch.linalg.svd(row[0], full_matrices=False)
        rank = well_separated(values, 6)
        if rank == 0:
            continue
        kept += 1
        for opposite in (False, True):
            found = factors.decomposition(name, rank, opposite=opposite)
            assert found.axis == int(input_first(model, name) ^ opposite), name
            wanted = left[:, :rank] if found.axis == 0 else right[:rank].T
            assert projector_distance(found.vectors, wanted) < 1e-6, name
    assert kept >= 10
