"""<G_i, D> of every example equals that of a loop, for any direction."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gradient_cases import lively_model, merged, padded, shared_model, shared_rows, some_examples, with_lora
from reference import dots_reference, same_pass_gradients, slow_example_gradients
from test_gradients_gram import FLOAT32_GAINS, OTHER, PADDED, SAME
from tiny import GRADIENT_ARCHITECTURES
from torch import Tensor

from geomsafe.errors import GeomsafeError
from geomsafe.gradients import Dots, Gram, gradient_dots, gradient_gram, gradient_pass


def some_direction(rows: dict[str, Tensor], seed: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(row.shape[1:], generator=generator, dtype=torch.float64) for name, row in rows.items()}


def dots_error(found: Any, rows: dict[str, Tensor], direction: dict[str, Tensor]) -> float:
    """Largest |<G_i, D> - exact| / (|G_i| |D|) over parameters and examples."""
    wanted = dots_reference(rows, direction)
    assert list(found) == list(wanted)
    floor = 1e-12 * max(float(row.norm()) for row in rows.values())
    errors = []
    for name, exact in wanted.items():
        assert found[name].dtype == torch.float64 and found[name].shape == exact.shape
        norms = rows[name].flatten(1).norm(dim=1).clamp(min=floor) * direction[name].norm().double()
        errors.append(float(((found[name] - exact).abs() / norms).max()))
    return max(errors)


@pytest.mark.parametrize(("arch", "side"), PADDED)
def test_equals_a_loop_over_examples(arch: str, side: str) -> None:
    model, rows = shared_model(arch), shared_rows(arch)
    direction = some_direction(rows)
    found = gradient_dots(model, padded(some_examples(), left=side == "left"), direction, reduction="sum")
    assert dots_error(found, rows, direction) < OTHER


@pytest.mark.parametrize("arch", GRADIENT_ARCHITECTURES)
def test_equals_one_backward_pass_an_example_to_rounding(arch: str) -> None:
    model, batch = shared_model(arch), padded(some_examples())
    rows = same_pass_gradients(model, batch)
    direction = some_direction(rows)
    found = gradient_dots(model, batch, direction, reduction="sum", dtype=torch.float64)
    assert dots_error(found, rows, direction) < OTHER
    exact = {name: row for name, row in rows.items() if not (arch in FLOAT32_GAINS and "norm" in name)}
    assert dots_error({n: found[n] for n in exact}, exact, {n: direction[n] for n in exact}) < SAME


def test_reductions_and_total() -> None:
    model, rows = shared_model("gpt2"), shared_rows("gpt2")
    direction = some_direction(rows)
    tokens = torch.tensor([sum(label != -100 for label in labels) for _, labels in some_examples()])
    means = {name: row / tokens.view(-1, *[1] * (row.dim() - 1)) for name, row in rows.items()}
    found = gradient_dots(model, padded(some_examples()), direction)
    assert dots_error(found, means, direction) < OTHER
    torch.testing.assert_close(found.total(), sum(dots_reference(means, direction).values()), rtol=1e-6, atol=1e-6)


def test_a_direction_of_some_weights_and_of_another_dtype() -> None:
    model, rows = shared_model("llama"), shared_rows("llama")
    names = ["model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight"]
    direction = {name: along.float() for name, along in some_direction(rows).items() if name in names}
    found = gradient_dots(model, padded(some_examples()), direction, reduction="sum")
    assert dots_error(found, rows, direction) < OTHER


def test_direction_made_of_gradients_gives_rows_of_the_gram() -> None:
    """<G_i, sum_j w_j G_j> = K w, and the negative direction changes the sign."""
    model, rows, batch = shared_model("qwen2"), shared_rows("qwen2"), padded(some_examples())
    weights = torch.linspace(-1, 1, 7, dtype=torch.float64)
    direction = {name: torch.tensordot(weights, row, dims=1) for name, row in rows.items()}
    gram = gradient_gram(model, batch, reduction="sum")
    found = gradient_dots(model, batch, direction, reduction="sum")
    opposite = gradient_dots(model, batch, {name: -along for name, along in direction.items()}, reduction="sum")
    for name, along in direction.items():
        scale = float(gram[name].diagonal().sqrt().max() * along.norm())
        torch.testing.assert_close(found[name], gram[name] @ weights, rtol=0, atol=1e-6 * scale)
        assert torch.equal(opposite[name], -found[name])


def test_prediction_of_a_small_step() -> None:
    """The change of each example's loss under theta + h D is h <G_i, D> to first order."""
    model, batch = lively_model("gpt2"), padded(some_examples())
    direction = some_direction(shared_rows("gpt2"), seed=4)
    found = gradient_dots(model, batch, direction, reduction="sum").total()
    step, losses = 1e-5, []
    for sign in (1, -1):
        moved = lively_model("gpt2")
        with torch.no_grad():
            for name, weight in moved.named_parameters():
                weight += sign * step * direction[name]
        losses.append(gradient_gram(moved, batch).losses)
    torch.testing.assert_close((losses[0] - losses[1]) / (2 * step), found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_lora_directions_are_those_of_the_merged_weights(arch: str) -> None:
    adapted = with_lora(lively_model(arch))
    names = list(gradient_gram(adapted, padded(some_examples())))
    rows = slow_example_gradients(merged(adapted, names), some_examples())
    direction = some_direction(rows)
    found = gradient_dots(adapted, padded(some_examples()), direction, reduction="sum")
    assert dots_error(found, rows, direction) < OTHER


@pytest.mark.parametrize("budget", ["1MiB", "200KiB"])
def test_pieces_and_several_quantities_in_one_pass(budget: str) -> None:
    model, rows, batch = shared_model("qwen3_moe"), shared_rows("qwen3_moe"), padded(some_examples())
    first, second = some_direction(rows, 2), some_direction(rows, 3)
    found = gradient_pass(
        model,
        batch,
        {"gram": Gram(), "displacement": Dots(first), "update": Dots(second)},
        reduction="sum",
        memory_budget=budget,
    )
    assert dots_error(found["displacement"], rows, first) < OTHER
    assert dots_error(found["update"], rows, second) < OTHER
    alone = gradient_gram(model, batch, reduction="sum").total()
    torch.testing.assert_close(found["gram"].total(), alone, rtol=1e-6, atol=1e-6 * float(alone.max()))


def test_float32() -> None:
    model, batch = lively_model("gemma", torch.float32), padded(some_examples())
    rows = same_pass_gradients(model, batch)
    direction = some_direction(rows)
    assert dots_error(gradient_dots(model, batch, direction, reduction="sum"), rows, direction) < 1e-5


# --- errors and negative controls ----------------------------------------------------------------------------------


def test_directions_that_do_not_fit_are_errors() -> None:
    model, batch = shared_model("llama"), padded(some_examples())
    good = {"model.norm.weight": torch.ones(32)}
    with pytest.raises(GeomsafeError, match=r"no\.such"):
        gradient_dots(model, batch, good | {"no.such": torch.ones(3)})
    with pytest.raises(GeomsafeError, match=r"model\.norm\.weight"):
        gradient_dots(model, batch, {"model.norm.weight": torch.ones(31)})
    with pytest.raises(GeomsafeError):
        gradient_dots(model, batch, {})


@pytest.mark.parametrize("fault", ["mask", "order", "direction"])
def test_control_faults_are_seen(fault: str) -> None:
    model, rows, examples = shared_model("llama"), shared_rows("llama"), some_examples()
    direction = some_direction(rows)
    batch = padded([examples[1], examples[0], *examples[2:]] if fault == "order" else examples, left=True)
    if fault == "mask":
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    used = some_direction(rows, seed=3) if fault == "direction" else direction
    assert dots_error(gradient_dots(model, batch, used, reduction="sum"), rows, direction) > 1e-2
